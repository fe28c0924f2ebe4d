"""Accuracy loss of a variant, and tolerances by output."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.frame import Array
from hedgerow.models.build.quantisation_loss import AccuracyLoss, ToleranceEstimator
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.golden import compare
from hedgerow.models.bundle.manifest import Distribution

RNG = np.random.default_rng(0)
ORIGINAL = RNG.normal(0, 2, (50, 4)).astype(np.float32)


def baseline(array: Array) -> dict[str, Distribution]:
    accumulator = Accumulator()
    accumulator.add(array)
    return {"y": accumulator.distribution()}


def losses(actual: Array, labels: int = 0, original: Array = ORIGINAL) -> dict[str, float]:
    loss = AccuracyLoss(labels)
    loss.add({"y": original}, {"y": actual})
    return loss.report(baseline(original))


def test_identical_outputs_lose_nothing() -> None:
    assert losses(ORIGINAL.copy()) == {"rms": 0, "worst": 0, "shift": 0}


def test_the_loss_is_relative_to_the_standard_deviation_of_outputs() -> None:
    """0.2 over a standard deviation of 2 is a tenth, whatever the unit."""
    assert losses(ORIGINAL + np.float32(0.2))["rms"] == pytest.approx(0.1, rel=0.1)
    assert losses((ORIGINAL + np.float32(0.2)) * 1000, original=ORIGINAL * 1000)["rms"] == pytest.approx(0.1, rel=0.1)


def test_identical_decisions_are_counted_if_there_are_labels() -> None:
    other = ORIGINAL.copy()
    other[:5] = -other[:5]

    assert losses(ORIGINAL.copy(), labels=4)["top1"] == 1
    assert losses(other, labels=4)["top1"] == pytest.approx(0.9, abs=0.05)
    assert "top1" not in losses(other, labels=80)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nan_or_infinity_in_place_of_a_number_is_an_infinite_loss(number: float) -> None:
    other = ORIGINAL.copy()
    other[7, 1] = number

    assert losses(other)["rms"] == math.inf
    assert losses(ORIGINAL[:, :2])["rms"] == math.inf, "so is another shape"


VALUES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30)


@given(VALUES, VALUES, st.sampled_from(["fp32", "fp16", "bf16", "int8", "q4_0"]))
def test_the_tolerance_covers_all_observed_differences(
    values: list[float], others: list[float], precision: str
) -> None:
    size = min(len(values), len(others))
    one, two = (np.array(each[:size], np.float32) for each in (values, others))
    estimator = ToleranceEstimator(precision)
    estimator.add_backends({"y": one, "z": one}, [{"y": two, "z": one}])

    tolerance = estimator.tolerance()

    assert compare(one, two, tolerance.of("y"))[0] <= 1
    assert "z" not in tolerance.outputs, "an output that agrees keeps its tolerance"


def test_nan_does_not_make_the_tolerance_infinite() -> None:
    estimator = ToleranceEstimator("fp32")
    estimator.add_backends({"y": ORIGINAL}, [{"y": np.full_like(ORIGINAL, np.nan)}])

    assert math.isfinite(estimator.tolerance().of("y").absolute)
