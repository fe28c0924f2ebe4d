"""Accuracy loss of a variant against the model it was made from, and tolerances for its outputs on other devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow.frame import Array
from hedgerow.models.bundle.distributions import Accumulator, shift
from hedgerow.models.bundle.golden import needed_tolerance
from hedgerow.models.bundle.manifest import Distribution, Tolerance

_FLOORS: Final = {
    "fp64": Tolerance(),
    "fp32": Tolerance(),
    "fp16": Tolerance(relative=1e-2, absolute=1e-3),
    "bf16": Tolerance(relative=5e-2, absolute=5e-3),
}
"""Smallest tolerances by precision."""

_QUANTISED: Final = Tolerance(relative=5e-2, absolute=1e-3, outliers=0.01)
"""Smallest tolerance of other precisions: values may be off by a quantisation step."""

_MARGIN: Final = 3.0
"""Factor between the differences of the backends on this machine and those allowed on other devices."""

_SMALLEST_SCALE: Final = 1e-3
"""Smallest scale for relative differences: for a detector that sees nothing, any rounding would be a loss."""


class AccuracyLoss:
    """Accumulates the differences between a variant's outputs and the original model's.

    Args:
        labels: number of classes. An output with this width is a classification: its largest value is the decision.
    """

    def __init__(self, labels: int = 0) -> None:
        self.outputs: dict[str, Accumulator] = {}
        self._labels = labels
        self._differences: dict[str, tuple[float, int, float]] = {}
        self._same = self._decisions = 0

    def add(self, original: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        """Add the outputs of one sample."""
        for name, array in original.items():
            other = actual.get(name)
            if other is None or other.shape != array.shape:
                self._differences[name] = (math.inf, 1, math.inf)
                continue
            self.outputs.setdefault(name, Accumulator()).add(other)
            squares, count, worst = self._differences.get(name, (0.0, 0, 0.0))
            distances = _distances(array, other)
            self._differences[name] = (
                squares + float((distances * distances).sum()),
                count + distances.size,
                max(worst, float(distances.max(initial=0.0))),
            )
            if self._labels and array.ndim > 1 and array.shape[-1] - self._labels in (0, 1, 2):
                same = array.argmax(-1) == other.argmax(-1)
                self._same += int(same.sum())
                self._decisions += same.size

    def report(self, baseline: Mapping[str, Distribution]) -> dict[str, float]:
        """Return the losses, each for the worst output.

        Args:
            baseline: distributions of the original model's outputs.
        Returns:
            rms: root mean square of the difference, over the standard deviation of the original output.
            worst: the largest difference, over the largest value.
            shift: population stability index of the outputs.
            top1: share of identical decisions; only with labels.
        """
        report = {"rms": 0.0, "worst": 0.0, "shift": 0.0}
        for name, (squares, count, worst) in self._differences.items():
            known = baseline[name]
            largest = max(abs(known.minimum), abs(known.maximum), _SMALLEST_SCALE)
            scale = max(known.deviation, _SMALLEST_SCALE * largest, _SMALLEST_SCALE)
            rms = math.sqrt(squares / count) / scale if count else 0.0
            report["rms"] = max(report["rms"], rms)
            report["worst"] = max(report["worst"], worst / largest)
            if known.edges and name in self.outputs:
                report["shift"] = max(report["shift"], shift(known, self.outputs[name].counts_in(known.edges)))
        if self._decisions:
            report["top1"] = self._same / self._decisions
        return {key: _round_up(value) for key, value in report.items()}


class ToleranceEstimator:
    """Estimates the tolerance of a variant's outputs."""

    def __init__(self, precision: str) -> None:
        self._floor = _FLOORS.get(precision, _QUANTISED)
        self._absolute: dict[str, float] = {}

    def add_backends(self, reference: Mapping[str, Array], others: Sequence[Mapping[str, Array]]) -> None:
        """Add the outputs of several backends for one sample."""
        for other in others:
            self._widen(reference, other, _MARGIN)

    def add_precision(self, original: Mapping[str, Array], variant: Mapping[str, Array]) -> None:
        """Add the changes caused by lower precision for one sample: another device may round differently."""
        self._widen(original, variant, 1.0)

    def tolerance(self) -> Tolerance:
        """Return a tolerance that covers all differences."""
        wider = {
            name: _round_up(needed) for name, needed in sorted(self._absolute.items()) if needed > self._floor.absolute
        }
        return self._floor.model_copy(update={"outputs": wider})

    def _widen(self, reference: Mapping[str, Array], other: Mapping[str, Array], margin: float) -> None:
        relative, outliers = self._floor.relative, self._floor.outliers
        for name, array in reference.items():
            if name in other:
                needed = margin * needed_tolerance({name: array}, {name: other[name]}, relative, outliers)
                if math.isfinite(needed):
                    self._absolute[name] = max(self._absolute.get(name, 0.0), needed)


def _distances(original: Array, actual: Array) -> NDArray[np.float64]:
    """Return absolute differences; infinite where only one value is a number; for integers, 1 where they differ."""
    if original.dtype.kind != "f":
        return np.asarray(original != actual, np.float64)
    one, two = original.astype(np.float64), actual.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore"):
        distances = np.abs(one - two)
    distances = np.asarray(np.where(np.isnan(distances), math.inf, distances), np.float64)
    distances[same] = 0.0
    return distances


def _round_up(value: float) -> float:
    """Round up to three significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")
