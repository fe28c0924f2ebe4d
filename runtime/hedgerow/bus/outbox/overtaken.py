"""Records that the region does not acknowledge although it acknowledges later ones. Pure: no clock, no disk, no link.

Such a record was lost on the way. Usually it arrives when it is sent again. If a bridge does not carry it (too large, no rule
for its topic, an ACL), it never does: it is then sent at growing intervals, outside the window, and in the end given up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

STUCK_AFTER: Final = 3
"""How often later records must be acknowledged before a record counts as stuck and is held back."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 3600.0
_GIVE_UP_AFTER_S: Final = 86_400.0
_MOST_TRACKED: Final = 10_000
"""Bounds the memory for these records; those beyond are sent again at once, as if it were the first time."""


@dataclass(slots=True)
class _Overtaken:
    since: float
    times: int = 0
    held_until: float | None = None  # None: not held back


class OvertakenRecords:
    """Counts by key how often a record was overtaken, and holds back those that are stuck."""

    def __init__(self) -> None:
        self._records: dict[int, _Overtaken] = {}

    @property
    def stuck(self) -> int:
        """Number of records that do not get through."""
        return sum(each.times >= STUCK_AFTER for each in self._records.values())

    def holds(self, key: int) -> bool:
        """Whether a record must not be sent now."""
        record = self._records.get(key)
        return record is not None and record.held_until is not None

    def add(self, key: int, now: float) -> bool:
        """Count that a record was overtaken. Returns: whether it is held back from now on."""
        record = self._records.get(key)
        if record is None:
            if len(self._records) >= _MOST_TRACKED:
                return False
            record = self._records[key] = _Overtaken(now)
        record.times += 1
        if record.times < STUCK_AFTER:
            return False
        record.held_until = now + min(_FIRST_PAUSE_S * 2 ** (record.times - STUCK_AFTER), _LONGEST_PAUSE_S)
        return True

    def release(self, key: int) -> None:
        """Hold a record back no longer; its count stays."""
        if key in self._records:
            self._records[key].held_until = None

    def due(self, now: float) -> list[int]:
        """Return the records whose pause is over."""
        return [key for key, each in self._records.items() if each.held_until is not None and each.held_until <= now]

    def held(self) -> list[int]:
        """Return the records that are held back."""
        return [key for key, each in self._records.items() if each.held_until is not None]

    def hopeless(self, now: float) -> list[int]:
        """Return, once, the records that have been stuck for so long that they are given up."""
        keys = [
            key
            for key, each in self._records.items()
            if each.times >= STUCK_AFTER and now - each.since >= _GIVE_UP_AFTER_S
        ]
        for key in keys:
            del self._records[key]
        return keys

    def remove(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Forget the records of ranges of keys, ends included: they were acknowledged, or given up."""
        if not self._records:
            return
        keys = sorted(self._records)
        for first, last in ranges:
            for key in keys[bisect_left(keys, first) : bisect_right(keys, last)]:
                self._records.pop(key, None)
