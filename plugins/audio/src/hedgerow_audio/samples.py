"""What the audio stages agree on: mono samples, their rate, and what counts as a gap.

Between stages, sound is `frame.array`, float32 (n,), -1..1, with two facts in `frame.meta`:
- `rate`: samples a second.
- `sampled_at`: Unix seconds of the first sample; `frame.captured_at` where a stage has not said.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hedgerow import Frame, FrameError

MIN_RATE: Final = 4_000
MAX_RATE: Final = 384_000

Samples = NDArray[np.float32]


def mono(frame: Frame) -> Samples:
    """The frame's sound.

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
        raise FrameError("The sound holds NaN or infinity", code="not-finite")
    return array


def is_finite(samples: Samples) -> bool:
    """Whether none is NaN or infinite.

    The sum of squares tells in one pass; where it is not finite, large values may have overflowed it, of which `vdot`,
    unlike `dot`, does not warn.
    """
    return math.isfinite(np.vdot(samples, samples)) or bool(np.isfinite(samples).all())


def rate_of(frame: Frame) -> int:
    """Samples a second, as an earlier stage or the sensor said.

    Raises: FrameError: nobody said, or it is no sensible rate.
    """
    if "rate" not in frame.meta:
        raise FrameError(
            "The sound's rate is not known", code="no-rate", remedy="Put `pcm16: {rate: …}` before this stage."
        )
    return whole(frame.meta["rate"], "rate", MIN_RATE, MAX_RATE)


def whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number that came with a frame, as a number or, from a content type's parameter, as text.

    Raises: FrameError: it is not one, or out of range.
    """
    if type(value) is int and least <= value <= most:  # what an earlier stage has looked at
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most or number != int(number):
        raise FrameError(f"{name} {str(value)[:40]!r} is not a whole number from {least} to {most}", code=f"bad-{name}")
    return int(number)


def sampled_at(frame: Frame) -> float:
    """Unix seconds of the first sample of the frame's array."""
    return float(frame.meta.get("sampled_at", frame.captured_at))


class Continuity:
    """Whether each frame of a stream follows on the one before.

    It does not if a number of the stream is missing (the node shed or refused a frame), or if its time is off by more
    than `max_gap_s` from where the frame before ended (the sensor paused, or the network lost some). A frame that has
    no time (`captured_at` is 0) is judged by its number alone.
    """

    __slots__ = ("_ends_at", "_sequence")

    def __init__(self) -> None:
        self._sequence: int | None = None
        self._ends_at = 0.0

    def broken_by(self, frame: Frame, at: float, max_gap_s: float) -> bool:
        """Whether this frame, whose first sample was taken at `at`, does not follow; False for the first."""
        if self._sequence is None:
            return False
        if frame.sequence not in (self._sequence, self._sequence + 1):
            return True
        return bool(frame.captured_at) and not abs(at - self._ends_at) <= max_gap_s

    def take(self, frame: Frame, ends_at: float) -> None:
        """Note a frame that has been taken in."""
        self._sequence = frame.sequence
        self._ends_at = ends_at
