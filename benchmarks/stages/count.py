"""The `count` stage, to measure receiving alone."""

from hedgerow import Frame, FrameBatch, Stage, StageConfig


class CountConfig(StageConfig):
    """Rate of results."""

    each: int


class Count(Stage[CountConfig]):
    """Absorb all frames except each n-th, which returns a result."""

    _seen = 0

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Never raises."""
        before, each = self._seen, self.config.each
        self._seen += len(batch)
        for row in range(len(batch)):
            if (before + row + 1) % each:
                batch.leave(row, None)
        return batch.with_results([{}] * len(batch))

    def process(self, frame: Frame) -> Frame | None:
        """Never raises."""
        self._seen += 1
        return None if self._seen % self.config.each else frame.with_result({})
