"""The load: a process of its own that publishes ready-made packets and counts the results that come back.

    python -m benchmarks.load < spec.json > measured.json

Rules:
- One raw socket, packets encoded beforehand: a frame costs about a microsecond here, so the load is never the limit.
- Closed loop (`rate` is null): a fixed number of frames is under way, and each result lets the next frame go. This
  saturates what is measured without starving it of the cores it shares with the load and the broker.
- Open loop (`rate` is set): frames go when they are due, whatever comes back, and latency counts from when a frame was
  due: a stall is charged to every frame that it delays.
- Processor time of all processes is read at both ends of the measured time, by this process, which knows them.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from hedgerow.bus.packets import PUBLISH, encode_connect, encode_publish_head, encode_subscribe
from hedgerow.bus.properties import Property, encode_properties

_NUMBER: Final = re.compile(rb'id(?:": ?"|\x00.)f(\d+)', re.DOTALL)
"""A frame's number in a result: in its JSON, or in its user property `id`."""
_STALLED_S: Final = 1.0
"""Without a result for this long the frames under way count as lost, and as many are sent anew."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to do.

    Attributes:
        port: of the broker on 127.0.0.1.
        topics: one a stream; frames go round them in turn.
        payloads: files that hold the payloads, gone round in turn.
        content_type: sent with every frame, if not empty.
        results: filter of the topics that results come on.
        qos: of frames.
        window: closed loop: frames under way.
        rate: open loop: frames a second, all streams together.
        warmup_s, seconds: time before measuring, and measured.
        pids: processes to take the processor time of, by role.
    """

    port: int
    topics: list[str]
    payloads: list[str]
    results: str
    content_type: str = ""
    qos: int = 0
    window: int = 256
    rate: float | None = None
    warmup_s: float = 1.0
    seconds: float = 3.0
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it, within the measured time.

    Attributes:
        seconds: how long it really was.
        sent, results: frames out, results in.
        stalls: times that no result came for a second.
        cpu_s: processor time by role, user and system together; the load's own as `load`, all else
            that ran on the machine as `others`.
        latencies_ms: from when a frame was due to when its result came; open loop only.
    """

    seconds: float
    sent: int
    results: int
    stalls: int
    cpu_s: dict[str, float]
    latencies_ms: list[float]

    @property
    def rate(self) -> float:
        """Results a second."""
        return self.results / self.seconds


class Connection:
    """A raw MQTT 5 connection that sends packets and counts those of one kind that come."""

    def __init__(self, port: int, results: str, client_id: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(encode_connect(client_id=client_id, clean_start=True, keepalive_s=0))
        self.socket.sendall(encode_subscribe(1, {results: 0}))
        self._buffer = bytearray()
        while not any(first & 0xF0 == 0x90 for first, _, _ in self.packets()):
            self.receive()

    def receive(self) -> None:
        """Take in what has come; waits if nothing has. Raises: ConnectionError: the broker has gone."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("The broker closed the connection")
        self._buffer += data

    def packets(self) -> Iterator[tuple[int, int, int]]:
        """Every complete packet: its first byte, and where its body begins and ends in `body`."""
        buffer = self._buffer
        at, end = 0, len(buffer)
        while end - at >= 2:
            size, shift, start = 0, 0, at + 1
            while start < end and shift < 28:
                byte = buffer[start]
                start += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            else:
                break
            if start + size > end:
                break
            yield buffer[at], start, start + size
            at = start + size
        del buffer[:at]

    def body(self, start: int, stop: int) -> bytes:
        """The bytes of a packet while `packets` stands at it."""
        return bytes(self._buffer[start:stop])


class Packets:
    """Frames, encoded: the n-th one of the run. In the open loop each carries its number as its id."""

    def __init__(self, spec: Spec) -> None:
        static = encode_properties([(Property.CONTENT_TYPE, spec.content_type)] if spec.content_type else [])
        payloads = [Path(path).read_bytes() for path in spec.payloads]
        self._qos = spec.qos
        self._numbered = spec.rate is not None
        self._static = static
        self._cases = [
            (topic, payloads[(index + turn) % len(payloads)])
            for turn in range(len(payloads))
            for index, topic in enumerate(spec.topics)
        ]
        self._ready = [self._encode(topic, payload, static) for topic, payload in self._cases]

    def _encode(self, topic: str, payload: bytes, properties: bytes) -> tuple[bytes, int]:
        head = encode_publish_head(topic, len(payload), qos=self._qos, properties=properties)
        at = head.index(topic.encode()) + len(topic.encode())
        return head + payload, at

    def __call__(self, number: int) -> bytes:
        """The packet of a frame."""
        case = number % len(self._ready)
        if self._numbered:
            properties = self._static + encode_properties([(Property.USER, ("id", f"f{number}"))])
            packet, at = self._encode(*self._cases[case], properties)
        else:
            packet, at = self._ready[case]
        if self._qos:
            identifier = number % 60_000 + 1
            return packet[:at] + identifier.to_bytes(2, "big") + packet[at + 2 :]
        return packet


