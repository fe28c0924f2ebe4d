"""The load: a process of its own that publishes ready-made packets and counts the results that come back.

    python -m benchmarks.harness.load < spec.json > measured.json

Rules:
- One raw socket, packets encoded beforehand: a frame costs about a microsecond here, so the load is never the limit.
- Closed loop (`rate` is null): a fixed number of frames is under way, and each result lets the next frame go. This
  saturates what is measured without starving it of the cores it shares with the load and the broker.
- Open loop (`rate` is set): frames go when they are due, whatever comes back, and latency counts from when a frame was
  due: a stall is charged to every frame that it delays. Frames that were due within the measured time count however
  late their result comes; the load waits for them until nothing has come for a while.
- Something is always measured: the measured time begins when a first result has come, and goes on until one more has,
  however busy the machine is. If none comes with patience, `results` is 0.
- Processor time of all processes is read at both ends of the measured time, by this process, which knows them.
"""

from __future__ import annotations

import json
import math
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.processor import Processor
from hedgerow.bus.packets import PUBLISH, encode_connect, encode_publish_head, encode_subscribe
from hedgerow.bus.properties import Property, decode_varint, encode_properties

_NUMBER: Final = re.compile(rb'id(?:": ?"|\x00.)f(\d+)', re.DOTALL)
"""A frame's number in a result: in its JSON, or in its user property `id`."""
PATIENCE_S: Final = 60.0
"""Wait for this long, on top of the time asked for, if nothing could be measured within it."""


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
        timed: take latencies in the closed loop too: from when a frame is sent.
        warmup_s, seconds: time before measuring, and measured.
        stalled_s: without a result for this long the frames under way count as lost; the closed loop sends as many anew.
        frames_a_result: how many frames a result answers; for contenders that answer only now and then.
        keep: hand back the payloads of the results as well.
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
    timed: bool = False
    warmup_s: float = 1.0
    seconds: float = 3.0
    stalled_s: float = 1.0
    frames_a_result: int = 1
    keep: bool = False
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it, within the measured time.

    Attributes:
        seconds: how long it really was.
        sent, results: frames out, results in.
        cpu_s: processor time by role, user and system together; the load's own as `load`.
        stalls: times that no result came for `stalled_s`.
        latencies_ms: from when a frame was due, within the measured time, to when its result came; open loop, or `timed`.
        due_s: when each of those was due, in seconds of the system's monotonic clock.
        lost: frames of the whole run whose result never came; open loop, or `timed`.
        kept: payloads of the results, if asked for.
    """

    seconds: float
    sent: int
    results: int
    cpu_s: dict[str, float]
    stalls: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    due_s: list[float] = field(default_factory=list)
    lost: int = 0
    kept: list[str] = field(default_factory=list)

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
    """Frames, encoded: the n-th one of the run. Where latencies are taken, each carries its number as its id."""

    def __init__(self, spec: Spec) -> None:
        static = encode_properties([(Property.CONTENT_TYPE, spec.content_type)] if spec.content_type else [])
        payloads = [Path(path).read_bytes() for path in spec.payloads]
        self._qos = spec.qos
        self._numbered = spec.timed or spec.rate is not None
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
        self._missing = spec.window  # closed loop: frames that may go
        self._heard = time.monotonic()
        self._due: dict[int, float] = {}
        self._latencies_ms: list[float] = []
        self._due_s: list[float] = []
        self._kept: list[str] = []
        self._since = math.inf

    def run(self) -> Measured:
        """Warm up, measure."""
        spec = self._spec
        advance = self._closed if spec.rate is None else self._open
        processor = Processor(spec.pids)
        self._until_something(advance, spec.warmup_s)
        before, sent, results, stalls = processor.seconds(), self._sent, self._results, self._stalls
        self._since = time.monotonic()
        self._kept.clear()
        self._until_something(advance, spec.seconds)
        ended = time.monotonic()
        cpu_s = processor.since(before)
        measured = Measured(
            seconds=ended - self._since,
            sent=self._sent - sent,
            results=self._results - results,
            stalls=self._stalls - stalls,
            cpu_s=cpu_s,
            latencies_ms=self._latencies_ms,
            due_s=self._due_s,
            kept=self._kept.copy(),
        )
        self._drain()
        return replace(measured, lost=len(self._due))

    def _until_something(self, advance: Callable[[float, float], None], seconds: float) -> None:
        """Go on for so long, and then until a result has come since the beginning."""
        results = self._results
        began = time.monotonic()
        advance(began, began + seconds)
        while seconds and self._results == results and time.monotonic() < began + seconds + PATIENCE_S:
            now = time.monotonic()
            advance(now, now + min(seconds, 1.0))

    def _drain(self) -> None:
        """Take in the results of frames that are still under way."""
        heard = time.monotonic()
        while self._due and (now := time.monotonic()) < heard + self._spec.stalled_s:
            if self._take(0.1):
                heard = now

    def _closed(self, _: float, until: float) -> None:
        while (now := time.monotonic()) < until:
            if now - self._heard > self._spec.stalled_s:
                self._missing, self._heard = self._spec.window, now
                self._stalls += 1
            if self._missing:
                if self._spec.timed:
                    self._due |= dict.fromkeys(range(self._sent, self._sent + self._missing), now)
                self._send(self._missing)
            self._missing = self._take(min(until - now, 0.1))
            if self._missing:
                self._heard = now

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
            count += self._spec.frames_a_result
            if self._due and (found := _NUMBER.search(link.body(start, stop))):
                due = self._due.pop(int(found[1]), None)
                if due is not None and due >= self._since:
                    self._latencies_ms.append((now - due) * 1e3)
                    self._due_s.append(due)
            if self._spec.keep:
                self._kept.append(_payload(link.body(start, stop)).decode())
        return count


def _payload(body: bytes) -> bytes:
    """The payload of a PUBLISH at QoS 0 (§3.3)."""
    properties = 2 + int.from_bytes(body[:2], "big")
    size, start = decode_varint(body, properties)
    return body[start + size :]


def main() -> None:
    """Read a Spec from standard input, write a Measured to standard output."""
    json.dump(asdict(Load(Spec(**json.load(sys.stdin))).run()), sys.stdout)


if __name__ == "__main__":
    main()
