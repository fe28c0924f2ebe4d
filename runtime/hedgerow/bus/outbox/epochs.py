"""Epochs of an outbox's numbers: each run of a process on a file numbers its records in an epoch of its own. Pure.

Inside the file, sequences go on from run to run. On the wire, each epoch counts from 1, so a copy of the file, or an earlier
state of it that was put back, never gives a number that another run gives.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final, NamedTuple

from hedgerow.bus.outbox.records import PRIORITIES, Ack, Number, key_of, priority_of, sequence_of

MAX_FORMER: Final = 2
"""Earlier epochs that a record names when it is sent again under a new one; bounds the size of its packet."""


def new_epoch() -> str:
    """Return an id that no other epoch has.

    The times are for machines that were copied while they ran: until the kernel mixes in something new, both draw the same
    random bytes.
    """
    seed = os.urandom(16) + b"%d %d %d" % (time.time_ns(), time.perf_counter_ns(), os.getpid())
    return blake2b(seed, digest_size=8).hexdigest()


class FormerEpoch(NamedTuple):
    """An epoch that records belonged to before it clashed; `bases` and `ends` as in `EpochSpan`."""

    epoch: str
    bases: tuple[int, ...]
    ends: tuple[int, ...]


class EpochEnd(NamedTuple):
    """The end of an epoch, as the first record of the next one tells it.

    Attributes:
        epoch: its id.
        lasts: its last number of each priority that it has; empty if the region has received all of it.
    """

    epoch: str
    lasts: Mapping[int, int]

    def __str__(self) -> str:
        return " ".join([self.epoch, *(f"{priority}:{last}" for priority, last in self.lasts.items())])


class KeyAck(NamedTuple):
    """An acknowledgement of one epoch, in keys.

    Attributes:
        ranges: keys that were received or declared lost: of gaps, and, if `held` is None, of records.
        held: keys and checks of the records that the region holds (None: it rejected that one unread). A key may occur with
            several checks. None: the region does not tell, as earlier versions.
        beyond: whether it names numbers that the epoch does not have.
        unread: sizes of the payloads that it rejected unread, by key and size; None: the region does not tell.
    """

    ranges: list[tuple[int, int]]
    held: list[tuple[int, int | None]] | None
    beyond: bool
    unread: Collection[tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class EpochSpan:
    """The part of a file's sequences that belongs to one epoch.

    Attributes:
        epoch: its id.
        bases: for each priority, the sequence before its first.
        ends: for each priority, its last sequence; None: the epoch goes on.
        former: the epochs that its records belonged to before, newest first.
        is_done: whether it has ended and nothing of it waits.
    """

    epoch: str
    bases: tuple[int, ...]
    ends: tuple[int, ...] | None = None
    former: tuple[FormerEpoch, ...] = ()
    is_done: bool = False

    def has(self, key: int) -> bool:
        """Whether a key belongs to it."""
        priority, sequence = priority_of(key), sequence_of(key)
        return self.bases[priority] < sequence and (self.ends is None or sequence <= self.ends[priority])

    def number(self, key: int) -> Number:
        """Return a key's number on the wire."""
        priority = priority_of(key)
        return Number(self.epoch, priority, sequence_of(key) - self.bases[priority])

    def former_numbers(self, key: int) -> list[Number]:
        """Return the numbers that a record had before, newest first."""
        priority, sequence = priority_of(key), sequence_of(key)
        return [
            Number(one.epoch, priority, sequence - one.bases[priority])
            for one in self.former
            if one.bases[priority] < sequence <= one.ends[priority]
        ]

    def ended(self, next_sequences: Sequence[int]) -> EpochSpan:
        """Return it with its end before the next sequences; one that has ended stays."""
        return self if self.ends is not None else replace(self, ends=tuple(one - 1 for one in next_sequences))

    def translated(self, ack: Ack, next_sequences: Sequence[int]) -> KeyAck:
        """Return an acknowledgement of this epoch in keys, without those that the epoch does not have."""
        ends = self.ended(next_sequences).ends
        assert ends is not None  # noqa: S101 - it has ended now
        ranges, beyond = [], False
        pairs = [(priority, 1, last) for priority, last in ack.through.items()]
        pairs += [(priority, first, last) for priority, also in ack.also.items() for first, last in also]
        for priority, first, last in pairs:
            base, end, first = self.bases[priority], ends[priority], max(1, first)
            beyond |= base + last > end and first <= last
            if first <= (last := min(last, end - base)):
                ranges.append((key_of(priority, base + first), key_of(priority, base + last)))
        if ack.held is None:
            return KeyAck(ranges, None, beyond)
        held: list[tuple[int, int | None]] = []
        for priority, entries in ack.held.items():
            first, last = key_of(priority, self.bases[priority]), key_of(priority, ends[priority])
            held += [(first + sequence, check) for sequence, check in entries if 0 < sequence <= last - first]
        unread = None
        if ack.unread is not None:
            unread = {
                (key_of(priority, self.bases[priority]) + sequence, size)
                for priority, sizes in ack.unread.items()
                for sequence, size in sizes
            }
        return KeyAck(ranges, held, beyond, unread)


class Epochs:
    """The epochs of a file, oldest first; immutable. Those of which nothing waits are left out, except the last before this run's."""

    def __init__(self, spans: Sequence[EpochSpan] = ()) -> None:
        self.spans = tuple(spans)
        self._bases = [[span.bases[priority] for span in self.spans] for priority in range(PRIORITIES)]
        self._named: Mapping[str, EpochSpan] = {span.epoch: span for span in self.spans}

    def named(self, epoch: str) -> EpochSpan | None:
        """Return the epoch with this id."""
        return self._named.get(epoch)

    def of(self, key: int) -> EpochSpan:
        """Return the epoch of a stored key."""
        return self.spans[max(0, bisect_left(self._bases[priority_of(key)], sequence_of(key)) - 1)]

    def end_before(self, span: EpochSpan) -> EpochEnd | None:
        """Return the end of the epoch before another one; None if it is not known."""
        at = self.spans.index(span)
        if not at:
            return None
        before = self.spans[at - 1]
        if before.is_done or before.ends is None:
            return EpochEnd(before.epoch, {})
        counts = enumerate(end - base for base, end in zip(before.bases, before.ends, strict=True))
        return EpochEnd(before.epoch, {priority: count for priority, count in counts if count})

    def numbers(self, key: int, *, is_record: bool) -> list[tuple[str, str]]:
        """Return the user properties that tell the region a key's number, and what it needs to know with it."""
        span = self.of(key)
        number = span.number(key)
        pairs = [("number", str(number))]
        if span.former and is_record:
            pairs += [("was", str(former)) for former in span.former_numbers(key)]
        if number.sequence == 1 and (end := self.end_before(span)) is not None:
            pairs.append(("ended", str(end)))
        return pairs

    def replaced(self, old: EpochSpan, new: EpochSpan | None) -> Epochs:
        """Return them with one replaced, or removed."""
        spans = [one if one is not old else new for one in self.spans]
        return Epochs([one for one in spans if one is not None])
