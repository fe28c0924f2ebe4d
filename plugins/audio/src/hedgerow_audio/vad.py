"""The `vad-window` stage: cuts sound at 16 kHz into the windows that Silero VAD takes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import (
    ArraySpec,
    Frame,
    FrameBatch,
    FrameError,
    FrameSpec,
    Irregular,
    Stage,
    StageConfig,
    StageContext,
    StageMismatch,
)
from hedgerow_audio.samples import is_finite, is_gap, mono, mono_spec, rate_of, sampled_at

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


_TAIL: Final = np.dtype([("sequence", "i8"), ("ends_at", "f8"), ("position", "i8"), ("leftover", "i8")])
_BEGINNING: Final = (-1, 0.0, 0, 0)


class VadWindow(Stage[VadWindowConfig]):
    """Cut sound into windows of 512 samples, each preceded by 64 of context; a frame gives none, one or many.

    The sizes are those of Silero VAD v5 and v6 at 16 kHz (https://github.com/snakers4/silero-vad). A window is
    `tensors[input]`, float32 (1, 576). Meta gets `position`, its first new sample counted since the stream began or
    last started over; `window_at`, the Unix seconds of that sample; and `begins`, whether it is the first. After a gap
    the stream starts over: leftover samples are discarded, the context is silence, and `begins` makes `infer` reset the
    hidden state.
    """

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state: where a stream is, and the samples that its next window needs."""
        self._tails = context.stream_table(
            tail=((), _TAIL, _BEGINNING), context=((CONTEXT,), np.float32), leftover=((SIZE - 1,), np.float32)
        )

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take mono sound at 16 kHz; give windows. Raises: StageMismatch: it is other sound, or none."""
        rate = mono_spec(incoming)
        if rate not in (None, RATE):
            remedy = f"Put `resample: {{rate: {RATE}}}` before it."
            raise StageMismatch(f"sound at {RATE} samples a second", f"sound at {rate}", remedy=remedy)
        window = {self.config.input: ArraySpec("float32", (1, CONTEXT + SIZE))}
        return incoming.with_tensors(window, position=None, begins=None, window_at=None)

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Cut frames of exactly one window; rows of streams with samples left over are left to `process`.

        Raises: Irregular: the frames are of another length, or no sound at 16 kHz.
        """
        array = batch.array
        if array is None or array.shape[1:] != (SIZE,) or array.dtype != np.float32:
            raise Irregular
        if any(rate != RATE for rate in batch.meta_columns.get("rate", (batch.meta.get("rate"),))):
            raise Irregular
        table, at = self._tails, _sampled_at(batch)
        rows = table.rows(batch.streams)
        tails = table.take("tail", rows)
        sequences = np.array(batch.sequences)
        gap = self._gaps(tails, sequences, np.array(batch.captured_at), at)
        fit = gap | (tails["leftover"] == 0)
        if not is_finite(array.reshape(-1)):
            fit &= np.isfinite(array).all(axis=1)
        if not fit.any():
            raise Irregular
        windows = np.empty((len(rows), 1, CONTEXT + SIZE), np.float32)
        windows[:, 0, :CONTEXT] = table.take("context", rows)
        windows[:, 0, CONTEXT:] = array
        windows[gap, 0, :CONTEXT] = 0
        starts = np.where(gap, 0, tails["position"])
        tails["sequence"], tails["ends_at"] = sequences, at + SIZE / RATE
        tails["position"], tails["leftover"] = starts + SIZE, 0
        ends = windows[:, 0, SIZE:]
        if not fit.all():
            for row in np.flatnonzero(~fit).tolist():
                batch.defer(row)
            rows, tails, ends = rows[fit], tails[fit], ends[fit]
        table.put("tail", rows, tails)
        table.put("context", rows, ends)
        positions = starts.tolist()
        begins = [position == 0 for position in positions]
        return batch.with_tensors(
            {self.config.input: windows}, position=positions, begins=begins, window_at=at.tolist()
        )

    def _gaps(
        self, tails: NDArray[Any], sequences: NDArray[Any], captured: NDArray[Any], at: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Return before which frames there is a gap, as `is_gap` does."""
        after = tails["sequence"]
        missing = (sequences != after) & (sequences != after + 1)
        off = (captured != 0) & ~(np.abs(at - tails["ends_at"]) <= self.config.max_gap_s)
        gaps: NDArray[np.bool_] = (after >= 0) & (missing | off)
        return gaps

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
        table = self._tails
        row = table.row(frame.stream)
        sequence, ends_at, position, leftover = table.take("tail", row).item()
        if sequence >= 0 and is_gap(frame, at, sequence, ends_at, self.config.max_gap_s):
            _, _, position, leftover = _BEGINNING
            before = np.zeros(CONTEXT, np.float32)
        else:
            before = table.take("context", row)
            if leftover:
                before = np.concatenate((before, table.take("leftover", row)[:leftover]))
        start_at = at - leftover / RATE
        buffered = np.concatenate((before, samples))
        used = (len(buffered) - CONTEXT) // SIZE * SIZE
        if used > self.config.max_windows * SIZE:
            raise FrameError(
                f"A frame of {len(samples) / RATE:.1f} s completes {used // SIZE} windows, more than `max_windows` "
                f"({self.config.max_windows})",
                code="too-many-windows",
                remedy="Send shorter frames, or raise `max_windows` of the stage `vad-window`.",
            )
        rest = buffered[used:]
        over = len(rest) - CONTEXT
        table.put("context", row, rest[:CONTEXT])
        if over:
            table.put("leftover", row, np.concatenate((rest[CONTEXT:], np.zeros(SIZE - 1 - over, np.float32))))
        table.put("tail", row, (frame.sequence, at + len(samples) / RATE, position + used, over))
        windows = []
        for start in range(0, used, SIZE):
            window = {self.config.input: buffered[start : start + CONTEXT + SIZE].reshape(1, -1)}
            first = position + start
            windows.append(
                frame.with_tensors(window, position=first, begins=first == 0, window_at=start_at + start / RATE)
            )
        return windows[0] if used == SIZE else windows


def _sampled_at(batch: FrameBatch) -> NDArray[np.float64]:
    """Return the Unix seconds of each row's first sample. Raises: Irregular: not all rows have it in the same way."""
    if "sampled_at" not in batch.meta and "sampled_at" not in batch.meta_columns:
        return np.array(batch.captured_at, np.float64)
    sampled = batch.meta_column("sampled_at")
    if set(map(type, sampled)) != {float}:
        raise Irregular
    return np.array(sampled)
