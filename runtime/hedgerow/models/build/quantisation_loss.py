"""What a variant costs against the model it was made from, and how far devices may differ in what they make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow.frame import Array
from hedgerow.models.bundle.distributions import Accumulator, shift
from hedgerow.models.bundle.golden import excess
from hedgerow.models.bundle.manifest import Distribution, Tolerance

_FLOORS: Final = {
    "fp64": Tolerance(),
    "fp32": Tolerance(),
    "fp16": Tolerance(relative=1e-2, absolute=1e-3),
    "bf16": Tolerance(relative=5e-2, absolute=5e-3),
}
"""Tolerances that are never undercut; of what is quantised, a step more or less is no fault."""

_QUANTISED: Final = Tolerance(relative=5e-2, absolute=1e-3, outliers=0.01)
_MARGIN: Final = 3.0
"""Other devices may differ by so many times what the backends here differ by."""

_NOTHING: Final = 1e-3
"""A deviation below this counts as this: of a detector that sees nothing, any rounding would be a loss."""


class Cost:
    """Gathers how far a variant's outputs are from the model's own.

    Args:
        labels: how many classes there are; an output as wide as that says which it is, by its largest value.
    """

    def __init__(self, labels: int = 0) -> None:
        self.outputs: dict[str, Accumulator] = {}
        self._labels = labels
        self._apart: dict[str, tuple[float, int, float]] = {}
        self._same = self._asked = 0

    def add(self, right: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Take in the outputs of one sample."""
        for name, array in right.items():
            other = got.get(name)
            if other is None or other.shape != array.shape:
                self._apart[name] = (math.inf, 1, math.inf)
                continue
            self.outputs.setdefault(name, Accumulator()).add(other)
            squares, count, worst = self._apart.get(name, (0.0, 0, 0.0))
            apart = _apart(array, other)
            self._apart[name] = (
                squares + float((apart * apart).sum()),
                count + apart.size,
                max(worst, float(apart.max(initial=0.0))),
            )
            if self._labels and array.ndim > 1 and array.shape[-1] - self._labels in (0, 1, 2):
                same = array.argmax(-1) == other.argmax(-1)
                self._same += int(same.sum())
                self._asked += same.size

    def report(self, baseline: Mapping[str, Distribution]) -> dict[str, float]:
        """What it costs, each by the output that suffers most.

        Args:
            baseline: how the model's own outputs are distributed.
        Returns:
            rms: root mean square of the difference, over the deviation of the model's own output.
            worst: the largest difference, over the largest value.
            shift: population stability index of the outputs.
            top1: share of decisions that are the same; only where there are labels.
        """
        report = {"rms": 0.0, "worst": 0.0, "shift": 0.0}
        for name, (squares, count, worst) in self._apart.items():
            known = baseline[name]
            largest = max(abs(known.minimum), abs(known.maximum), _NOTHING)
            rms = math.sqrt(squares / count) / max(known.deviation, _NOTHING * largest, _NOTHING) if count else 0.0
            report["rms"] = max(report["rms"], rms)
            report["worst"] = max(report["worst"], worst / largest)
            if known.edges and name in self.outputs:
                report["shift"] = max(report["shift"], shift(known, self.outputs[name].counts_in(known.edges)))
        if self._asked:
            report["top1"] = self._same / self._asked
        return {key: _short(value) for key, value in report.items()}


class Spread:
    """Gathers how far outputs may differ, of a variant of some precision."""

    def __init__(self, precision: str) -> None:
        self._floor = _FLOORS.get(precision, _QUANTISED)
        self._absolute: dict[str, float] = {}

    def between(self, right: Mapping[str, Array], others: Sequence[Mapping[str, Array]]) -> None:
        """Take in what backends made of one sample."""
        for other in others:
            self._widen(right, other, _MARGIN)

    def within(self, model: Mapping[str, Array], right: Mapping[str, Array]) -> None:
        """Take in what lower precision changed: another device may round the other way."""
        self._widen(model, right, 1.0)

    def tolerance(self) -> Tolerance:
        """What covers it all."""
        wider = {
            name: _short(needed) for name, needed in sorted(self._absolute.items()) if needed > self._floor.absolute
        }
        return self._floor.model_copy(update={"outputs": wider})

    def _widen(self, right: Mapping[str, Array], other: Mapping[str, Array], margin: float) -> None:
        for name, array in right.items():
            if name in other:
                needed = margin * excess({name: array}, {name: other[name]}, self._floor.relative, self._floor.outliers)
                if math.isfinite(needed):
                    self._absolute[name] = max(self._absolute.get(name, 0.0), needed)


def _apart(right: Array, got: Array) -> NDArray[np.float64]:
    """Distances, infinite where only one is a number; of whole numbers, 1 where they differ."""
    if right.dtype.kind != "f":
        return np.asarray(right != got, np.float64)
    one, two = right.astype(np.float64), got.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - two)
    apart = np.asarray(np.where(np.isnan(apart), math.inf, apart), np.float64)
    apart[same] = 0.0
    return apart


def _short(value: float) -> float:
    """Three digits, rounded up."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")
