"""Bounded queue of frames waiting for a lane, fair across streams. Pure: no clock, no locks, no asyncio.

Rules:
- Bounded in age, count and bytes.
- A stream's items leave in order. While some of them are being processed, the stream is busy and yields no more.
- Streams take turns, so a noisy stream does not delay the others.
- Every shed item is returned with its reason.
- Durable items are never shed, since Receive Maximum bounds them at the broker; they can only expire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
        """Whether the item must not be shed when the queue is full."""
        ...


T = TypeVar("T", bound=QueueItem)


def _no_time(items: int) -> float:  # noqa: ARG001 - has the signature of `needs`
    return 0.0


Shed = tuple[T, DropReason]


@dataclass(slots=True)
class _Stream(Generic[T]):
    items: deque[T]
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
        self._ready: deque[str] = deque()
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
        return len(self._ready)

    def holds(self, stream: str) -> bool:
        """Whether items of a stream are queued or being processed."""
        return stream in self._streams

    def put(self, item: T) -> list[Shed[T]]:
        """Add an item; return what was shed to make room, possibly the item itself."""
        shed: list[Shed[T]] = []
        stream = self._streams.get(item.stream)
        if stream is None:
            stream = self._streams[item.stream] = _Stream(deque())
        limits = self.limits
        if not item.durable:
            if item.size > limits.max_bytes:
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
        stream.items.append(item)
        self._count += 1
        self._bytes += item.size
        stream.bytes += item.size
        if not stream.listed and not stream.busy:
            stream.listed = True
            self._ready.append(item.stream)
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
        while ready and len(taken) < limit and not full:
            name = ready.popleft()
            stream = streams[name]
            items = stream.items
            stream.listed = False
            item: T | None = None
            while items:
                item = items.popleft()
                self._count -= 1
                self._bytes -= item.size
                stream.bytes -= item.size
                if item.expires_at >= now + needs(len(taken) + 1):
                    break
                if taken and item.expires_at >= now + needs(1):  # in time if processed in the next list
                    items.appendleft(item)
                    self._count += 1
                    self._bytes += item.size
                    stream.bytes += item.size
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
            if items:
                stream.listed = True
                ready.appendleft(name) if full else ready.append(name)
            elif not stream.busy:
                del streams[name]
        # Streams taken from are busy until released, and must not be in the ring meanwhile.
        for _ in range(len(ready)):
            name = ready.popleft()
            if not streams[name].busy:
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
                stream.listed = True
                self._ready.append(name)
            else:
                del self._streams[name]

    def expire(self, now: float) -> list[Shed[T]]:
        """Remove and return all expired items, for periods when `take` is not called."""
        expired: list[Shed[T]] = []
        for name, stream in list(self._streams.items()):
            fresh = deque(item for item in stream.items if item.expires_at >= now)
            if len(fresh) == len(stream.items):
                continue
            expired.extend((item, DropReason.EXPIRED) for item in stream.items if item.expires_at < now)
            stream.items = fresh
            stream.bytes = sum(item.size for item in fresh)
            self._remove_if_empty(name, stream)
        for item, _ in expired:
            self._count -= 1
            self._bytes -= item.size
        return expired

    def drain(self) -> Iterator[T]:
        """Remove and yield all items, in no particular order across streams."""
        for stream in self._streams.values():
            yield from stream.items
            stream.items.clear()
            stream.bytes = 0
        self._ready.clear()
        self._streams = {name: stream for name, stream in self._streams.items() if stream.busy}
        self._count = self._bytes = 0

    def _remove_if_empty(self, name: str, stream: _Stream[T]) -> None:
        if stream.items or stream.busy:
            return
        if stream.listed:
            self._ready.remove(name)
        self._streams.pop(name, None)

    def _shed_oldest(self, stream: _Stream[T]) -> T | None:
        for position, item in enumerate(stream.items):
            if not item.durable:
                del stream.items[position]
                self._count -= 1
                self._bytes -= item.size
                stream.bytes -= item.size
                return item
        return None

    def _shed_from_largest(self, item: T, stream: _Stream[T]) -> T | None:
        """Shed the oldest item of the stream that would hold most, the new item included.

        Returns None if that stream is the new item's own and has nothing to shed, or if no stream has.
        """
        by_bytes = self._bytes + item.size > self.limits.max_bytes

        def weight(entry: tuple[str, _Stream[T]]) -> tuple[int, bool]:
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
