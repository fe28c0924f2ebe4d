"""Bounded queue of frames waiting for a lane, fair across streams. Pure: no clock, no locks, no asyncio.

Rules:
- Bounded in age, count and bytes.
- A stream's items leave in order. While some of them are being processed, the stream is busy and yields no more.
- Streams take turns, so a noisy stream does not delay the others. Those that a topic names itself (`TOPIC#NAME`, see
  `StreamKey`) take one turn together, and have half of the queue at most: a sensor can invent names without end.
- Every shed item is returned with its reason.
- Durable items are not shed, since Receive Maximum bounds them at the broker; they only expire. Those above
  `max_qos1_frames_per_topic` are, because the broker holds back everybody's for them.
- `put`, `take` and `release` cost the same however many streams there are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

from hedgerow.config import QueueSection
from hedgerow.pipeline.intake.largest import Largest
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


@dataclass(slots=True, eq=False)
class _Namer:
    """A topic that names its streams: one of them is in the ring, those behind it are listed here.

    Attributes:
        sheddable: its streams with items that may be shed.
    """

    streams: int = 0
    count: int = 0
    bytes: int = 0
    in_ring: bool = False
    behind: OrderedDict[str, None] = field(default_factory=OrderedDict)
    sheddable: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Stream(Generic[T]):
    """A stream.

    Attributes:
        sheddable: number of its items that may be shed.
    """

    name: str
    items: deque[T]
    namer: _Namer | None = None
    bytes: int = 0
    sheddable: int = 0
    busy: bool = False
    listed: bool = False


_Holder: TypeAlias = _Stream[T] | _Namer
"""What has a share of the queue: a stream, or a topic that names its streams."""


def _frames(holder: _Holder[T]) -> int:
    """Return the items of a holder; 0 if none may be shed."""
    if not holder.sheddable:
        return 0
    return holder.count if isinstance(holder, _Namer) else len(holder.items)


def _bytes(holder: _Holder[T]) -> int:
    """Return the payload bytes of a holder; 0 if none may be shed."""
    return holder.bytes if holder.sheddable else 0


class FrameQueue(Generic[T]):
    """Queue of frames, by stream.

    Args:
        limits: the limits, and the policy for a full stream.
    """

    def __init__(self, limits: QueueSection) -> None:
        self.limits = limits
        self._streams: dict[str, _Stream[T]] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # the ring
        self._namers: dict[str, _Namer] = {}  # by topic
        self._behind = 0  # streams behind those in the ring
        self._count = 0
        self._bytes = 0
        self._largest: dict[
            Callable[[_Holder[T]], int], Largest[_Holder[T]]
        ] = {}  # by measure; only while frames are shed

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
        return len(self._ready) + self._behind

    def largest(self) -> tuple[T | None, int]:
        """Return an item of the stream, or of the topic that names its streams, with the most items, and how many; for rare use."""
        waiting = [stream for stream in self._streams.values() if stream.items]
        most = max(waiting, key=self._held, default=None)
        return (None, 0) if most is None else (most.items[0], self._held(most))

    def holds(self, stream: str) -> bool:
        """Whether items of a stream are queued or being processed."""
        return stream in self._streams

    def runs(self, stream: str) -> bool:
        """Whether an item of a stream is being processed."""
        found = self._streams.get(stream)
        return found is not None and found.busy

    def put(self, item: T) -> list[Shed[T]]:
        """Add an item; return what was shed to make room, possibly the item itself."""
        shed: list[Shed[T]] = []
        stream = self._streams.get(item.stream)
        if stream is None:
            stream = self._streams[item.stream] = self._new_stream(item.stream)
        limits = self.limits
        if not item.durable:
            if item.size > limits.max_bytes or self._has_its_half(stream, item):
                self._remove_if_empty(stream)
                return [(item, DropReason.QUEUE_FULL)]
            if len(stream.items) >= limits.max_frames_per_stream:
                if limits.policy == "fifo" or (oldest := self._shed_oldest(stream)) is None:
                    return [(item, DropReason.QUEUE_FULL)]
                shed.append((oldest, DropReason.SUPERSEDED))
            while self._count >= limits.max_frames or self._bytes + item.size > limits.max_bytes:
                victim = self._shed_from_largest(item, stream)
                if victim is None:
                    self._remove_if_empty(stream)
                    return [*shed, (item, DropReason.QUEUE_FULL)]
                shed.append((victim, DropReason.QUEUE_FULL))
        elif limits.max_qos1_frames_per_topic is not None and self._held(stream) >= limits.max_qos1_frames_per_topic:
            if limits.policy == "fifo" or not stream.items:
                self._remove_if_empty(stream)
                return [(item, DropReason.QUEUE_FULL)]
            oldest = stream.items.popleft()
            self._account(stream, -1, -oldest.size, 0 if oldest.durable else -1)
            shed.append((oldest, DropReason.SUPERSEDED))
        stream.items.append(item)
        self._account(stream, 1, item.size, 0 if item.durable else 1)
        if not stream.listed and not stream.busy:
            self._list(stream)
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
        ready, streams = self._ready, self._streams
        more: list[_Stream[T]] = []  # taken from, with more items
        while ready and len(taken) < limit:
            name, _ = ready.popitem(last=False)
            stream = streams[name]
            items = stream.items
            stream.listed = False
            item: T | None = None
            while items:
                item = items.popleft()
                self._account(stream, -1, -item.size, 0 if item.durable else -1)
                if item.expires_at >= now + needs(len(taken) + 1):
                    break
                if taken and item.expires_at >= now + needs(1):  # in time if processed in the next list
                    items.appendleft(item)
                    self._account(stream, 1, item.size, 0 if item.durable else 1)
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
                ready[name] = None
                ready.move_to_end(name, last=False)
                break
            self._next_of(stream.namer)
            if items:
                self._list(stream)
                more.append(stream)
            elif not stream.busy:
                self._forget(stream)
        for stream in more:  # they are busy until released
            self._unlist(stream)
        if self._largest and self._count <= self.limits.max_frames // 2 and self._bytes <= self.limits.max_bytes // 2:
            self._largest.clear()
        return taken, expired

    def release(self, streams: Iterable[str]) -> None:
        """Mark streams as no longer busy, after the items taken from them have been processed."""
        for name in streams:
            stream = self._streams.get(name)
            if stream is None or not stream.busy:
                continue
            stream.busy = False
            if stream.items:
                self._list(stream)
            else:
                self._forget(stream)

    def expire(self, now: float) -> list[Shed[T]]:
        """Remove and return all expired items, for periods when `take` is not called."""
        expired: list[Shed[T]] = []
        for stream in list(self._streams.values()):
            fresh = deque(item for item in stream.items if item.expires_at >= now)
            if len(fresh) == len(stream.items):
                continue
            expired.extend((item, DropReason.EXPIRED) for item in stream.items if item.expires_at < now)
            size = sum(item.size for item in fresh)
            sheddable = sum(not item.durable for item in fresh)
            count = len(fresh) - len(stream.items)
            stream.items = fresh
            self._account(stream, count, size - stream.bytes, sheddable - stream.sheddable)
            self._remove_if_empty(stream)
        return expired

    def drain(self) -> Iterator[T]:
        """Remove and yield all items, in no particular order across streams."""
        for stream in self._streams.values():
            yield from stream.items
            self._account(stream, -len(stream.items), -stream.bytes, -stream.sheddable)
            stream.items.clear()
            stream.listed = False
        self._ready.clear()
        for namer in self._namers.values():
            namer.behind.clear()
            namer.in_ring = False
        self._behind = 0
        for stream in list(self._streams.values()):
            if not stream.busy:
                self._forget(stream)

    def _new_stream(self, name: str) -> _Stream[T]:
        topic, mark, _ = name.partition("#")
        if not mark:
            return _Stream(name, deque())
        namer = self._namers.setdefault(topic, _Namer())
        namer.streams += 1
        return _Stream(name, deque(), namer)

    def _forget(self, stream: _Stream[T]) -> None:
        del self._streams[stream.name]
        if stream.namer is not None:
            stream.namer.streams -= 1
            if not stream.namer.streams:
                del self._namers[stream.name.partition("#")[0]]

    def _account(self, stream: _Stream[T], count: int, size: int, sheddable: int) -> None:
        self._count += count
        self._bytes += size
        stream.bytes += size
        stream.sheddable += sheddable
        namer = stream.namer
        if namer is not None:
            namer.count += count
            namer.bytes += size
            if stream.sheddable:
                namer.sheddable[stream.name] = None
            else:
                namer.sheddable.pop(stream.name, None)
        if self._largest and count > 0:
            for largest in self._largest.values():
                largest.grown(namer or stream)

    @staticmethod
    def _held(stream: _Stream[T]) -> int:
        """Return the items of a stream, or of all streams of its topic if that names them."""
        return len(stream.items) if stream.namer is None else stream.namer.count

    def _has_its_half(self, stream: _Stream[T], item: T) -> bool:
        namer, limits = stream.namer, self.limits
        if namer is None or not namer.count:
            return False
        return namer.count >= limits.max_frames // 2 or namer.bytes + item.size > limits.max_bytes // 2

    def _list(self, stream: _Stream[T]) -> None:
        """Let a stream wait for its turn: in the ring, or behind another one of its topic that is there."""
        stream.listed = True
        namer = stream.namer
        if namer is None:
            self._ready[stream.name] = None
        elif namer.in_ring:
            namer.behind[stream.name] = None
            self._behind += 1
        else:
            namer.in_ring = True
            self._ready[stream.name] = None

    def _unlist(self, stream: _Stream[T]) -> None:
        """Take a stream out of the ring, or from behind it, if it is there."""
        stream.listed = False
        if stream.namer is not None and stream.name in stream.namer.behind:
            del stream.namer.behind[stream.name]
            self._behind -= 1
        elif stream.name in self._ready:
            del self._ready[stream.name]
            self._next_of(stream.namer)

    def _next_of(self, namer: _Namer | None) -> None:
        """Put the next stream of a topic into the ring, after one has left it."""
        if namer is not None:
            namer.in_ring = bool(namer.behind)
            if namer.behind:
                name, _ = namer.behind.popitem(last=False)
                self._behind -= 1
                self._ready[name] = None

    def _remove_if_empty(self, stream: _Stream[T]) -> None:
        if stream.items or stream.busy:
            return
        self._unlist(stream)
        self._forget(stream)

    def _shed_oldest(self, stream: _Stream[T]) -> T | None:
        if not stream.sheddable:
            return None
        position = next(position for position, item in enumerate(stream.items) if not item.durable)
        item = stream.items[position]
        del stream.items[position]
        self._account(stream, -1, -item.size, -1)
        return item

    def _shed_from_largest(self, item: T, stream: _Stream[T]) -> T | None:
        """Shed the oldest item of the stream, or topic, that would hold most, the new item included.

        Returns None if that is the new item's own and its stream has nothing to shed, or if no stream has.
        """
        own = stream.namer or stream
        if self._bytes + item.size > self.limits.max_bytes:
            measure, own_holds = _bytes, own.bytes + item.size
        else:
            measure, own_holds = _frames, self._held(stream) + 1
        if measure not in self._largest:
            holders = (each.namer or each for each in self._streams.values())
            self._largest[measure] = Largest(holders, measure)
        other = self._largest[measure].first(own)
        if other is None or measure(other) < own_holds:
            return self._shed_oldest(stream)  # `put` adds to it, or removes it
        victim_of = self._streams[next(iter(other.sheddable))] if isinstance(other, _Namer) else other
        victim = self._shed_oldest(victim_of)
        self._remove_if_empty(victim_of)
        return victim
