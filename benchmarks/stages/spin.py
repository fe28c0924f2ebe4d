"""A stage bound by Python: what it does holds the interpreter lock all the time."""

from pydantic import Field

from hedgerow import Frame, Stage, StageConfig


class SpinConfig(StageConfig):
    """How much to do."""

    loops: int = Field(25_000, ge=1, description="Rounds of arithmetic a frame; about 25 a microsecond.")


class Spin(Stage[SpinConfig]):
    """Do arithmetic for about a millisecond: a fixed amount of work, so that a busy machine does not shorten it."""

    concurrent = True

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        value = len(frame.payload)
        for step in range(self.config.loops):
            value = (value + step) & 0xFFFF
        return frame.with_result({"value": value})
