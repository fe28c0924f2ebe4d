"""Golden cases: inputs, and what a variant made of them where it was built. On each device it has to do so again.

They show that a model computes here what it computed there: that no file, driver, library or processor spoils it. Whether
what it computes is any good, they do not show.
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
    """What came of the golden cases.

    Attributes:
        passed: whether all outputs are within tolerance; with no case there is nothing to fail.
        worst: how far the worst value is off, in tolerances: up to 1 passes. Values that the tolerance lets be further
            off are not counted.
        detail: what was compared, or what is wrong, as a sentence.
    """

    passed: bool
    worst: float
    detail: str


def check_golden(run: Run, folder: Path, manifest: Manifest, variant: Variant) -> GoldenOutcome:
    """Run a variant's golden inputs and compare.

    Args:
        run: runs the loaded variant. It is given every input, those of `serving.constants` and hidden state among them.
        folder: the bundle's.
    Returns: what came of it. A model that fails to run has not passed; the error is in `detail`.
    Raises: BadArrays: a golden file cannot be read.
    """
    cases = [case for case in manifest.golden if variant.name in case.outputs]
    worst, where = 0.0, ""
    for number, case in enumerate(cases, 1):
        expected = read_arrays(folder / case.outputs[variant.name].path)
        missing = sorted({output.name for output in manifest.outputs} - expected.keys())
        if missing or not expected:
            what = ", ".join(missing) or "any output"
            return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} does not say what {what} should be")
        try:
            got = run(read_arrays(folder / case.inputs.path))
        except HedgerowError as error:
            return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} failed: {error}")
        for name, right in expected.items():
            if name not in got:
                return GoldenOutcome(False, _INFINITE, f"case {number} of {len(cases)} gave no {name}")
            off, what = compare(right, got[name], variant.tolerance.of(name))
            if off >= worst:
                worst, where = off, f"case {number} of {len(cases)}, {name}: {what}"
    if not cases:
        return GoldenOutcome(True, 0.0, f"{variant.name} has no golden cases")
    if worst > 1:
        return GoldenOutcome(False, worst, where)
    many = "1 golden case" if len(cases) == 1 else f"{len(cases)} golden cases"
    return GoldenOutcome(
        True, worst, f"{many}; furthest off: {where}" if worst else f"{many}, the same to the last digit"
    )


def compare(right: Array, got: Array, tolerance: Tolerance) -> tuple[float, str]:
    """How far an output is off, in tolerances, and that in words.

    Whole numbers and booleans are right or wrong; a NaN is right only where there was one.
    """
    if right.shape != got.shape or right.dtype != got.dtype:
        return _INFINITE, f"{got.dtype}{list(got.shape)} instead of {right.dtype}{list(right.shape)}"
    if right.size == 0:
        return 0.0, "nothing to compare"
    off = _off(right, got, tolerance).reshape(-1)
    let_be = int(tolerance.outliers * off.size)
    place = int(np.argpartition(off, -1 - let_be)[-1 - let_be])
    many = int((off > 1).sum())
    worst = float(off[place])
    what = f"{got.reshape(-1)[place]:.6g} instead of {right.reshape(-1)[place]:.6g}"
    if worst <= 1:
        return worst, f"{what}, {worst:.2g} of the tolerance"
    return (
        worst,
        f"{what}; {many:,} of {off.size:,} values are off by more than the tolerance, up to {off.max():.3g} times",
    )


def _off(right: Array, got: Array, tolerance: Tolerance) -> Array:
    if right.dtype.kind != "f":
        return np.where(right == got, 0.0, _INFINITE)
    one, two = right.astype(np.float64), got.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(one - two) / (tolerance.absolute + tolerance.relative * np.abs(one))
    return np.where(same, 0.0, np.where(np.isnan(off), _INFINITE, off))


def needed_tolerance(
    right: Mapping[str, Array], got: Mapping[str, Array], relative: float, outliers: float = 0.0
) -> float:
    """The absolute tolerance that outputs would need beside a relative one; infinite if none helps."""
    needed = 0.0
    for name, array in right.items():
        other = got.get(name)
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
