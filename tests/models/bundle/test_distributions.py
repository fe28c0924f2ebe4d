"""Distributions of values, and the shift between two of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.frame import Array
from hedgerow.models.bundle.distributions import Accumulator, rebinned, shift
from hedgerow.models.bundle.manifest import Distribution

RNG = np.random.default_rng(1)
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200)


def distribution_of(*arrays: Array, resolution: float = 0.0) -> Distribution:
    accumulator = Accumulator()
    for array in arrays:
        accumulator.add(array)
    return accumulator.distribution(resolution)


@given(VALUES, st.integers(1, 50))
def test_values_may_be_added_in_any_number_of_arrays(values: list[float], size: int) -> None:
    array = np.array(values, np.float32)

    whole = distribution_of(array)
    parts = distribution_of(*(array[begin : begin + size] for begin in range(0, len(array), size)))

    assert parts.counts == whole.counts
    assert parts.edges == whole.edges
    assert parts.mean == pytest.approx(whole.mean, abs=1e-6)
    assert parts.deviation == pytest.approx(whole.deviation, abs=1e-6)


@given(VALUES)
def test_a_distribution_agrees_with_numpy(values: list[float]) -> None:
    array = np.array(values, np.float32)

    found = distribution_of(array)

    assert found.values == sum(found.counts) == len(values)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    assert found.mean == pytest.approx(array.astype(np.float64).mean(), abs=1e-6)
    assert found.deviation == pytest.approx(array.astype(np.float64).std(), abs=1e-6)
    assert sorted(found.edges) == list(found.edges)
    assert len(found.counts) == len(found.edges) + 1
    assert shift(found, found.counts) == 0


def test_bins_hold_a_tenth_each() -> None:
    found = distribution_of(RNG.normal(size=10_000))

    assert len(found.counts) == 10
    assert max(found.counts) - min(found.counts) <= 1


def test_a_frequent_value_has_its_own_bin() -> None:
    """Half of a rectifier's outputs are zero, or nearly zero on some devices."""
    relu = np.maximum(RNG.normal(size=10_000), 0)
    found = distribution_of(relu)
    live = Accumulator(found.edges)

    live.add(relu + RNG.normal(size=10_000) * 1e-6)

    assert shift(found, live.counts) < 0.01


def test_a_changed_constant_is_a_shift() -> None:
    found = distribution_of(np.full(1000, 0.7, np.float32))
    same, other = Accumulator(found.edges), Accumulator(found.edges)

    same.add(np.full(1000, 0.70001))
    other.add(np.full(1000, 0.71))

    assert shift(found, same.counts) == 0
    assert shift(found, other.counts) > 1


def test_values_that_are_not_finite_are_counted_separately() -> None:
    found = distribution_of(np.array([1.0, np.nan, np.inf, -np.inf, 3.0], np.float16))

    assert (found.values, found.not_finite, found.mean) == (2, 3, 2)
    assert distribution_of(np.array([np.nan])).values == 0


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16])
def test_every_type_is_accepted(dtype: type) -> None:
    assert distribution_of(np.array([[0, 1], [1, 1]], dtype)).mean == 0.75


def test_memory_is_bounded_and_bins_stay_correct() -> None:
    """A detector's outputs over a thousand frames do not fit into memory."""
    accumulator = Accumulator()
    for begin in range(10):
        accumulator.add(np.linspace(begin, begin + 1, 100_000, endpoint=False))
    found = accumulator.distribution()

    assert found.values == 1_000_000
    assert sum(found.counts) < 200_000
    assert found.edges == pytest.approx(range(1, 10), abs=0.05)


@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 500))
def test_a_part_of_an_array_covers_all_columns(rows: int, columns: int, at_most: int) -> None:
    """Otherwise boxes might be sampled, but not scores."""
    array = np.broadcast_to(np.arange(columns), (rows, columns))
    accumulator = Accumulator(range(1, columns), at_most=at_most)

    accumulator.add(array)

    assert sum(accumulator.counts) <= at_most
    if at_most >= 2 * columns + 1 and rows * columns > at_most:
        seen = [count for count in accumulator.counts if count]
        assert len(seen) > columns // 3


def test_the_shift_is_the_population_stability_index() -> None:
    """Σ (q - p) · ln(q / p), with half a value added to every bin."""
    baseline = Distribution(
        values=1000, mean=0, deviation=1, minimum=0, maximum=1, edges=(0.2, 0.6), counts=(500, 300, 200)
    )

    assert shift(baseline, (100, 50, 50)) == pytest.approx(
        0.02027, abs=1e-4
    )  # 0.05 · ln(0.3 / 0.25) + 0.05 · ln(0.25 / 0.2)
    assert shift(baseline, (500, 300, 200)) == 0
    assert shift(baseline, (0, 0, 0)) == 0
    assert math.isfinite(shift(baseline, (0, 0, 10_000)))
    with pytest.raises(ValueError, match="2 counts"):
        shift(baseline, (1, 2))


def test_values_that_move_or_widen_are_a_shift_and_others_are_not() -> None:
    baseline = distribution_of(RNG.normal(size=20_000))

    def shift_of(values: Array) -> float:
        live = Accumulator(baseline.edges, at_most=4096)
        live.add(values)
        return shift(baseline, live.counts)

    assert shift_of(RNG.normal(size=20_000)) < 0.02
    assert shift_of(RNG.normal(0.5, 1, size=20_000)) > 0.2
    assert shift_of(RNG.normal(0, 3, size=20_000)) > 0.25
    assert shift_of(np.zeros(20_000)) > 1


def test_deciles_closer_than_the_resolution_are_merged() -> None:
    """Most of a detector's scores are nearly zero, and an int8 variant makes them zero."""
    scores = np.concatenate([RNG.random(9_000) * 1e-3, RNG.random(1_000)])
    coarse = distribution_of(scores, resolution=0.005)
    live = Accumulator(coarse.edges)

    live.add(np.round(scores * 255) / 255)

    assert shift(coarse, live.counts) < 0.05


@given(VALUES)
def test_rebinning_into_the_same_bins_changes_nothing(values: list[float]) -> None:
    found = distribution_of(np.array(values))

    np.testing.assert_allclose(rebinned(found, found.edges), found.counts, atol=1e-6)


@given(VALUES, VALUES)
def test_rebinning_loses_no_values(values: list[float], others: list[float]) -> None:
    found = rebinned(distribution_of(np.array(values)), distribution_of(np.array(others)).edges)

    assert found.min() >= -1e-6
    assert found.sum() == pytest.approx(len(values))


def test_a_shift_is_found_between_distributions_with_different_bins() -> None:
    """Each bundle has its own bins."""
    rng = np.random.default_rng(0)
    before, same, moved = (distribution_of(rng.normal(mean, 1, 20_000)) for mean in (0, 0, 1))

    assert shift(before, rebinned(same, before.edges).round().astype(int).tolist()) < 0.05
    assert shift(before, rebinned(moved, before.edges).round().astype(int).tolist()) > 0.5
