"""Sound as the audio stages exchange it, and gap detection.

Sound is `frame.array`, float32 (n,), -1..1, with `frame.meta`:
- `rate`: samples a second.
- `sampled_at`: Unix seconds of the first sample; default `frame.captured_at`.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hedgerow import ArraySpec, Frame, FrameError, FrameSpec

MIN_RATE: Final = 4_000
MAX_RATE: Final = 384_000

Samples = NDArray[np.float32]


def mono(frame: Frame) -> Samples:
    """Return the frame's sound.

    Returns: float32 (n,); n may be 0.
    Raises: FrameError: the array is of another shape or dtype, or holds NaN or infinity.
    """
    array = frame.array
    if array.dtype != np.float32 or array.ndim != 1:
        raise FrameError(
            f"Expected sound as float32 (n,), got {array.dtype}{list(array.shape)}",
            code="not-mono",
            remedy="Put `pcm16` before this stage; it mixes channels and scales to -1..1.",
        )
    if not is_finite(array):
        raise FrameError("The sound contains NaN or infinity", code="not-finite")
    return array


def is_finite(samples: Samples) -> bool:
    """Return whether no sample is NaN or infinite.

    Checks the sum of squares first, in one pass. Large values may overflow it; `vdot`, unlike `dot`, does not warn.
    """
    return math.isfinite(np.vdot(samples, samples)) or bool(np.isfinite(samples).all())


def mono_spec(incoming: FrameSpec) -> int | None:
    """Check that frames hold mono sound with a rate.

    Returns: the rate; None: unknown.
    Raises: StageMismatch: they hold something else.
    """
    remedy = "Put `pcm16` before it; it mixes channels and scales to -1..1."
    incoming.expect_array(ArraySpec("float32", (None,)), remedy=remedy)
    rate: int | None = incoming.expect_meta("rate", remedy="Put `pcm16: {rate: …}` before it.")
    return rate


def rate_of(frame: Frame) -> int:
    """Return the frame's samples a second, set by an earlier stage or the sensor.

    Raises: FrameError: the rate is missing or invalid.
    """
    if "rate" not in frame.meta:
        raise FrameError(
            "The sound's sampling rate is unknown", code="no-rate", remedy="Put `pcm16: {rate: …}` before this stage."
        )
    return whole(frame.meta["rate"], "rate", MIN_RATE, MAX_RATE)


def whole(value: Any, name: str, least: int, most: int) -> int:
    """Return a whole number from a frame's meta; content type parameters are text.

    Raises: FrameError: it is not a whole number, or out of range.
    """
    if type(value) is int and least <= value <= most:  # fast path: set by an earlier stage
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most or number != int(number):
        raise FrameError(f"{name} {str(value)[:40]!r} is not a whole number from {least} to {most}", code=f"bad-{name}")
    return int(number)


def sampled_at(frame: Frame) -> float:
    """Return the Unix seconds of the first sample in the frame's array."""
    return float(frame.meta.get("sampled_at", frame.captured_at))


def is_gap(frame: Frame, at: float, after: int, ends_at: float, max_gap_s: float) -> bool:
    """Return whether there is a gap before a frame.

    There is one if a sequence number is missing (the node dropped or refused a frame), or if a frame's time is more
    than `max_gap_s` off the end of the previous frame (the sensor paused, or the network lost data). Frames without a
    time (`captured_at` is 0) are checked by number only.

    Args:
        at: Unix seconds of its first sample.
        after, ends_at: sequence number of the previous frame, and the time at which its sound ends.
    """
    if frame.sequence not in (after, after + 1):
        return True
    return bool(frame.captured_at) and not abs(at - ends_at) <= max_gap_s


class Continuity:
    """Detects gaps in a stream; see `is_gap`."""

    __slots__ = ("_ends_at", "_sequence")

    def __init__(self) -> None:
        self._sequence: int | None = None
        self._ends_at = 0.0

    def broken_by(self, frame: Frame, at: float, max_gap_s: float) -> bool:
        """Return whether there is a gap before a frame, whose first sample is from `at`; False for the first frame."""
        return self._sequence is not None and is_gap(frame, at, self._sequence, self._ends_at, max_gap_s)

    def record(self, frame: Frame, ends_at: float) -> None:
        """Record a processed frame and the time at which its sound ends."""
        self._sequence = frame.sequence
        self._ends_at = ends_at
