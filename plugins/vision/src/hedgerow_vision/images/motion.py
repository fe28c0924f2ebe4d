"""The `motion` stage: drops frames without motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Drop, Frame, FrameSpec, PerStream, Stage, StageConfig, StageContext
from hedgerow.stage import THRESHOLD
from hedgerow_vision.images.pictures import Picture, picture, picture_spec


class MotionConfig(StageConfig):
    """Sensitivity and rate."""

    threshold: float = Field(
        0.06,
        gt=0,
        lt=1,
        description="A cell has changed if its brightness moved by this share of full scale.",
        json_schema_extra=THRESHOLD,
    )
    min_area: float = Field(
        0.005,
        ge=0,
        le=1,
        description="There is motion if at least this share of the cells has changed.",
        json_schema_extra=THRESHOLD,
    )
    adapt: float = Field(0.1, gt=0, le=1, description="How fast the background adapts: the weight of each new frame.")
    max_quiet_s: float | None = Field(
        None, gt=0, description="Pass a still frame if none has passed for this long, as a sign of life."
    )
    min_interval_s: float = Field(0, ge=0, description="Shortest time between two frames that pass.")


@dataclass(slots=True)
class _StreamState:
    background: NDArray[np.float32] | None = None
    passed_at: float = 0.0


class Motion(Stage[MotionConfig]):
    """Drop frames without motion; meta `motion` is the share of cells that changed.

    Each stream has a background about 64 cells wide, a running average of its frames. A uniform change of brightness is
    not motion. The first frame of a stream, and the first of a new size, always passes.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state."""
        self._states: PerStream[_StreamState] = context.per_stream(_StreamState)

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a picture. Raises: StageMismatch: there is none."""
        return picture_spec(incoming).with_meta(motion=None)

    def process(self, frame: Frame) -> Frame | Drop:
        """Drops: no-motion, too-soon. Raises: FrameError: not-decoded, not-a-picture."""
        cells = _cells(picture(frame))
        state = self._states[frame.stream]
        if state.background is None or state.background.shape != cells.shape:
            state.background, state.passed_at = cells, frame.captured_at
            return frame.with_meta(motion=1.0)
        change = cells - state.background
        state.background += self.config.adapt * change
        change -= np.median(change)
        moved = float(np.mean(np.abs(change) > self.config.threshold * 255))
        # If a sensor's clock is set back, do not drop its frames until the clock has caught up.
        state.passed_at = min(state.passed_at, frame.captured_at)
        since = frame.captured_at - state.passed_at
        overdue = self.config.max_quiet_s is not None and since >= self.config.max_quiet_s
        if moved < max(self.config.min_area, 1 / change.size) and not overdue:
            return Drop("no-motion")
        if since < self.config.min_interval_s:
            return Drop("too-soon")
        state.passed_at = frame.captured_at
        return frame.with_meta(motion=moved)


def _cells(image: Picture) -> NDArray[np.float32]:
    """Return a picture's brightness, averaged over cells; (h, w), 0..255, w about 64."""
    # Green approximates brightness. A large picture is subsampled first; averaging removes the noise.
    step = max(1, image.shape[1] // 256)
    green = image[::step, ::step, 1]
    side = max(1, green.shape[1] // 64)
    height, width = green.shape[0] // side, green.shape[1] // side
    if not height or not width:
        return green.astype(np.float32)
    blocks = green[: height * side, : width * side].reshape(height, side, width, side)
    means: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means
