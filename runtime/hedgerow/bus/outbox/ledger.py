"""Record numbers received from one node's outbox. Pure.

The region keeps a ledger for each outbox in the same database as the results, and publishes `ack()` once they are stored.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from hedgerow.bus.outbox.records import Ack, Gap, Number, priority_of, sequence_of

MAX_RANGES: Final = 32
"""Limit on ranges in an acknowledgement; records beyond them are acknowledged later, or resent."""


class Ranges:
    """A set of positive integers, stored as disjoint, non-adjacent ranges."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> bool:
        """Add a range. Returns: whether any of it was missing."""
        at = bisect_right(self._firsts, first)
        if at and self._lasts[at - 1] >= last:
            return False
        start = at - 1 if at and self._lasts[at - 1] >= first - 1 else at
        end = bisect_right(self._firsts, last + 1)
        if start < end:
            first, last = min(first, self._firsts[start]), max(last, self._lasts[end - 1])
        self._firsts[start:end], self._lasts[start:end] = [first], [last]
        return True

    def all(self) -> list[tuple[int, int]]:
        """Return the ranges, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def missing(self, last: int) -> list[tuple[int, int]]:
        """Return the ranges missing between 1 and `last`."""
        ends = zip([0, *self._lasts], [*self._firsts, last + 1], strict=True)
        return [(low + 1, min(high - 1, last)) for low, high in ends if low < min(high - 1, last)]

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._firsts)

    @property
    def through(self) -> int:
        """The highest number without a missing one below it; 0 if 1 is missing."""
        return self._lasts[0] if self._firsts and self._firsts[0] <= 1 else 0

    def beyond(self, limit: int) -> list[tuple[int, int]]:
        """Return the ranges after the first missing number, at most `limit`."""
        skip = 1 if self.through else 0
        return list(zip(self._firsts[skip : skip + limit], self._lasts[skip : skip + limit], strict=True))


class Ledger:
    """The numbers of one epoch that were received or declared lost.

    Args:
        epoch: of the numbers.
        state: returned by `state()` of an earlier ledger.
    """

    def __init__(self, epoch: str, state: Mapping[int, Sequence[tuple[int, int]]] | None = None) -> None:
        self.epoch = epoch
        self._received: dict[int, Ranges] = {}
        for priority, pairs in (state or {}).items():
            for first, last in pairs:
                self.ranges(priority).add(first, last)

    def ranges(self, priority: int) -> Ranges:
        """Return the numbers received or declared lost of a priority."""
        ranges = self._received.get(priority)
        if ranges is None:
            ranges = self._received[priority] = Ranges()
        return ranges

    def state(self) -> dict[int, list[tuple[int, int]]]:
        """Return all ranges by priority, for storing."""
        return {priority: pairs for priority, ranges in self._received.items() if (pairs := ranges.all())}

    def add(self, number: Number) -> bool:
        """Add a record. Returns: whether it is new; else it was received or declared lost before."""
        return self.ranges(number.priority).add(number.sequence, number.sequence)

    def add_gap(self, gap: Gap) -> bool:
        """Add a gap. Returns: whether any number in it is new."""
        return self.ranges(priority_of(gap.first)).add(sequence_of(gap.first), sequence_of(gap.last))

    def ack(self) -> Ack:
        """Return the acknowledgement for the outbox."""
        through = {priority: ranges.through for priority, ranges in self._received.items() if ranges.through}
        also = {priority: pairs for priority, ranges in self._received.items() if (pairs := ranges.beyond(MAX_RANGES))}
        return Ack(self.epoch, through, also)
