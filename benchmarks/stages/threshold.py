"""The `threshold` stage, to measure telemetry: compares numbers with their limits."""

import numpy as np

from hedgerow import Frame, FrameBatch, Irregular, Stage, StageConfig


class ThresholdConfig(StageConfig):
    """Limits of the numbers."""

    limits: tuple[float, ...]


class Threshold(Stage[ThresholdConfig]):
    """Return a frame's numbers, and whether one of them is above its limit."""

    concurrent = True

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Raises: Irregular: there are other numbers of numbers than limits."""
        limits = np.array(self.config.limits)
        if batch.array is None or batch.array.shape[1:] != limits.shape:
            raise Irregular
        above = np.asarray((batch.array > limits).any(axis=1))
        return batch.with_result_columns(values=batch.array, above=above)

    def process(self, frame: Frame) -> Frame:
        """Raises: ValueError: there are other numbers of numbers than limits."""
        above = bool((frame.array > np.array(self.config.limits)).any())
        return frame.with_result({"values": frame.array.tolist(), "above": above})
