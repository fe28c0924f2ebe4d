"""The `noop` stage, to measure receiving and publishing."""

from hedgerow import Frame, FrameBatch, Stage, StageConfig


class Noop(Stage[StageConfig]):
    """Return the size of every frame."""

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Never raises."""
        return batch.with_result_columns(bytes=list(map(len, batch.payloads)))

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        return frame.with_result({"bytes": len(frame.payload)})
