"""The `spin` stage: CPU-bound Python that holds the interpreter lock."""

from pydantic import Field

from hedgerow import Frame, Stage, StageConfig


class SpinConfig(StageConfig):
    """Amount of work."""

    loops: int = Field(25_000, ge=1, description="Rounds of arithmetic per frame; about 25 per microsecond.")


class Spin(Stage[SpinConfig]):
    """Do arithmetic for about a millisecond: a fixed amount of work, not of time, so that load does not reduce it."""

    concurrent = True

    def process(self, frame: Frame) -> Frame:
        """Never raises."""
        value = len(frame.payload)
        for step in range(self.config.loops):
            value = (value + step) & 0xFFFF
        return frame.with_result({"value": value})
