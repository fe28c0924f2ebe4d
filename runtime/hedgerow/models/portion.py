"""How many rows the next batch may have. Pure: no clock, no threads.

Rules:
- All that waits, up to the limit: a row of a large batch usually costs less than one of a small batch.
- Usually, not always: a large model's batch may fall out of the processor's cache. So smaller batches, and larger ones,
  are tried now and then, and sizes that cost more a row than smaller ones are not used.
- Where a batch takes long, it leaves the other streams their share: a core without work costs more than small batches.
"""

from __future__ import annotations

from typing import Final

LONG_S: Final = 0.02
"""What would take longer than this leaves the others their share of what waits."""

_TRY_LESS_EVERY: Final = 32
_TRY_MORE_EVERY: Final = 256
_WORSE: Final = 1.08
_SURE: Final = 4


class Portion:
    """Decides on batch sizes.

    Args:
        limit: most rows, ever.
        streams: batches that may run at the same time.
    Attributes:
        limit: as above; may be lowered at any time.
        usual: most rows that have not proved to cost more each than fewer rows do.
    """

    def __init__(self, limit: int, streams: int) -> None:
        self.limit = limit
        self.usual = limit
        self._streams = streams
        self._asked = 0
        self._cost_s: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    def most(self, waiting: int) -> int:
        """Most rows for the next batch.

        Args:
            waiting: rows that wait, of all callers.
        """
        self._asked += 1
        rows = min(self.usual, self.limit)
        if self._asked % _TRY_MORE_EVERY == 0:
            return min(2 * rows, self.limit)
        if self._asked % _TRY_LESS_EVERY == 0:
            return max(1, min(rows, waiting) // 2)
        cost_s = self._cost_s.get(_kind(min(rows, waiting)), 0.0)
        if self._streams > 1 and waiting * cost_s > LONG_S:
            return min(rows, -(-waiting // self._streams))
        return rows

    def took(self, rows: int, seconds: float) -> None:
        """Note a batch that has run."""
        kind = _kind(rows)
        seen = self._seen[kind] = self._seen.get(kind, -1) + 1
        if seen == 0:  # the first of its size may have compiled or allocated something
            return
        each_s = seconds / rows
        known_s = self._cost_s.get(kind, each_s)
        self._cost_s[kind] = known_s + (each_s - known_s) / 4  # a moving mean
        self.usual = self._largest_that_pays()

    def _largest_that_pays(self) -> int:
        best_s, largest = float("inf"), self.limit
        for kind in sorted(self._cost_s):
            if self._seen[kind] < _SURE:
                continue
            if self._cost_s[kind] > _WORSE * best_s:
                return largest
            best_s = min(best_s, self._cost_s[kind])
            largest = 2**kind
        return self.limit


def _kind(rows: int) -> int:
    """Sizes that are taken as one: 1, 2, 3 and 4, 5 to 8, 9 to 16 …"""
    return (rows - 1).bit_length()
