"""The `window` stage: cuts a sensor's samples into windows of equal length, optionally overlapping."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hedgerow import ArraySpec, Frame, FrameError, FrameSpec, Stage, StageConfig, StageContext
from hedgerow.wire.numbers import FLOAT32, convert

MAX_RATE: Final = 1e9


class WindowConfig(StageConfig):
    """Length and spacing of windows."""

    size: int = Field(ge=1, le=2**24, description="Samples in a window.")
    hop: int | None = Field(
        None,
        ge=1,
        description="Samples from the start of one window to the start of the next; by default `size`, no overlap.",
    )
    channels: int = Field(1, ge=1, le=1024, description="Values in a sample: 1 for (n,), more for (n, channels).")
    rate: float | None = Field(
        None, gt=0, le=MAX_RATE, description="Samples a second, if the frame does not state it (meta `rate`)."
    )
    max_gap_s: float = Field(
        0.5,
        gt=0,
        description="A jump in time longer than this starts the stream over. Set it below a frame's length to detect single "
        "lost frames, if the sensor timestamps them.",
    )

    max_windows: int = Field(
        1024,
        ge=1,
        description="Maximum number of windows that one frame may complete; a frame that would complete more is refused.",
    )

    @model_validator(mode="after")
    def _hop_within(self) -> WindowConfig:
        if self.hop is not None and self.hop > self.size:
            raise ValueError(f"`hop` {self.hop} is above `size` {self.size} and would skip samples")
        return self


class _Tail:
    """Samples of a stream that the next window needs."""

    def __init__(self, channels: int) -> None:
        self.samples: NDArray[np.float32] = np.zeros((0, channels), np.float32)
        self.position = 0
        self.sequence: int | None = None
        self.ends_at = 0.0


class Window(Stage[WindowConfig]):
    """Cut a sensor's samples into windows; a frame gives none, one or many.

    A frame has (n,) or (n, channels) numbers; a window is float32 (size,) or (size, channels). Meta gets `rate`;
    `position`, the window's first sample counted since the stream began or last started over; `window_at`, the Unix
    seconds of that sample (a frame's `captured_at` is that of its first); and `begins`, whether the window is the
    first.

    After a gap the stream starts over and leftover samples are discarded. There is a gap if a sequence number is
    missing, or if a frame's time is more than `max_gap_s` off the end of the previous frame; times are checked only if
    the rate is known and the frame has a time.
    """

    def setup(self, context: StageContext) -> None:
        """Create the per-stream state."""
        self._tails = context.per_stream(lambda: _Tail(self.config.channels))

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take samples; give windows. Raises: StageMismatch: samples have another number of channels."""
        size, channels = self.config.size, self.config.channels
        accepted = [ArraySpec(shape=(None, channels)), *([ArraySpec(shape=(None,))] if channels == 1 else [])]
        incoming.expect_array(*accepted, remedy="Put `parse` before it, and set `channels` to the values in a sample.")
        rate = incoming.meta.get("rate") or (self.config.rate if incoming.unstated else None)
        window = ArraySpec("float32", (size,) if channels == 1 else (size, channels))
        return incoming.with_array(window, position=None, begins=None, window_at=None, rate=rate)

    def process(self, frame: Frame) -> list[Frame]:
        """Raises: FrameError: the array's shape, dtype, values or length are invalid, or the rate is; or float32 loses digits."""
        size, hop = self.config.size, self.config.hop or self.config.size
        samples = self._samples(frame)
        rate = self._rate(frame)
        tail = self._tails[frame.stream]
        if self._has_gap(tail, frame, rate):
            tail = self._tails[frame.stream] = _Tail(self.config.channels)
        leftover = len(tail.samples)
        buffered = np.concatenate((tail.samples, samples))
        count = max((len(buffered) - size) // hop + 1, 0)
        if count > self.config.max_windows:
            raise FrameError(
                f"A frame of {len(samples)} samples completes {count} windows, more than `max_windows` "
                f"({self.config.max_windows})",
                code="too-many-windows",
                remedy="Send shorter frames, or raise `hop` or `max_windows` of the stage `window`.",
            )
        rate_meta = {} if rate is None else {"rate": rate}
        windows = []
        for start in range(0, count * hop, hop):
            window = buffered[start : start + size]
            at = frame.captured_at + ((start - leftover) / rate if rate else 0.0)
            windows.append(
                frame.with_array(
                    window[:, 0] if self.config.channels == 1 else window,
                    position=tail.position + start,
                    begins=tail.position + start == 0,
                    window_at=at,
                    **rate_meta,
                )
            )
        tail.samples = buffered[count * hop :].copy()
        tail.position += count * hop
        tail.sequence = frame.sequence
        tail.ends_at = frame.captured_at + (len(samples) / rate if rate else 0.0)
        return windows

    def _samples(self, frame: Frame) -> NDArray[np.float32]:
        array = np.asarray(frame.array)
        if array.ndim == 1 and self.config.channels == 1:
            array = array[:, np.newaxis]
        if array.ndim != 2 or array.shape[1] != self.config.channels:
            expected = "(n,)" if self.config.channels == 1 else f"(n, {self.config.channels})"
            raise FrameError(f"Expected samples {expected}, got {list(frame.array.shape)}", code="wrong-shape")
        if array.dtype.kind not in "iufb":
            raise FrameError(f"Samples are {array.dtype}, not numbers", code="not-numbers", remedy="Send real numbers.")
        try:
            samples = convert(array, FLOAT32, rounds=False)
        except FrameError as error:
            remedy = "Windows are float32: subtract a constant at the sensor; or set `dtype: float32` of `parse` if seven digits are enough."
            raise FrameError(str(error), code=error.code, remedy=remedy) from error
        if not np.isfinite(samples).all():
            raise FrameError("The samples contain NaN or infinity", code="not-finite")
        return samples

    def _rate(self, frame: Frame) -> float | None:
        value = frame.meta.get("rate", self.config.rate)
        if value is None:
            return None
        return rate(value)

    def _has_gap(self, tail: _Tail, frame: Frame, rate: float | None) -> bool:
        if tail.sequence is None:
            return False
        if frame.sequence not in (tail.sequence, tail.sequence + 1):
            return True
        timed = rate is not None and frame.captured_at != 0
        return timed and not abs(frame.captured_at - tail.ends_at) <= self.config.max_gap_s


def rate(value: object) -> float:
    """Return a sampling rate from a frame's meta, where it is a number or text.

    Raises: FrameError: it is not a valid rate.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if not 0 < number <= MAX_RATE:
        raise FrameError(f"{str(value)[:40]!r} is not a sampling rate from 0 to {MAX_RATE:g}", code="bad-rate")
    return number
