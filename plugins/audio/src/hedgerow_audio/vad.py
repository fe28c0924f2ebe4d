"""The `vad-window` stage: cuts sound at 16 kHz into the windows that Silero VAD takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field

from hedgerow import (
    ArraySpec,
    Frame,
    FrameError,
    FrameSpec,
    Outcome,
    Stage,
    StageConfig,
    StageContext,
    StageMismatch,
)
from hedgerow_audio.samples import Continuity, Samples, is_finite, mono, mono_spec, rate_of, sampled_at

RATE: Final = 16_000
"""Samples a second that the model takes."""
SIZE: Final = 512
"""New samples in a window: 32 ms."""
CONTEXT: Final = 64
"""Samples of the previous window that the model takes again."""


class VadWindowConfig(StageConfig):
    """Gap detection, limits, and the name of the model's input."""

    max_gap_s: float = Field(
        0.5,
        gt=0,
        description="A jump in time longer than this starts the stream over. Set it below a frame's length to detect single "
        "lost frames, if the sensor timestamps them.",
    )
    max_windows: int = Field(
        4096,
        ge=1,
        description="Maximum number of windows of 32 ms that one frame may complete; a longer frame is refused.",
    )
    input: str = Field("input", description="Name of the model's input for sound.")


class _Tail:
    """Samples of a stream that the next window needs."""

    def __init__(self) -> None:
        self.continuity = Continuity()
        self.samples: Samples = np.zeros(CONTEXT, np.float32)
        self.position = 0


class VadWindow(Stage[VadWindowConfig]):
    """Cut sound into windows of 512 samples, each preceded by 64 of context; a frame gives none, one or many.

    The sizes are those of Silero VAD v5 and v6 at 16 kHz (https://github.com/snakers4/silero-vad). A window is
    `tensors[input]`, float32 (1, 576). Meta gets `position`, its first new sample counted since the stream began or
    last started over; `window_at`, the Unix seconds of that sample; and `begins`, whether it is the first. After a gap
    the stream starts over: leftover samples are discarded, the context is silence, and `begins` makes `infer` reset the
    hidden state.
    """

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state."""
        self._tails = context.per_stream(_Tail)

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take mono sound at 16 kHz; give windows. Raises: StageMismatch: it is other sound, or none."""
        rate = mono_spec(incoming)
        if rate not in (None, RATE):
            remedy = f"Put `resample: {{rate: {RATE}}}` before it."
            raise StageMismatch(f"sound at {RATE} samples a second", f"sound at {rate}", remedy=remedy)
        window = {self.config.input: ArraySpec("float32", (1, CONTEXT + SIZE))}
        return incoming.with_tensors(window, position=None, begins=None, window_at=None)

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Process a list of frames of exactly one window at once, at half the cost per frame; others one by one."""
        pieces: list[Samples] = []
        tails: dict[str, _Tail] = {}
        started_at: list[float] = []
        for frame in frames:
            tail = tails[frame.stream] = self._tails[frame.stream]
            at = sampled_at(frame)
            if not self._is_one_window(frame, tail, at):
                return super().process_many(frames)
            pieces += (tail.samples, frame.array)
            started_at.append(at)
        buffered = np.concatenate(pieces).reshape(-1, CONTEXT + SIZE) if pieces else np.empty((0, 0), np.float32)
        if len(tails) < len(frames) or not is_finite(buffered):
            return super().process_many(frames)
        outcomes: list[Outcome | Exception] = []
        for frame, tail, window, at in zip(frames, tails.values(), buffered[:, np.newaxis], started_at, strict=True):
            tail.samples[...] = window[0, SIZE:]
            position = tail.position
            tail.position = position + SIZE
            tail.continuity.record(frame, at + SIZE / RATE)
            tensors = {self.config.input: window}
            outcomes.append(frame.with_tensors(tensors, position=position, begins=position == 0, window_at=at))
        return outcomes

    def _is_one_window(self, frame: Frame, tail: _Tail, at: float) -> bool:
        """Return whether the frame is exactly the stream's next window: no gap before it, no leftover samples."""
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
        """Raises: FrameError: the frame is not mono sound at 16 kHz, or too long."""
        samples = mono(frame)
        if (rate := rate_of(frame)) != RATE:
            raise FrameError(
                f"The sound has {rate} samples a second, but the model takes {RATE}",
                code="wrong-rate",
                remedy=f"Put `resample: {{rate: {RATE}}}` before this stage.",
            )
        at = sampled_at(frame)
        tail = self._tails[frame.stream]
        if tail.continuity.broken_by(frame, at, self.config.max_gap_s):
            tail = self._tails[frame.stream] = _Tail()
        leftover = len(tail.samples) - CONTEXT
        start_at, position = at - leftover / RATE, tail.position
        buffered = np.concatenate((tail.samples, samples))
        used = (len(buffered) - CONTEXT) // SIZE * SIZE
        if used > self.config.max_windows * SIZE:
            raise FrameError(
                f"A frame of {len(samples) / RATE:.1f} s completes {used // SIZE} windows, more than `max_windows` "
                f"({self.config.max_windows})",
                code="too-many-windows",
                remedy="Send shorter frames, or raise `max_windows` of the stage `vad-window`.",
            )
        tail.samples = buffered[used:].copy()
        tail.position += used
        tail.continuity.record(frame, at + len(samples) / RATE)
        windows = []
        for start in range(0, used, SIZE):
            window = {self.config.input: buffered[start : start + CONTEXT + SIZE].reshape(1, -1)}
            first = position + start
            windows.append(
                frame.with_tensors(window, position=first, begins=first == 0, window_at=start_at + start / RATE)
            )
        return windows[0] if used == SIZE else windows
