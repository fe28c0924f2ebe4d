"""The load: a process that publishes pre-encoded packets and counts results.

    python -m benchmarks.harness.load < spec.json > measured.json

Rules:
- One raw socket, packets encoded beforehand: a frame costs about a microsecond here, so the load is never the limit.
- Closed loop (`rate` is null): a fixed number of frames is in flight, and each result releases the next frame. This
  saturates the contender without starving it of the cores it shares with the load and the broker.
- Open loop (`rate` is set): frames are sent when due, and latency counts from then, so a stall is charged to every
  frame it delays. Frames due within the measured time count however late their result arrives; the load waits for them
  until no result has arrived for `stalled_s`.
- The measured time begins after the first result and lasts until at least one more has arrived, however busy the
  machine is. If none arrives within PATIENCE_S, `results` is 0.
- This process reads the CPU time of all processes at both ends of the measured time.
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

from benchmarks.harness.cpu_times import CpuTimes
from hedgerow.bus.packets import PUBLISH, encode_connect, encode_publish_head, encode_subscribe
from hedgerow.bus.properties import Property, decode_varint, encode_properties

_NUMBER: Final = re.compile(rb'id(?:": ?"|\x00.)f(\d+)', re.DOTALL)
"""A frame's number in a result: in its JSON, or in its user property `id`."""
PATIENCE_S: Final = 60.0
"""Extra time to wait if no result arrives within the measured time."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Parameters of a load.

    Attributes:
        port: of the broker on 127.0.0.1.
        topics: one per stream, used in turn.
        payloads: files with payloads, used in turn.
        content_type: of every frame; empty: none.
        results: topic filter of the results.
        qos: of frames.
        window: closed loop: frames in flight.
        rate: open loop: frames per second, all streams together.
        timed: measure latencies in the closed loop too, from when a frame is sent.
        warmup_s, seconds: time before measuring, and measured.
        stalled_s: if no result arrives for this long, frames in flight count as lost; the closed loop replaces them.
        frames_a_result: frames per result, for contenders that reply only to each n-th frame.
        keep: return the payloads of the results.
        pids: processes whose CPU time to measure, by role.
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
    """Measurements of a load, within the measured time.

    Attributes:
        seconds: actual duration.
        sent, results: frames sent, results received.
        cpu_s: CPU time by role, user and system together; the load's own as `load`.
        stalls: how often no result arrived for `stalled_s`.
        latencies_ms: from when a frame was due until its result arrived; open loop, or `timed`.
        due_s: due time of each of those, by the system's monotonic clock.
        lost: frames of the whole run without a result; open loop, or `timed`.
        payloads: of the results, if `keep` is set.
    """

    seconds: float
    sent: int
    results: int
    cpu_s: dict[str, float]
    stalls: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    due_s: list[float] = field(default_factory=list)
    lost: int = 0
    payloads: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Results per second."""
        return self.results / self.seconds


