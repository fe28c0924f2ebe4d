"""Canary analysis: the limits of a version, and when it is kept or rolled back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.bundle.distributions import shift
from hedgerow.models.bundle.manifest import Distribution
from hedgerow.models.monitor.canary_analysis import MAX_PERIODS, Measures, excess_shift, judge, slowdown
from hedgerow.wire.fleet import SwapPolicy

POLICY = SwapPolicy(probation_s=60, min_frames=100, max_error_share=0.01, max_slowdown=2, max_shift=0.5)


@pytest.mark.parametrize(
    ("measured", "action", "code"),
    [
        ({"elapsed_s": 59, "frames": 1000}, "wait", ""),
        ({"elapsed_s": 60, "frames": 1000}, "keep", ""),
        ({"elapsed_s": 60, "frames": 99}, "wait", ""),
        ({"elapsed_s": 60, "frames": 100}, "keep", ""),
        ({"elapsed_s": 599.9, "frames": 99}, "wait", ""),
        ({"elapsed_s": 60 * MAX_PERIODS, "frames": 99}, "roll-back", "too-few-frames"),
        ({"elapsed_s": 1, "frames": 1000, "not_finite": 10}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "not_finite": 11}, "roll-back", "not-finite"),
        ({"elapsed_s": 1, "frames": 10, "not_finite": 1}, "wait", ""),
        ({"elapsed_s": 1, "frames": 10, "not_finite": 2}, "roll-back", "not-finite"),
        ({"elapsed_s": 1, "frames": 1000, "failures": 10}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "failures": 11}, "roll-back", "errors"),
        ({"elapsed_s": 1, "frames": 1000, "failures": 20, "failures_before": 0.01}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "failures": 21, "failures_before": 0.01}, "roll-back", "errors"),
        ({"elapsed_s": 1, "frames": 1000, "failures": 11, "failures_before": 0.01}, "wait", ""),
        ({"elapsed_s": 1, "frames": 0, "crashes": 1}, "wait", ""),
        ({"elapsed_s": 1, "frames": 0, "crashes": 2}, "roll-back", "crashed"),
        ({"elapsed_s": 1, "frames": 0, "crashes": 2, "crashes_before": 1}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "slowdown": 2.0}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "slowdown": 2.1}, "roll-back", "slower"),
        ({"elapsed_s": 1, "frames": 1000, "shift": {"y": 0.6}}, "wait", ""),
        ({"elapsed_s": 60, "frames": 1000, "shift": {"y": 0.5}}, "keep", ""),
        ({"elapsed_s": 60, "frames": 1000, "shift": {"x": 0.1, "y": 0.6}}, "roll-back", "shifted"),
        ({"elapsed_s": 1, "frames": 1000, "compared": 1000, "disagreed": 50}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "compared": 1000, "disagreed": 51}, "roll-back", "disagrees"),
        ({"elapsed_s": 1, "frames": 1000, "compared": 10, "disagreed": 5}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "compared": 10, "disagreed": 6}, "roll-back", "disagrees"),
        ({"elapsed_s": 1, "frames": 1000, "growth_bytes": 256 << 20}, "wait", ""),
        ({"elapsed_s": 1, "frames": 1000, "growth_bytes": (256 << 20) + 1}, "roll-back", "memory-growth"),
    ],
)
def test_a_version_is_kept_rolled_back_or_observed_further(measured: dict[str, Any], action: str, code: str) -> None:
    """Shares are of `min_frames` at least: of ten frames, one may fail, since it is 1 % of 100; two may not."""
    verdict = judge(POLICY, Measures(**measured))

    assert (verdict.action, verdict.code) == (action, code)
    assert bool(verdict.reason) == (action == "roll-back")


@pytest.mark.parametrize(
    ("measured", "action"),
    [
        ({"elapsed_s": 9.9, "frames": 100}, "wait"),
        ({"elapsed_s": 10, "frames": 100}, "keep"),
        ({"elapsed_s": 99, "frames": 99}, "wait"),
        ({"elapsed_s": 100, "frames": 99}, "roll-back"),
    ],
)
def test_the_observation_period_may_differ_from_the_policys(measured: dict[str, Any], action: str) -> None:
    assert judge(POLICY, Measures(**measured), 10).action == action


@pytest.mark.parametrize(
    ("share", "measured", "action"),
    [
        (0.5, {"not_finite": 1}, "roll-back"),
        (1.0, {"not_finite": 1}, "wait"),
        (0.5, {"compared": 0, "disagreed": 1}, "roll-back"),
        (1.0, {"compared": 0, "disagreed": 1}, "wait"),
    ],
)
def test_without_min_frames_shares_are_of_at_least_one_frame(
    share: float, measured: dict[str, Any], action: str
) -> None:
    policy = SwapPolicy(min_frames=0, max_error_share=share, max_disagreement=share)

    assert judge(policy, Measures(**measured)).action == action


def test_measures_are_zero_at_first() -> None:
    assert Measures() == Measures(
        elapsed_s=0, frames=0, failures=0, failures_before=0, not_finite=0, crashes=0, crashes_before=0,
        slowdown=None, shift={}, growth_bytes=0, compared=0, disagreed=0,
    )  # fmt: skip


_counts = st.integers(0, 500)


@given(_counts, _counts, _counts, st.floats(0, 1000), st.booleans())
def test_more_failures_never_make_a_verdict_better(
    frames: int, failures: int, not_finite: int, elapsed_s: float, late: bool
) -> None:
    order = {"keep": 0, "wait": 1, "roll-back": 2}
    period_s = 0 if late else 60
    one = Measures(elapsed_s=elapsed_s, frames=frames, failures=failures, not_finite=not_finite)
    worse = Measures(elapsed_s=elapsed_s, frames=frames, failures=failures + 1, not_finite=not_finite + 1)

    assert order[judge(POLICY, one, period_s).action] <= order[judge(POLICY, worse, period_s).action]


@given(st.lists(st.floats(1, 50), min_size=16, max_size=64), st.lists(st.floats(1, 50), min_size=16, max_size=64))
def test_other_processes_do_not_make_a_version_slow(old: list[float], new: list[float]) -> None:
    """Three of four batches may be delayed by any time, in either version."""
    quarter = {rows: [1.0] * (rows * 8) for rows in (1, 2, 4)}
    delayed = {rows: sorted(new * rows)[: rows * 24] for rows in quarter}
    busy = {rows: quarter[rows] + delayed[rows][: 3 * len(quarter[rows]) - 1] for rows in quarter}

    assert slowdown({1: old + [1.0] * len(old)}, {1: new + [1.0] * len(new)}) == 1.0
    assert slowdown(quarter, busy) in (None, 1.0)


def test_a_slow_version_is_found_whatever_the_sizes_of_its_batches() -> None:
    old = {1: [1.0] * 20, 4: [2.0] * 20}

    assert slowdown(old, {1: [3.0] * 20}) == 3.0
    assert slowdown(old, {4: [6.0] * 20}) == 3.0
    assert slowdown(old, {2: [6.0] * 20}) == 3.0, "two rows would have taken at most as long as four"
    assert slowdown(old, {8: [12.0] * 20}) == 3.0


def test_an_unknown_size_is_compared_with_the_next_larger_known_one() -> None:
    old = {2: [1.0] * 16, 4: [2.0] * 16, 8: [9.0] * 16}

    assert slowdown(old, {3: [6.0] * 16}) == 3.0


def test_the_first_quartile_is_compared() -> None:
    """Of sixteen, the fifth fastest: four are faster."""
    old = {1: [float(number) for number in range(1, 17)]}

    assert slowdown(old, {1: [10.0] * 16}) == 2.0


def test_sizes_are_weighted_by_their_number_of_batches() -> None:
    old = {1: [1.0] * 16, 2: [2.0] * 16}

    assert slowdown(old, {1: [2.0] * 16, 2: [8.0] * 48}) == (2 * 16 + 8 * 48) / (1 * 16 + 2 * 48)


def test_batches_that_took_no_time_cannot_be_compared() -> None:
    assert slowdown({1: [0.0] * 16}, {1: [1.0] * 16}) is None


def test_too_few_batches_cannot_be_compared() -> None:
    assert slowdown({1: [1.0] * 16}, {1: [9.0] * 16}) == 9.0
    assert slowdown({1: [1.0] * 20}, {1: [9.0] * 15}) is None
    assert slowdown({1: [1.0] * 15}, {1: [9.0] * 20}) is None


BASELINE = Distribution(values=300, mean=0, deviation=1, minimum=-2, maximum=2, edges=(-1, 1), counts=(100, 100, 100))


def test_the_shift_expected_by_chance_is_subtracted() -> None:
    """(bins - 1) · (1 / samples + 1 / frames)"""
    moved = (0, 0, 300)

    assert excess_shift(BASELINE, moved, 100, 50) == pytest.approx(shift(BASELINE, moved) - 2 * (0.01 + 0.02))


def test_less_than_chance_is_no_shift() -> None:
    assert excess_shift(BASELINE, (9, 10, 11), 10, 10) == 0.0


@pytest.mark.parametrize(("counts", "samples", "frames"), [((0, 0, 0), 10, 10), ((0, 0, 9), 0, 10), ((0, 0, 9), 10, 0)])
def test_without_values_there_is_no_shift(counts: tuple[int, ...], samples: int, frames: int) -> None:
    assert excess_shift(BASELINE, counts, samples, frames) == 0.0
