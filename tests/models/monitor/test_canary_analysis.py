"""What a version on probation is judged by, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.bundle.distributions import shift
from hedgerow.models.bundle.manifest import Distribution
from hedgerow.models.monitor.canary_analysis import PATIENCE, Measures, excess_shift, judge, slowdown
from hedgerow.wire.fleet import SwapPolicy

POLICY = SwapPolicy(probation_s=60, min_frames=100, max_error_share=0.01, max_slowdown=2, max_shift=0.5)


@pytest.mark.parametrize(
    ("measured", "act", "code"),
    [
        ({"elapsed_s": 59, "frames": 1000}, "wait", ""),
        ({"elapsed_s": 60, "frames": 1000}, "keep", ""),
        ({"elapsed_s": 60, "frames": 99}, "wait", ""),
        ({"elapsed_s": 60, "frames": 100}, "keep", ""),
        ({"elapsed_s": 599.9, "frames": 99}, "wait", ""),
        ({"elapsed_s": 60 * PATIENCE, "frames": 99}, "roll-back", "too-few-frames"),
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
def test_a_version_is_kept_taken_back_or_watched_for_longer(measured: dict[str, Any], act: str, code: str) -> None:
    """One frame in ten is not a hundredth yet if a hundred are to be seen; two are more than the rest could mend."""
    verdict = judge(POLICY, Measures(**measured))

    assert (verdict.action, verdict.code) == (act, code)
    assert bool(verdict.reason) == (act == "roll-back")


@pytest.mark.parametrize(
    ("measured", "act"),
    [
        ({"elapsed_s": 9.9, "frames": 100}, "wait"),
        ({"elapsed_s": 10, "frames": 100}, "keep"),
        ({"elapsed_s": 99, "frames": 99}, "wait"),
        ({"elapsed_s": 100, "frames": 99}, "roll-back"),
    ],
)
def test_it_may_be_watched_for_another_time_than_the_policys(measured: dict[str, Any], act: str) -> None:
    assert judge(POLICY, Measures(**measured), 10).action == act


@pytest.mark.parametrize(
    ("share", "measured", "act"),
    [
        (0.5, {"not_finite": 1}, "roll-back"),
        (1.0, {"not_finite": 1}, "wait"),
        (0.5, {"compared": 0, "disagreed": 1}, "roll-back"),
        (1.0, {"compared": 0, "disagreed": 1}, "wait"),
    ],
)
def test_where_no_frames_are_asked_for_shares_are_of_one_at_least(
    share: float, measured: dict[str, Any], act: str
) -> None:
    policy = SwapPolicy(min_frames=0, max_error_share=share, max_disagreement=share)

    assert judge(policy, Measures(**measured)).action == act


def test_a_version_that_has_not_begun_has_done_nothing() -> None:
    assert Measures() == Measures(
        elapsed_s=0, frames=0, failures=0, failures_before=0, not_finite=0, crashes=0, crashes_before=0,
        slowdown=None, shift={}, growth_bytes=0, compared=0, disagreed=0,
    )  # fmt: skip


_counts = st.integers(0, 500)


@given(_counts, _counts, _counts, st.floats(0, 1000), st.booleans())
def test_more_of_what_is_wrong_never_makes_a_verdict_better(
    frames: int, failures: int, not_finite: int, elapsed_s: float, late: bool
) -> None:
    order = {"keep": 0, "wait": 1, "roll-back": 2}
    period_s = 0 if late else 60
    one = Measures(elapsed_s=elapsed_s, frames=frames, failures=failures, not_finite=not_finite)
    worse = Measures(elapsed_s=elapsed_s, frames=frames, failures=failures + 1, not_finite=not_finite + 1)

    assert order[judge(POLICY, one, period_s).action] <= order[judge(POLICY, worse, period_s).action]


@given(st.lists(st.floats(1, 50), min_size=16, max_size=64), st.lists(st.floats(1, 50), min_size=16, max_size=64))
def test_busy_neighbours_do_not_make_a_version_slow(old: list[float], new: list[float]) -> None:
    """Three batches of four may be held up for any time, in either version."""
    quarter = {rows: [1.0] * (rows * 8) for rows in (1, 2, 4)}
    held_up = {rows: sorted(new * rows)[: rows * 24] for rows in quarter}
    busy = {rows: quarter[rows] + held_up[rows][: 3 * len(quarter[rows]) - 1] for rows in quarter}

    assert slowdown({1: old + [1.0] * len(old)}, {1: new + [1.0] * len(new)}) == 1.0
    assert slowdown(quarter, busy) in (None, 1.0)


def test_a_version_that_is_slow_throughout_is_found_whatever_the_sizes_of_its_batches() -> None:
    old = {1: [1.0] * 20, 4: [2.0] * 20}

    assert slowdown(old, {1: [3.0] * 20}) == 3.0
    assert slowdown(old, {4: [6.0] * 20}) == 3.0
    assert slowdown(old, {2: [6.0] * 20}) == 3.0, "for two it would have taken as long as for four, at most"
    assert slowdown(old, {8: [12.0] * 20}) == 3.0


def test_the_next_larger_size_that_is_known_tells_of_one_that_is_not() -> None:
    old = {2: [1.0] * 16, 4: [2.0] * 16, 8: [9.0] * 16}

    assert slowdown(old, {3: [6.0] * 16}) == 3.0


def test_the_quickest_quarter_is_compared() -> None:
    """Of sixteen the fifth: what four were quicker than."""
    old = {1: [float(number) for number in range(1, 17)]}

    assert slowdown(old, {1: [10.0] * 16}) == 2.0


def test_sizes_count_as_often_as_they_occur() -> None:
    old = {1: [1.0] * 16, 2: [2.0] * 16}

    assert slowdown(old, {1: [2.0] * 16, 2: [8.0] * 48}) == (2 * 16 + 8 * 48) / (1 * 16 + 2 * 48)


def test_batches_that_took_no_time_say_nothing() -> None:
    assert slowdown({1: [0.0] * 16}, {1: [1.0] * 16}) is None


def test_too_few_batches_say_nothing() -> None:
    assert slowdown({1: [1.0] * 16}, {1: [9.0] * 16}) == 9.0
    assert slowdown({1: [1.0] * 20}, {1: [9.0] * 15}) is None
    assert slowdown({1: [1.0] * 15}, {1: [9.0] * 20}) is None


BASELINE = Distribution(values=300, mean=0, deviation=1, minimum=-2, maximum=2, edges=(-1, 1), counts=(100, 100, 100))


def test_of_a_shift_that_is_taken_off_which_chance_explains() -> None:
    """(bins - 1) · (1 / samples + 1 / frames)"""
    moved = (0, 0, 300)

    assert excess_shift(BASELINE, moved, 100, 50) == pytest.approx(shift(BASELINE, moved) - 2 * (0.01 + 0.02))


def test_less_than_chance_explains_is_no_shift() -> None:
    assert excess_shift(BASELINE, (9, 10, 11), 10, 10) == 0.0


@pytest.mark.parametrize(("counts", "samples", "frames"), [((0, 0, 0), 10, 10), ((0, 0, 9), 0, 10), ((0, 0, 9), 10, 0)])
def test_nothing_to_compare_is_no_shift(counts: tuple[int, ...], samples: int, frames: int) -> None:
    assert excess_shift(BASELINE, counts, samples, frames) == 0.0
