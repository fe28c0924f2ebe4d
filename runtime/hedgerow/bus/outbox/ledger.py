"""What has come from one node's outbox: the receiving side of its numbers. Pure.

A region keeps one for each node, with what it stores of the results, and publishes `ack()` when that is safe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from hedgerow.bus.outbox.records import Ack, Gap, Number, priority_of, sequence_of

MOST_RANGES: Final = 32
"""Ranges that an acknowledgement names; what is beyond is sent again or acknowledged later."""


class Ranges:
    """A set of numbers, kept as ranges that do not touch: `through` counts from 1."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> bool:
        """Add a range. Returns: whether any of it is new."""
        at = bisect_right(self._firsts, first)
        if at and self._lasts[at - 1] >= last:
            return False
        begin = at - 1 if at and self._lasts[at - 1] >= first - 1 else at
        end = bisect_right(self._firsts, last + 1)
        if begin < end:
            first, last = min(first, self._firsts[begin]), max(last, self._lasts[end - 1])
        self._firsts[begin:end], self._lasts[begin:end] = [first], [last]
        return True

    def all(self) -> list[tuple[int, int]]:
        """The ranges, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def missing(self, last: int) -> list[tuple[int, int]]:
        """What is not among them of the numbers from 1 to this one."""
        ends = zip([0, *self._lasts], [*self._firsts, last + 1], strict=True)
        return [(low + 1, min(high - 1, last)) for low, high in ends if low < min(high - 1, last)]

    def __len__(self) -> int:
        """How many ranges they are."""
        return len(self._firsts)

    @property
    def through(self) -> int:
        """The last of those without a hole before them."""
        return self._lasts[0] if self._firsts and self._firsts[0] <= 1 else 0

    def beyond(self, most: int) -> list[tuple[int, int]]:
        """The ranges after the first hole."""
        skip = 1 if self.through else 0
        return list(zip(self._firsts[skip : skip + most], self._lasts[skip : skip + most], strict=True))


class Ledger:
    """The numbers of one epoch that have come, or are declared never to come.

    Args:
        epoch: of the numbers.
        state: what an earlier one gave as its `state`.
    """

    def __init__(self, epoch: str, state: Mapping[int, Sequence[tuple[int, int]]] | None = None) -> None:
        self.epoch = epoch
        self._got: dict[int, Ranges] = {}
        for priority, ranges in (state or {}).items():
            for first, last in ranges:
                self.ranges(priority).add(first, last)

    def ranges(self, priority: int) -> Ranges:
        """What has come of a priority."""
        got = self._got.get(priority)
        if got is None:
            got = self._got[priority] = Ranges()
        return got

    def state(self) -> dict[int, list[tuple[int, int]]]:
        """All that it knows, by priority: to be stored."""
        return {priority: ranges for priority, got in self._got.items() if (ranges := got.all())}

    def add(self, number: Number) -> bool:
        """Note a record. Returns: whether it is new; if not, it came or was declared lost before."""
        return self.ranges(number.priority).add(number.sequence, number.sequence)

    def add_gap(self, gap: Gap) -> bool:
        """Note a gap. Returns: whether it says anything new."""
        return self.ranges(priority_of(gap.first)).add(sequence_of(gap.first), sequence_of(gap.last))

    def ack(self) -> Ack:
        """What to tell the outbox."""
        through = {priority: got.through for priority, got in self._got.items() if got.through}
        also = {priority: ranges for priority, got in self._got.items() if (ranges := got.beyond(MOST_RANGES))}
        return Ack(self.epoch, through, also)
