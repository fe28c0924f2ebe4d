"""What lower precision costs, in figures, and how far devices may differ, for each output by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.frame import Array
from hedgerow.models.build.quantisation_loss import Cost, Spread
from hedgerow.models.bundle.distributions import Accumulator
from hedgerow.models.bundle.golden import compare
from hedgerow.models.bundle.manifest import Distribution

RNG = np.random.default_rng(0)
RIGHT = RNG.normal(0, 2, (50, 4)).astype(np.float32)


def known(array: Array) -> dict[str, Distribution]:
    gathered = Accumulator()
    gathered.add(array)
    return {"y": gathered.distribution()}


def cost(got: Array, labels: int = 0, right: Array = RIGHT) -> dict[str, float]:
    found = Cost(labels)
    found.add({"y": right}, {"y": got})
    return found.report(known(right))


def test_the_same_costs_nothing() -> None:
    assert cost(RIGHT.copy()) == {"rms": 0, "worst": 0, "shift": 0}


def test_what_is_off_is_told_by_what_the_outputs_vary_by() -> None:
    """0.2 of a deviation of 2 is a tenth, whatever unit it is in."""
    assert cost(RIGHT + np.float32(0.2))["rms"] == pytest.approx(0.1, rel=0.1)
    assert cost((RIGHT + np.float32(0.2)) * 1000, right=RIGHT * 1000)["rms"] == pytest.approx(0.1, rel=0.1)


def test_decisions_are_counted_where_there_are_labels() -> None:
    other = RIGHT.copy()
    other[:5] = -other[:5]

    assert cost(RIGHT.copy(), labels=4)["top1"] == 1
    assert cost(other, labels=4)["top1"] == pytest.approx(0.9, abs=0.05)
    assert "top1" not in cost(other, labels=80)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_variant_that_gives_no_number_where_there_was_one_costs_everything(number: float) -> None:
    other = RIGHT.copy()
    other[7, 1] = number

    assert cost(other)["rms"] == math.inf
    assert cost(RIGHT[:, :2])["rms"] == math.inf, "nor where it gives another shape"


VALUES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30)


@given(VALUES, VALUES, st.sampled_from(["fp32", "fp16", "bf16", "int8", "q4_0"]))
def test_whatever_was_seen_to_differ_is_within_the_tolerance(
    values: list[float], others: list[float], precision: str
) -> None:
    size = min(len(values), len(others))
    one, two = (np.array(each[:size], np.float32) for each in (values, others))
    spread = Spread(precision)
    spread.between({"y": one, "z": one}, [{"y": two, "z": one}])

    tolerance = spread.tolerance()

    assert compare(one, two, tolerance.of("y"))[0] <= 1
    assert "z" not in tolerance.outputs, "an output that agrees is not let off for another one"


def test_a_device_that_gave_no_number_makes_no_tolerance_without_end() -> None:
    spread = Spread("fp32")
    spread.between({"y": RIGHT}, [{"y": np.full_like(RIGHT, np.nan)}])

    assert math.isfinite(spread.tolerance().of("y").absolute)