class Load:
    """One run of the load."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._link = Connection(spec.port, spec.results, f"load-{time.monotonic_ns()}")
        self._packets = Packets(spec)
        self._sent = self._results = self._taken = self._stalls = 0
        self._due: dict[int, float] = {}
        self._latencies_ms: list[float] = []
        self._measuring = False

    def run(self) -> Measured:
        """Warm up, measure."""
        spec = self._spec
        advance = self._closed if spec.rate is None else self._open
        began = time.monotonic()
        advance(began, began + spec.warmup_s)
        before, sent, results, stalls = self._cpu(), self._sent, self._results, self._stalls
        started = time.monotonic()
        self._measuring = True
        advance(started, started + spec.seconds)
        ended = time.monotonic()
        after = self._cpu()
        return Measured(
            seconds=ended - started,
            sent=self._sent - sent,
            results=self._results - results,
            stalls=self._stalls - stalls,
            cpu_s={role: after[role] - before[role] for role in after},
            latencies_ms=self._latencies_ms,
        )

    def _cpu(self) -> dict[str, float]:
        pids = {**self._spec.pids, "load": psutil.Process().pid}
        times = {role: psutil.Process(pid).cpu_times() for role, pid in pids.items()}
        taken = {role: each.user + each.system for role, each in times.items()}
        whole = psutil.cpu_times()
        busy = sum(whole) - whole.idle - getattr(whole, "iowait", 0.0) - getattr(whole, "guest", 0.0)
        return {**taken, "others": busy - sum(taken.values())}

    def _closed(self, began: float, until: float) -> None:
        missing = self._spec.window if not self._sent else 0
        heard = began
        while (now := time.monotonic()) < until:
            if now - heard > _STALLED_S:
                missing, heard = self._spec.window, now
                self._stalls += 1
            if missing:
                self._send(missing)
            missing = self._take(min(until - now, 0.1))
            if missing:
                heard = now

    def _open(self, began: float, until: float) -> None:
        rate = self._spec.rate or 0.0
        first = self._sent
        while (now := time.monotonic()) < until:
            wanted = first + int((now - began) * rate) + 1
            if wanted > self._sent:
                for number in range(self._sent, wanted):
                    self._due[number] = began + (number - first) / rate
                self._send(wanted - self._sent)
            due_next = began + (self._sent - first) / rate
            self._take(max(0.0, min(due_next, until) - time.monotonic()))

    def _send(self, count: int) -> None:
        packets, sent = self._packets, self._sent
        data = memoryview(b"".join([packets(number) for number in range(sent, sent + count)]))
        self._sent += count
        while data:
            # Never stand blocked on sending while results wait to be read: the broker would stop reading too.
            readable, writable, _ = select.select([self._link.socket], [self._link.socket], [])
            if readable:
                self._results += self._count()
            if writable:
                data = data[self._link.socket.send(data[: 1 << 16]) :]

    def _take(self, timeout_s: float) -> int:
        """Take in results. Returns: how many have come since the last call, those read while sending among them."""
        before = self._taken
        if select.select([self._link.socket], [], [], timeout_s)[0]:
            self._results += self._count()
        self._taken = self._results
        return self._taken - before

    def _count(self) -> int:
        link, count = self._link, 0
        link.receive()
        now = time.monotonic()
        for first, start, stop in link.packets():
            if first & 0xF0 != PUBLISH:
                continue
            count += 1
            if self._due and (found := _NUMBER.search(link.body(start, stop))):
                due = self._due.pop(int(found[1]), None)
                if due is not None and self._measuring:
                    self._latencies_ms.append((now - due) * 1e3)
        return count


def main() -> None:
    """Read a Spec from standard input, write a Measured to standard output."""
    json.dump(asdict(Load(Spec(**json.load(sys.stdin))).run()), sys.stdout)


if __name__ == "__main__":
    main()
