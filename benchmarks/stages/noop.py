"""The `noop` stage, to measure receiving and publishing."""

from hedgerow import Frame, Stage, StageConfig


class Noop(Stage[StageConfig]):
    """Return the size of every frame."""

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        return frame.with_result({"bytes": len(frame.payload)})
