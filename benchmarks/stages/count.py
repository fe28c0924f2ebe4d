"""A stage that only counts, so that all that is measured is the way there."""

from hedgerow import Frame, Stage, StageConfig


class CountConfig(StageConfig):
    """How often to answer."""

    each: int


class Count(Stage[CountConfig]):
    """Absorb every frame, but for each n-th, which is a sign of life."""

    _seen = 0

    def process(self, frame: Frame) -> Frame | None:
        """Never raises."""
        self._seen += 1
        return None if self._seen % self.config.each else frame.with_result({})