class Connection:
    """A raw MQTT 5 connection with one subscription."""

    def __init__(self, port: int, results: str, client_id: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(encode_connect(client_id=client_id, clean_start=True, keepalive_s=0))
        self.socket.sendall(encode_subscribe(1, {results: 0}))
        self._buffer = bytearray()
        while not any(first & 0xF0 == 0x90 for first, _, _ in self.packets()):
            self.receive()

    def receive(self) -> None:
        """Read available data, or wait for some. Raises: ConnectionError: the broker closed the connection."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("The broker closed the connection")
        self._buffer += data

    def packets(self) -> Iterator[tuple[int, int, int]]:
        """Yield every complete packet: its first byte, and start and end of its body, for `body`."""
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
        """Return the body of the packet that `packets` yielded last."""
        return bytes(self._buffer[start:stop])


class Packets:
    """Encodes the n-th frame of a run. If latencies are measured, its id is its number."""

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
        """Return the packet of a frame."""
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
        self._sent = self._results = self._counted = self._stalls = 0
        self._missing = spec.window  # closed loop: frames to send
        self._received_at = time.monotonic()
        self._due: dict[int, float] = {}
        self._latencies_ms: list[float] = []
        self._due_s: list[float] = []
        self._payloads: list[str] = []
        self._since = math.inf

    def run(self) -> Measured:
        """Warm up and measure."""
        spec = self._spec
        advance = self._closed if spec.rate is None else self._open
        cpu_times = CpuTimes(spec.pids)
        self._until_a_result(advance, spec.warmup_s)
        before, sent, results, stalls = cpu_times.seconds(), self._sent, self._results, self._stalls
        self._since = time.monotonic()
        self._payloads.clear()
        self._until_a_result(advance, spec.seconds)
        ended = time.monotonic()
        cpu_s = cpu_times.since(before)
        measured = Measured(
            seconds=ended - self._since,
            sent=self._sent - sent,
            results=self._results - results,
            stalls=self._stalls - stalls,
            cpu_s=cpu_s,
            latencies_ms=self._latencies_ms,
            due_s=self._due_s,
            payloads=self._payloads.copy(),
        )
        self._drain()
        return replace(measured, lost=len(self._due))

    def _until_a_result(self, advance: Callable[[float, float], None], seconds: float) -> None:
        """Run for this long, and then until at least one result has arrived."""
        results = self._results
        began = time.monotonic()
        advance(began, began + seconds)
        while seconds and self._results == results and time.monotonic() < began + seconds + PATIENCE_S:
            now = time.monotonic()
            advance(now, now + min(seconds, 1.0))

    def _drain(self) -> None:
        """Receive the results of frames still in flight."""
        received_at = time.monotonic()
        while self._due and (now := time.monotonic()) < received_at + self._spec.stalled_s:
            if self._receive(0.1):
                received_at = now

    def _closed(self, _: float, until: float) -> None:
        while (now := time.monotonic()) < until:
            if now - self._received_at > self._spec.stalled_s:
                self._missing, self._received_at = self._spec.window, now
                self._stalls += 1
            if self._missing:
                if self._spec.timed:
                    self._due |= dict.fromkeys(range(self._sent, self._sent + self._missing), now)
                self._send(self._missing)
            self._missing = self._receive(min(until - now, 0.1))
            if self._missing:
                self._received_at = now

    def _open(self, began: float, until: float) -> None:
        rate = self._spec.rate or 0.0
        first = self._sent
        while (now := time.monotonic()) < until:
            due = first + int((now - began) * rate) + 1
            if due > self._sent:
                for number in range(self._sent, due):
                    self._due[number] = began + (number - first) / rate
                self._send(due - self._sent)
            due_next = began + (self._sent - first) / rate
            self._receive(max(0.0, min(due_next, until) - time.monotonic()))

    def _send(self, count: int) -> None:
        packets, sent = self._packets, self._sent
        data = memoryview(b"".join([packets(number) for number in range(sent, sent + count)]))
        self._sent += count
        while data:
            # Read results while sending: if neither side reads, both block.
            readable, writable, _ = select.select([self._link.socket], [self._link.socket], [])
            if readable:
                self._results += self._count()
            if writable:
                data = data[self._link.socket.send(data[: 1 << 16]) :]

    def _receive(self, timeout_s: float) -> int:
        """Receive results. Returns: how many arrived since the last call, including those read while sending."""
        before = self._counted
        if select.select([self._link.socket], [], [], timeout_s)[0]:
            self._results += self._count()
        self._counted = self._results
        return self._counted - before

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
                self._payloads.append(_payload(link.body(start, stop)).decode())
        return count


def _payload(body: bytes) -> bytes:
    """Return the payload of a PUBLISH at QoS 0 (§3.3)."""
    properties = 2 + int.from_bytes(body[:2], "big")
    size, start = decode_varint(body, properties)
    return body[start + size :]


def main() -> None:
    """Read a Spec from standard input, write a Measured to standard output."""
    json.dump(asdict(Load(Spec(**json.load(sys.stdin))).run()), sys.stdout)


if __name__ == "__main__":
    main()
