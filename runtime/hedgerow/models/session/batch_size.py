"""How many rows the next batch may have. Pure: no clock, no threads.

All that waits, up to the limit: nothing is gained by leaving a request waiting. But where a batch takes long, it leaves the
other streams their share of what waits, since a core without work costs more than small batches do.
"""

from __future__ import annotations

from typing import Final

LONG_S: Final = 0.02
"""What would take longer than this leaves the others their share of what waits."""


class BatchSizePolicy:
    """Decides on batch sizes.

    Args:
        limit: most rows, ever.
        streams: batches that may run at the same time.
    Attributes:
        limit: as above; may be lowered at any time.
    """

    def __init__(self, limit: int, streams: int) -> None:
        self.limit = limit
        self._streams = streams
        self._row_s = 0.0

    def most(self, waiting: int) -> int:
        """Most rows for the next batch.

        Args:
            waiting: rows that wait, of all callers.
        """
        if waiting * self._row_s <= LONG_S:
            return self.limit
        return min(self.limit, -(-waiting // self._streams))

    def took(self, rows: int, seconds: float) -> None:
        """Note a batch that has run."""
        self._row_s += (seconds / rows - self._row_s) / 8  # a moving mean
