"""A stage that tells how much memory was under way for a frame: whether anything was copied between socket and stage."""

import tracemalloc
from typing import Final

from hedgerow import Frame, Stage, StageConfig, StageContext

_LARGE: Final = 100_000


class Weigh(Stage[StageConfig]):
    """Answer every frame with the most memory that Python had taken since the frame before it came here.

    What was copied and its copy are there at the same time, so both would be in it. Small frames between large ones
    let the node forget a large one before the next comes.
    """

    def setup(self, context: StageContext) -> None:
        """Begin to keep account."""
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
