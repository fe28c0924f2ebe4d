"""The `weigh` stage: measures whether a payload was copied between socket and stage."""

import tracemalloc
from typing import Final

from hedgerow import Frame, Stage, StageConfig, StageContext

_LARGE: Final = 100_000


class Weigh(Stage[StageConfig]):
    """Return the peak of Python's memory since the previous frame, in frames.

    The original and a copy exist at the same time, so both would be included. Small frames between large ones let the
    node release a large frame before the next arrives.
    """

    def setup(self, context: StageContext) -> None:
        """Start tracing memory."""
        tracemalloc.start()
        self._rest = 0

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        size = len(frame.payload)
        copies = (peak - self._rest) / size - 1 if size >= _LARGE else None
        self._rest = now
        return frame.with_result({"copies": copies})
