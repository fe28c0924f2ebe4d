"""The `count` stage, to measure receiving alone."""

from hedgerow import Frame, Stage, StageConfig


class CountConfig(StageConfig):
    """Rate of results."""

    each: int


class Count(Stage[CountConfig]):
    """Absorb all frames except each n-th, which returns a result."""

    _seen = 0

    def process(self, frame: Frame) -> Frame | None:
        """Never raises."""
        self._seen += 1
        return None if self._seen % self.config.each else frame.with_result({})
