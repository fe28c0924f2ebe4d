"""Batch size policy: the largest number of rows in the next batch. Pure: no clock, no threads.

A batch takes all waiting requests, up to the limit: leaving a request waiting gains nothing. But if that batch would take
long, it leaves the other inference streams their share of the requests, since an idle core costs more than smaller batches.
"""

from __future__ import annotations

from typing import Final

LONG_S: Final = 0.02
"""Batches expected to take longer than this leave other inference streams their share of the requests."""


class BatchSizePolicy:
    """Decides batch sizes.

    Args:
        limit: most rows in any batch.
        streams: batches that may run at the same time.
    Attributes:
        limit: as above; may be lowered at any time.
    """

    def __init__(self, limit: int, streams: int) -> None:
        self.limit = limit
        self._streams = streams
        self._row_s = 0.0

    def max_rows(self, waiting: int) -> int:
        """Return the largest number of rows for the next batch.

        Args:
            waiting: number of waiting rows of all callers.
        """
        if waiting * self._row_s <= LONG_S:
            return self.limit
        return min(self.limit, -(-waiting // self._streams))

    def record(self, rows: int, seconds: float) -> None:
        """Record a batch that has run."""
        self._row_s += (seconds / rows - self._row_s) / 8  # exponential moving average
