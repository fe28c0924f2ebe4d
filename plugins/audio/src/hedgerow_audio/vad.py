"""The `vad-window` stage: sound at 16 kHz becomes the windows that Silero VAD listens to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field

from hedgerow import Frame, FrameError, Outcome, Stage, StageConfig, StageContext
from hedgerow_audio.samples import Continuity, Samples, is_finite, mono, rate_of, sampled_at

RATE: Final = 16_000
"""Samples a second that the model takes."""
SIZE: Final = 512
"""New samples in a window: 32 ms."""
CONTEXT: Final = 64
"""Samples of the window before that the model sees again."""


class VadWindowConfig(StageConfig):
    """What the model calls its input, and when a stream begins anew."""

    max_gap_s: float = Field(
        0.5,
        gt=0,
        description="A jump in time longer than this starts the stream over. Set it below a frame's length to detect single "
        "lost frames, if the sensor timestamps them.",
    )
    max_windows: int = Field(
        4096, ge=1, description="Most windows of 32 ms that one frame may complete; a longer frame is refused."
    )
    input: str = Field("input", description="Name of the model's input for sound.")


class _Tail:
    """What a stream has heard and not yet given out."""

    def __init__(self) -> None:
        self.continuity = Continuity()
        self.samples: Samples = np.zeros(CONTEXT, np.float32)
        self.position = 0


class VadWindow(Stage[VadWindowConfig]):
    """Cut sound into windows of 512 samples, each with the 64 before it; none, one or many from a frame.

    The sizes are those of Silero VAD v5 and v6 at 16 kHz (https://github.com/snakers4/silero-vad). A window is
    `tensors[input]`, float32 (1, 576); meta gets `position`, its first new sample counted since the stream began or
    began anew, `window_at`, the Unix seconds of that sample, and `begins`, whether it is the first. A stream begins anew after a gap: what was left over
    is discarded, the context is silence again, and `begins` makes `infer` begin with fresh hidden state.
    """

    def setup(self, context: StageContext) -> None:
        """Make the state."""
        self._tails = context.per_stream(_Tail)

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """As one by one, but frames of one window each, if all are, are cut together: each then costs half."""
        pieces: list[Samples] = []
        tails: dict[str, _Tail] = {}
        began: list[float] = []
        for frame in frames:
            tail = tails[frame.stream] = self._tails[frame.stream]
            at = sampled_at(frame)
            if not self._is_one_window(frame, tail, at):
                return super().process_many(frames)
            pieces += (tail.samples, frame.array)
            began.append(at)
        heard = np.concatenate(pieces).reshape(-1, CONTEXT + SIZE) if pieces else np.empty((0, 0), np.float32)
        if len(tails) < len(frames) or not is_finite(heard):
            return super().process_many(frames)
        outcomes: list[Outcome | Exception] = []
        for frame, tail, window, at in zip(frames, tails.values(), heard[:, np.newaxis], began, strict=True):
            tail.samples[...] = window[0, SIZE:]
            position = tail.position
            tail.position = position + SIZE
            tail.continuity.take(frame, at + SIZE / RATE)
            tensors = {self.config.input: window}
            outcomes.append(frame.with_tensors(tensors, position=position, begins=position == 0, window_at=at))
        return outcomes

    def _is_one_window(self, frame: Frame, tail: _Tail, at: float) -> bool:
        """Whether it is as long as a window, follows on what was heard, and nothing is left over from before."""
        array = frame.array if frame.has_array else None
        return (
            array is not None
            and array.shape == (SIZE,)
            and array.dtype == np.float32
            and len(tail.samples) == CONTEXT
            and frame.meta.get("rate") == RATE
            and not tail.continuity.broken_by(frame, at, self.config.max_gap_s)
        )

    def process(self, frame: Frame) -> Frame | list[Frame]:
        """Raises: FrameError: the frame is not mono sound at 16 kHz, or is too long."""
        samples = mono(frame)
        if (rate := rate_of(frame)) != RATE:
            raise FrameError(
                f"The sound has {rate} samples a second, the model takes {RATE}",
                code="wrong-rate",
                remedy=f"Put `resample: {{rate: {RATE}}}` before this stage.",
            )
        at = sampled_at(frame)
        tail = self._tails[frame.stream]
        if tail.continuity.broken_by(frame, at, self.config.max_gap_s):
            tail = self._tails[frame.stream] = _Tail()
        waiting = len(tail.samples) - CONTEXT
        began_at, position = at - waiting / RATE, tail.position
        heard = np.concatenate((tail.samples, samples))
        used = (len(heard) - CONTEXT) // SIZE * SIZE
        if used > self.config.max_windows * SIZE:
            raise FrameError(
                f"{len(samples) / RATE:.1f} s of sound make {used // SIZE} windows at once, more than "
                f"{self.config.max_windows}",
                code="too-many-windows",
                remedy="Send shorter frames, or raise `max_windows` of the stage `vad-window`.",
            )
        tail.samples = heard[used:].copy()
        tail.position += used
        tail.continuity.take(frame, at + len(samples) / RATE)
        windows = []
        for start in range(0, used, SIZE):
            window = {self.config.input: heard[start : start + CONTEXT + SIZE].reshape(1, -1)}
            first = position + start
            windows.append(
                frame.with_tensors(window, position=first, begins=first == 0, window_at=began_at + start / RATE)
            )
        return windows[0] if used == SIZE else windows
