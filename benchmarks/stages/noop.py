"""A stage that does nothing, so that all that is measured is the way there and back."""

from hedgerow import Frame, Stage, StageConfig


class Noop(Stage[StageConfig]):
    """Answer every frame with its size."""

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        return frame.with_result({"bytes": len(frame.payload)})
