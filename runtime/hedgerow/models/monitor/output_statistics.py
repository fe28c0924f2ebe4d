"""Statistics of a model's live arrays: rows that are not finite, and shifts from a baseline. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from hedgerow.frame import Array
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.manifest import Distribution
from hedgerow.models.monitor.canary_analysis import excess_shift

_AT_MOST: Final = 4096
"""Largest number of values to use per array and batch."""


class OutputStatistics:
    """Counts of tensors' values in the bins of their baseline.

    Args:
        baseline: distributions by tensor; those without bins are ignored.
        samples: number of samples behind the baseline.
        axes: batch axis by tensor, where it is not 0; None: the tensor has none.

    Attributes:
        frames: number of frames added.
    """

    def __init__(self, baseline: Mapping[str, Distribution], samples: int, axes: Mapping[str, int | None]) -> None:
        self.frames = 0
        self._baseline = baseline
        self._samples = samples
        self._axes = axes
        self._values = {
            name: Accumulator(one.edges, at_most=_AT_MOST) for name, one in baseline.items() if one.counts and one.edges
        }

    def __bool__(self) -> bool:
        """Return whether any tensor has a baseline with bins."""
        return bool(self._values)

    def add(self, arrays: Mapping[str, Array], rows: int) -> None:
        """Add a batch.

        Args:
            rows: number of frames; further rows are padding.
        """
        self.frames += rows
        for name, values in self._values.items():
            if (array := arrays.get(name)) is not None and array.dtype.kind in "biuf":
                values.add(_rows(array, self._axes.get(name, 0), rows))

    def shift(self, before: OutputStatistics | None = None) -> dict[str, float]:
        """Return the shift from the baseline by tensor, less the shift expected by chance.

        Args:
            before: statistics with the same baseline, to be included.
        """
        frames = self.frames + (before.frames if before is not None else 0)
        shifts = {}
        for name, values in self._values.items():
            counts = values.counts
            if before is not None:
                counts = tuple(map(sum, zip(counts, before._values[name].counts, strict=True)))
            shifts[name] = excess_shift(self._baseline[name], counts, self._samples, frames)
        return shifts


def not_finite_rows(
    outputs: Mapping[str, Array], axes: Mapping[str, int], baseline: Mapping[str, Distribution], rows: int
) -> int:
    """Return the number of frames in a batch with NaN or infinity in their outputs.

    Args:
        axes: batch axis by output, where it is not 0.
        baseline: outputs with such values in their baseline are ignored.
        rows: number of frames in the batch; further rows are padding.
    """
    bad = np.zeros(rows, np.bool_)
    for name, array in outputs.items():
        if array.dtype.kind != "f" or (name in baseline and baseline[name].not_finite):
            continue
        axis = axes.get(name, 0)
        array = _rows(array, axis, rows)
        if _finite(array):
            continue
        if axis >= array.ndim or array.shape[axis] != rows:
            return rows
        bad |= ~np.isfinite(np.moveaxis(array, axis, 0).reshape(rows, -1)).all(axis=1)
    return int(bad.sum())


def _finite(array: Array) -> bool:
    with np.errstate(all="ignore"):
        return math.isfinite(float(array.sum())) or bool(np.isfinite(array).all())


def _rows(array: Array, axis: int | None, rows: int) -> Array:
    """Remove padding."""
    if axis is not None and axis < array.ndim and array.shape[axis] > rows:
        return array[(slice(None),) * axis + (slice(rows),)]
    return array
