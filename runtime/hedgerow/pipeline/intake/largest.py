"""Finds which holders have most, in logarithmic time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

H = TypeVar("H")


class Largest(Generic[H]):
    """Holders by weight: a heap whose entries are corrected when they come up.

    Args:
        holders: those there are.
        weight: returns what one holds now, at least 0; 0 takes it out.
    """

    def __init__(self, holders: Iterable[H], weight: Callable[[H], int]) -> None:
        self._weight = weight
        self._entries: list[tuple[int, int, H]] = []
        self._rebuild(holders)

    def grown(self, holder: H) -> None:
        """Note that a holder is new or has more; one that has less need not be noted."""
        self._number += 1
        heappush(self._entries, (-self._weight(holder), self._number, holder))
        if len(self._entries) > self._limit:  # most are out of date
            self._rebuild(holder for _, _, holder in self._entries)

    def first(self, other_than: H) -> H | None:
        """Return the holder that has most, other than one; None: no other has anything."""
        entries, weight = self._entries, self._weight
        aside = None
        found = None
        while entries:
            stated, number, holder = entries[0]
            now = weight(holder)
            if not now or (aside is not None and holder is other_than):
                heappop(entries)
            elif now != -stated:
                heappop(entries)
                if now < -stated:  # if it has more, it has another entry
                    heappush(entries, (-now, number, holder))
            elif holder is other_than:
                aside = heappop(entries)
            else:
                found = holder
                break
        if aside is not None:
            heappush(entries, aside)
        return found

    def _rebuild(self, holders: Iterable[H]) -> None:
        weights = {id(holder): (self._weight(holder), holder) for holder in holders}
        # The number decides between equal weights, since holders cannot be compared.
        self._entries = [
            (-weight, number, holder) for number, (weight, holder) in enumerate(weights.values()) if weight
        ]
        heapify(self._entries)
        self._number = len(weights)
        self._limit = 2 * len(self._entries) + 64
