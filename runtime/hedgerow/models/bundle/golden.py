"""Golden cases: inputs with the outputs a variant had when it was built, which it must reproduce on every device.

They show that files, drivers, libraries and the processor do not alter a model's outputs. They do not show whether these
outputs are any good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.errors import HedgerowError
from hedgerow.frame import Array
from hedgerow.models.bundle.arrays import read_arrays
from hedgerow.models.bundle.manifest import Manifest, Tolerance, Variant

Run = Callable[[dict[str, Array]], dict[str, Array]]
"""Runs one batch, as `Session.run` does."""

_INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class GoldenOutcome:
    """Result of running the golden cases.

    Attributes:
        passed: whether all outputs are within tolerance; True without cases.
        worst: deviation of the worst value, in tolerances: up to 1 passes. Outliers that the tolerance allows are not
            counted.
        detail: what was compared, or what is wrong, in words.
    """

    passed: bool
    worst: float
    detail: str


def check_golden(run: Run, folder: Path, manifest: Manifest, variant: Variant) -> GoldenOutcome:
    """Run a variant's golden inputs and compare its outputs.

    Args:
        run: runs the loaded variant. It receives every input, including `serving.constants` and hidden state.
        folder: the bundle's folder.
    Returns: the outcome. A model that fails to run has not passed; the error is in `detail`.
    Raises: BadArrays: a golden file cannot be read.
    """
    cases = [case for case in manifest.golden if variant.name in case.outputs]
    worst, where = 0.0, ""
    for number, case in enumerate(cases, 1):
        expected = read_arrays(folder / case.outputs[variant.name].path)
        missing = sorted({output.name for output in manifest.outputs} - expected.keys())
        if missing or not expected:
            what = ", ".join(missing) or "any output"
            return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} has no expected values for {what}")
        try:
            actual = run(read_arrays(folder / case.inputs.path))
        except HedgerowError as error:
            return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} failed: {error}")
        for name, array in expected.items():
            if name not in actual:
                return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} returned no {name}")
            off, what = compare(array, actual[name], variant.tolerance.of(name))
            if off >= worst:
                worst, where = off, f"case {number} of {len(cases)}, {name}: {what}"
    if not cases:
        return GoldenOutcome(True, 0.0, f"{variant.name} has no golden cases")
    if worst > 1:
        return GoldenOutcome(False, worst, where)
    count = "1 golden case" if len(cases) == 1 else f"{len(cases)} golden cases"
    return GoldenOutcome(
        True, worst, f"{count}; largest deviation: {where}" if worst else f"{count}, identical outputs"
    )


def compare(expected: Array, actual: Array, tolerance: Tolerance) -> tuple[float, str]:
    """Return an output's deviation, in tolerances, and a description of it.

    Integers and booleans must be equal; NaN matches only NaN.
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return _INFINITE, f"{actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.size == 0:
        return 0.0, "nothing to compare"
    off = _deviations(expected, actual, tolerance).reshape(-1)
    allowed = int(tolerance.outliers * off.size)
    position = int(np.argpartition(off, -1 - allowed)[-1 - allowed])
    outside = int((off > 1).sum())
    worst = float(off[position])
    what = f"{actual.reshape(-1)[position]:.6g} instead of {expected.reshape(-1)[position]:.6g}"
    if worst <= 1:
        return worst, f"{what}, {worst:.2g} of the tolerance"
    return (
        worst,
        f"{what}; {outside:,} of {off.size:,} values are outside the tolerance, by a factor of up to {off.max():.3g}",
    )


def _deviations(expected: Array, actual: Array, tolerance: Tolerance) -> Array:
    if expected.dtype.kind != "f":
        return np.where(expected == actual, 0.0, _INFINITE)
    one, two = expected.astype(np.float64), actual.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(one - two) / (tolerance.absolute + tolerance.relative * np.abs(one))
    return np.where(same, 0.0, np.where(np.isnan(off), _INFINITE, off))


def needed_tolerance(
    expected: Mapping[str, Array], actual: Mapping[str, Array], relative: float, outliers: float = 0.0
) -> float:
    """Return the absolute tolerance that outputs need in addition to a relative one; infinite: no tolerance suffices."""
    needed = 0.0
    for name, array in expected.items():
        other = actual.get(name)
        if other is None or other.shape != array.shape:
            return _INFINITE
        if array.dtype.kind != "f" or array.size == 0:
            continue
        one, two = array.astype(np.float64), other.astype(np.float64)
        same = (one == two) | (np.isnan(one) & np.isnan(two))
        with np.errstate(invalid="ignore"):
            over = np.where(same, 0.0, np.abs(one - two) - relative * np.abs(one)).reshape(-1)
        over = np.where(np.isnan(over), _INFINITE, over)
        needed = max(needed, float(np.partition(over, -1 - int(outliers * over.size))[-1 - int(outliers * over.size)]))
    return needed
