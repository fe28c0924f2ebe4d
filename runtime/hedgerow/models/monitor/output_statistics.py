"""What live frames show of a model's arrays: which rows are not finite, and how values are spread beside a baseline. Pure."""

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
"""Values looked at of one array of one batch."""


class OutputStatistics:
    """Values of some tensors, by the bins of their baseline.

    Args:
        baseline: by tensor; those without bins are left out.
        samples: the author's, that the baseline is of.
        axes: the batch axis by tensor, where it is not 0; None: it has none.

    Attributes:
        frames: that were gathered.
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
        """Whether there is anything to gather."""
        return bool(self._values)

    def add(self, arrays: Mapping[str, Array], rows: int) -> None:
        """Take in a batch.

        Args:
            rows: frames in it; what is more is padding.
        """
        self.frames += rows
        for name, values in self._values.items():
            if (array := arrays.get(name)) is not None and array.dtype.kind in "biuf":
                values.add(_rows(array, self._axes.get(name, 0), rows))

    def shift(self, before: OutputStatistics | None = None) -> dict[str, float]:
        """By tensor, how far its values are from the baseline, above what chance explains.

        Args:
            before: of the same baseline, whose values count as well.
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
    outputs: Mapping[str, Array], axes: Mapping[str, int], known: Mapping[str, Distribution], rows: int
) -> int:
    """How many frames of a batch have outputs that hold NaN or infinity.

    Args:
        axes: the batch axis by output, where it is not 0.
        known: the baseline; outputs that hold such values there may do so here.
        rows: frames in the batch; what is more is padding.
    """
    bad = np.zeros(rows, np.bool_)
    for name, array in outputs.items():
        if array.dtype.kind != "f" or (name in known and known[name].not_finite):
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
    """Without padding."""
    if axis is not None and axis < array.ndim and array.shape[axis] > rows:
        return array[(slice(None),) * axis + (slice(rows),)]
    return array
