"""Bounded queue of frames waiting for a lane, fair across streams. Pure: no clock, no locks, no asyncio.

Rules:
- Bounded in age, count and bytes.
- A stream's items leave in order. While some of them are being processed, the stream is busy and yields no more.
- Streams take turns, so a noisy stream does not delay the others. Those that a topic names itself (`TOPIC#NAME`, see
  `StreamKey`) take one turn together, and have half of the queue at most: a sensor can invent names without end.
- Every shed item is returned with its reason.
- Durable items are not shed, since Receive Maximum bounds them at the broker; they only expire. Those above
  `max_qos1_frames_per_topic` are, because the broker holds back everybody's for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hedgerow.config import QueueSection
from hedgerow.telemetry.tally import DropReason


class QueueItem(Protocol):
    """Item of a queue."""

    @property
    def stream(self) -> str:
        """Stream of the item."""
        ...

    @property
    def size(self) -> int:
        """Payload bytes."""
        ...

    @property
    def expires_at(self) -> float:
        """Monotonic seconds after which the item is useless."""
        ...

    @property
    def durable(self) -> bool:
        """Whether the item is not to be shed when the queue is full."""
        ...


T = TypeVar("T", bound=QueueItem)


def _no_time(items: int) -> float:  # noqa: ARG001 - has the signature of `needs`
    return 0.0


Shed = tuple[T, DropReason]


@dataclass(slots=True)
class _Namer:
    """A topic that names its streams: one of them is in the ring, those behind it are listed here."""

    streams: int = 0
    count: int = 0
    bytes: int = 0
    in_ring: bool = False
    behind: deque[str] = field(default_factory=deque)


@dataclass(slots=True)
class _Stream(Generic[T]):
    items: deque[T]
    namer: _Namer | None = None
    bytes: int = 0
    busy: bool = False
    listed: bool = False


class FrameQueue(Generic[T]):
    """Queue of frames, by stream.

    Args:
        limits: the limits, and the policy for a full stream.
    """

    def __init__(self, limits: QueueSection) -> None:
        self.limits = limits
        self._streams: dict[str, _Stream[T]] = {}
        self._ready: deque[str] = deque()  # the ring
        self._namers: dict[str, _Namer] = {}  # by topic
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        """Payload bytes in the queue."""
        return self._bytes

    @property
    def has_ready(self) -> bool:
        """Whether an item can be taken now: it is in a stream that is not busy."""
        return bool(self._ready)

    @property
    def ready(self) -> int:
        """Number of streams from which an item can be taken now."""
        return len(self._ready) + sum(len(namer.behind) for namer in self._namers.values())

    def largest(self) -> tuple[T | None, int]:
        """Return an item of the stream, or of the topic that names its streams, with the most items, and how many; for rare use."""
        waiting = [stream for stream in self._streams.values() if stream.items]
        most = max(waiting, key=self._held, default=None)
        return (None, 0) if most is None else (most.items[0], self._held(most))

    def holds(self, stream: str) -> bool:
        """Whether items of a stream are queued or being processed."""
        return stream in self._streams

    def put(self, item: T) -> list[Shed[T]]:
        """Add an item; return what was shed to make room, possibly the item itself."""
        shed: list[Shed[T]] = []
        stream = self._streams.get(item.stream)
        if stream is None:
            stream = self._streams[item.stream] = self._new_stream(item.stream)
        limits = self.limits
        if not item.durable:
            if item.size > limits.max_bytes or self._has_its_half(stream, item):
                self._remove_if_empty(item.stream, stream)
                return [(item, DropReason.QUEUE_FULL)]
            if len(stream.items) >= limits.max_frames_per_stream:
                if limits.policy == "fifo" or (oldest := self._shed_oldest(stream)) is None:
                    return [(item, DropReason.QUEUE_FULL)]
                shed.append((oldest, DropReason.SUPERSEDED))
            while self._count >= limits.max_frames or self._bytes + item.size > limits.max_bytes:
                victim = self._shed_from_largest(item, stream)
                if victim is None:
                    self._remove_if_empty(item.stream, stream)
                    return [*shed, (item, DropReason.QUEUE_FULL)]
                shed.append((victim, DropReason.QUEUE_FULL))
        elif limits.max_qos1_frames_per_topic is not None and self._held(stream) >= limits.max_qos1_frames_per_topic:
            if limits.policy == "fifo" or not stream.items:
                self._remove_if_empty(item.stream, stream)
                return [(item, DropReason.QUEUE_FULL)]
            oldest = stream.items.popleft()
            self._account(stream, -1, -oldest.size)
            shed.append((oldest, DropReason.SUPERSEDED))
        stream.items.append(item)
        self._account(stream, 1, item.size)
        if not stream.listed and not stream.busy:
            self._list(item.stream, stream)
        return shed

    def take(self, limit: int, now: float, needs: Callable[[int], float] = _no_time) -> tuple[list[T], list[Shed[T]]]:
        """Take items, one per stream, and mark their streams busy.

        Args:
            limit: most items to take.
            now: monotonic seconds.
            needs: returns the seconds that processing this many items together takes. No more items are taken than can
                all finish before they expire; an item that would expire even if processed alone is shed as late.
        Returns: the items, and those that have expired or are shed as late.
        """
        taken: list[T] = []
        expired: list[Shed[T]] = []
        full = False
        named: dict[int, _Namer] = {}  # with a stream that was taken from and has more
        ready, streams = self._ready, self._streams
        while ready and len(taken) < limit:
            name = ready.popleft()
            stream = streams[name]
            items = stream.items
            stream.listed = False
            item: T | None = None
            while items:
                item = items.popleft()
                self._account(stream, -1, -item.size)
                if item.expires_at >= now + needs(len(taken) + 1):
                    break
                if taken and item.expires_at >= now + needs(1):  # in time if processed in the next list
                    items.appendleft(item)
                    self._account(stream, 1, item.size)
                    full = True
                else:
                    reason = DropReason.EXPIRED if item.expires_at < now else DropReason.LATE
                    expired.append((item, reason))
                item = None
                if full:
                    break
            if item is not None:
                taken.append(item)
                stream.busy = True
            if full:
                stream.listed = True
                ready.appendleft(name)
                break
            self._next_of(stream.namer)
            if items:
                self._list(name, stream)
                if stream.busy and stream.namer is not None:
                    named[id(stream.namer)] = stream.namer
            elif not stream.busy:
                self._forget(name, stream)
        # Streams taken from are busy until released, and must not be in the ring or behind it meanwhile.
        for namer in named.values():
            namer.behind = deque(name for name in namer.behind if not streams[name].busy)
        for _ in range(len(ready)):
            name = ready.popleft()
            if streams[name].busy:
                self._next_of(streams[name].namer)
            else:
                ready.append(name)
        return taken, expired

    def release(self, streams: Iterable[str]) -> None:
        """Mark streams as no longer busy, after the items taken from them have been processed."""
        for name in streams:
            stream = self._streams.get(name)
            if stream is None or not stream.busy:
                continue
            stream.busy = False
            if stream.items:
                self._list(name, stream)
            else:
                self._forget(name, stream)

    def expire(self, now: float) -> list[Shed[T]]:
        """Remove and return all expired items, for periods when `take` is not called."""
        expired: list[Shed[T]] = []
        for name, stream in list(self._streams.items()):
            fresh = deque(item for item in stream.items if item.expires_at >= now)
            if len(fresh) == len(stream.items):
                continue
            expired.extend((item, DropReason.EXPIRED) for item in stream.items if item.expires_at < now)
            size = sum(item.size for item in fresh)
            self._account(stream, len(fresh) - len(stream.items), size - stream.bytes)
            stream.items = fresh
            self._remove_if_empty(name, stream)
        return expired

    def drain(self) -> Iterator[T]:
        """Remove and yield all items, in no particular order across streams."""
        for stream in self._streams.values():
            yield from stream.items
            self._account(stream, -len(stream.items), -stream.bytes)
            stream.items.clear()
            stream.listed = False
        self._ready.clear()
        for namer in self._namers.values():
            namer.behind.clear()
            namer.in_ring = False
        for name, stream in list(self._streams.items()):
            if not stream.busy:
                self._forget(name, stream)

    def _new_stream(self, name: str) -> _Stream[T]:
        topic, mark, _ = name.partition("#")
        if not mark:
            return _Stream(deque())
        namer = self._namers.setdefault(topic, _Namer())
        namer.streams += 1
        return _Stream(deque(), namer)

    def _forget(self, name: str, stream: _Stream[T]) -> None:
        del self._streams[name]
        if stream.namer is not None:
            stream.namer.streams -= 1
            if not stream.namer.streams:
                del self._namers[name.partition("#")[0]]

    def _account(self, stream: _Stream[T], count: int, size: int) -> None:
        self._count += count
        self._bytes += size
        stream.bytes += size
        if stream.namer is not None:
            stream.namer.count += count
            stream.namer.bytes += size

    @staticmethod
    def _held(stream: _Stream[T]) -> int:
        """Return the items of a stream, or of all streams of its topic if that names them."""
        return len(stream.items) if stream.namer is None else stream.namer.count

    def _has_its_half(self, stream: _Stream[T], item: T) -> bool:
        namer, limits = stream.namer, self.limits
        if namer is None or not namer.count:
            return False
        return namer.count >= limits.max_frames // 2 or namer.bytes + item.size > limits.max_bytes // 2

    def _list(self, name: str, stream: _Stream[T]) -> None:
        """Let a stream wait for its turn: in the ring, or behind another one of its topic that is there."""
        stream.listed = True
        if stream.namer is None:
            self._ready.append(name)
        elif stream.namer.in_ring:
            stream.namer.behind.append(name)
        else:
            stream.namer.in_ring = True
            self._ready.append(name)

    def _next_of(self, namer: _Namer | None) -> None:
        """Put the next stream of a topic into the ring, after one has left it."""
        if namer is not None:
            namer.in_ring = bool(namer.behind)
            if namer.behind:
                self._ready.append(namer.behind.popleft())

    def _remove_if_empty(self, name: str, stream: _Stream[T]) -> None:
        if stream.items or stream.busy:
            return
        if stream.listed and stream.namer is not None and name in stream.namer.behind:
            stream.namer.behind.remove(name)
        elif stream.listed:
            self._ready.remove(name)
            self._next_of(stream.namer)
        self._forget(name, stream)

    def _shed_oldest(self, stream: _Stream[T]) -> T | None:
        for position, item in enumerate(stream.items):
            if not item.durable:
                del stream.items[position]
                self._account(stream, -1, -item.size)
                return item
        return None

    def _shed_from_largest(self, item: T, stream: _Stream[T]) -> T | None:
        """Shed the oldest item of the stream that would hold most, the new item included.

        Returns None if that stream is the new item's own and has nothing to shed, or if no stream has.
        """
        by_bytes = self._bytes + item.size > self.limits.max_bytes

        def weight(entry: tuple[str, _Stream[T]]) -> tuple[int, bool]:
            namer = entry[1].namer
            if namer is not None:
                held = namer.bytes if by_bytes else namer.count
            else:
                held = entry[1].bytes if by_bytes else len(entry[1].items)
            if entry[1] is not stream:
                return held, True
            return held + (item.size if by_bytes else 1), False

        for name, candidate in self._by_size(weight):
            victim = self._shed_oldest(candidate)
            if victim is not None:
                if candidate is not stream:  # `put` adds to that one, or removes it
                    self._remove_if_empty(name, candidate)
                return victim
            if candidate is stream:
                break
        return None

    def _by_size(
        self, weight: Callable[[tuple[str, _Stream[T]]], tuple[int, bool]]
    ) -> Iterator[tuple[str, _Stream[T]]]:
        yield max(self._streams.items(), key=weight)  # nearly always enough; sorting thousands is slow
        yield from sorted(self._streams.items(), key=weight, reverse=True)
