"""Distributions: the same however the values come, and moved values show."""

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


def gathered(*arrays: Array, resolution: float = 0.0) -> Distribution:
    accumulator = Accumulator()
    for array in arrays:
        accumulator.add(array)
    return accumulator.distribution(resolution)


@given(VALUES, st.integers(1, 50))
def test_it_does_not_matter_how_values_are_cut(values: list[float], size: int) -> None:
    array = np.array(values, np.float32)

    whole = gathered(array)
    parts = gathered(*(array[begin : begin + size] for begin in range(0, len(array), size)))

    assert parts.counts == whole.counts
    assert parts.edges == whole.edges
    assert parts.mean == pytest.approx(whole.mean, abs=1e-6)
    assert parts.deviation == pytest.approx(whole.deviation, abs=1e-6)


@given(VALUES)
def test_a_distribution_is_what_numpy_says(values: list[float]) -> None:
    array = np.array(values, np.float32)

    found = gathered(array)

    assert found.values == sum(found.counts) == len(values)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    assert found.mean == pytest.approx(array.astype(np.float64).mean(), abs=1e-6)
    assert found.deviation == pytest.approx(array.astype(np.float64).std(), abs=1e-6)
    assert sorted(found.edges) == list(found.edges)
    assert len(found.counts) == len(found.edges) + 1
    assert shift(found, found.counts) == 0


def test_bins_hold_a_tenth_each() -> None:
    found = gathered(RNG.normal(size=10_000))

    assert len(found.counts) == 10
    assert max(found.counts) - min(found.counts) <= 1


def test_what_many_values_are_has_a_bin_of_its_own() -> None:
    """Half of a rectifier's outputs are zero, on some devices not quite."""
    relu = np.maximum(RNG.normal(size=10_000), 0)
    found = gathered(relu)
    live = Accumulator(found.edges)

    live.add(relu + RNG.normal(size=10_000) * 1e-6)

    assert shift(found, live.counts) < 0.01


def test_a_constant_that_changes_shows() -> None:
    found = gathered(np.full(1000, 0.7, np.float32))
    same, other = Accumulator(found.edges), Accumulator(found.edges)

    same.add(np.full(1000, 0.70001))
    other.add(np.full(1000, 0.71))

    assert shift(found, same.counts) == 0
    assert shift(found, other.counts) > 1


def test_what_is_not_finite_is_counted_apart() -> None:
    found = gathered(np.array([1.0, np.nan, np.inf, -np.inf, 3.0], np.float16))

    assert (found.values, found.not_finite, found.mean) == (2, 3, 2)
    assert gathered(np.array([np.nan])).values == 0


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16])
def test_every_type_is_taken(dtype: type) -> None:
    assert gathered(np.array([[0, 1], [1, 1]], dtype)).mean == 0.75


def test_memory_is_bounded_and_the_bins_stay_right() -> None:
    """A detector's outputs over a thousand frames do not fit into memory."""
    accumulator = Accumulator()
    for begin in range(10):
        accumulator.add(np.linspace(begin, begin + 1, 100_000, endpoint=False))
    found = accumulator.distribution()

    assert found.values == 1_000_000
    assert sum(found.counts) < 200_000
    assert found.edges == pytest.approx(range(1, 10), abs=0.05)


@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 500))
def test_a_part_of_an_array_meets_every_column(rows: int, columns: int, at_most: int) -> None:
    """Or else boxes would be looked at and scores not."""
    array = np.broadcast_to(np.arange(columns), (rows, columns))
    accumulator = Accumulator(range(1, columns), at_most=at_most)

    accumulator.add(array)

    assert sum(accumulator.counts) <= at_most
    if at_most >= 2 * columns + 1 and rows * columns > at_most:
        seen = [count for count in accumulator.counts if count]
        assert len(seen) > columns // 3


def test_the_index_is_the_published_one() -> None:
    """Σ (q - p) · ln(q / p), with half a value more in every bin."""
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


def test_values_that_move_or_widen_show_and_others_do_not() -> None:
    baseline = gathered(RNG.normal(size=20_000))

    def now(values: Array) -> float:
        live = Accumulator(baseline.edges, at_most=4096)
        live.add(values)
        return shift(baseline, live.counts)

    assert now(RNG.normal(size=20_000)) < 0.02
    assert now(RNG.normal(0.5, 1, size=20_000)) > 0.2
    assert now(RNG.normal(0, 3, size=20_000)) > 0.25
    assert now(np.zeros(20_000)) > 1


def test_deciles_closer_than_what_variants_differ_by_are_one() -> None:
    """A detector's scores are nearly all nearly zero, and an int8 variant makes them zero."""
    scores = np.concatenate([RNG.random(9_000) * 1e-3, RNG.random(1_000)])
    coarse = gathered(scores, resolution=0.005)
    live = Accumulator(coarse.edges)

    live.add(np.round(scores * 255) / 255)

    assert shift(coarse, live.counts) < 0.05


@given(VALUES)
def test_in_its_own_bins_a_distribution_is_what_it_was(values: list[float]) -> None:
    found = gathered(np.array(values))

    np.testing.assert_allclose(rebinned(found, found.edges), found.counts, atol=1e-6)


@given(VALUES, VALUES)
def test_no_value_is_lost_between_the_bins_of_another(values: list[float], others: list[float]) -> None:
    found = rebinned(gathered(np.array(values)), gathered(np.array(others)).edges)

    assert found.min() >= -1e-6
    assert found.sum() == pytest.approx(len(values))


def test_what_moved_is_told_from_what_did_not_by_bins_of_their_own() -> None:
    """Two bundles have bins of their own each; values that are like each other stay so."""
    draw = np.random.default_rng(0)
    before, alike, moved = (gathered(draw.normal(mean, 1, 20_000)) for mean in (0, 0, 1))

    assert shift(before, rebinned(alike, before.edges).round().astype(int).tolist()) < 0.05
    assert shift(before, rebinned(moved, before.edges).round().astype(int).tolist()) > 0.5
