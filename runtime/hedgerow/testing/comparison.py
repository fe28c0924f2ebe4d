"""Compares frames, numbers within a tolerance: for tests of the stage contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hedgerow.frame import Frame

_TOLERANCE: Final = 1e-3
"""Allowed difference between a batch and single frames: backends sum in a different order."""


def on_stream(frame: Frame, stream: str) -> Frame:
    """Return a copy of a frame on another stream."""
    moved = frame.with_meta()
    moved.stream = stream
    return moved


def contents(frame: Frame) -> dict[str, Any]:
    """Return copies of a frame's contents."""
    return {
        "payload": bytes(frame.payload),
        "array": frame.array.copy() if frame.has_array else None,
        "tensors": {name: tensor.copy() for name, tensor in frame.tensors.items()},
        "fields": dict(frame.fields),
        "meta": dict(frame.meta),
        "result": frame.result,
    }


def difference(expected: Sequence[Frame], got: Sequence[Frame]) -> str | None:
    """Return the first difference between frames; None: there is none."""
    if len(expected) != len(got):
        return f"{len(got)} frames instead of {len(expected)}"
    for number, (left, right) in enumerate(zip(expected, got, strict=True)):
        before, after = contents(left), contents(right)
        for part, value in before.items():
            if not same(value, after[part]):
                return f"{part} of frame {number} differs: {short(after[part])} instead of {short(value)}"
    return None


def short(value: Any) -> str:
    """Return a value as text that fits into a message."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal, numbers within the tolerance."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (np.ndarray, np.number, float)) and isinstance(right, (np.ndarray, np.number, float, int)):
        left, right = np.asarray(left), np.asarray(right)
        if left.dtype.kind in "fc" and left.shape == right.shape:
            return bool(np.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
        return bool(np.array_equal(left, right))
    return bool(left == right)
