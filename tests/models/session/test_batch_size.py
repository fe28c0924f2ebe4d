"""Batch size policy: a batch takes all waiting rows, unless it would take long and other streams could share them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.session.batch_size import LONG_S, BatchSizePolicy


def test_short_batches_take_all_waiting_rows() -> None:
    policy = BatchSizePolicy(64, 2)
    for _ in range(50):
        policy.record(20, 20 * LONG_S / 1000)

    assert policy.max_rows(40) == 64


def test_a_long_batch_leaves_the_other_stream_its_share() -> None:
    policy = BatchSizePolicy(8, 2)
    for _ in range(50):
        policy.record(8, 8 * LONG_S)

    assert [policy.max_rows(waiting) for waiting in (8, 5, 2)] == [4, 3, 1]


def test_a_single_stream_takes_all_waiting_rows() -> None:
    policy = BatchSizePolicy(8, 1)
    for _ in range(50):
        policy.record(8, 8 * LONG_S)

    assert [policy.max_rows(waiting) for waiting in (8, 5)] == [8, 5]


def test_a_batch_is_long_above_20_ms() -> None:
    policy = BatchSizePolicy(64, 2)
    assert policy.max_rows(40) == 64, "no batch is long before one has run"
    policy.record(1, 0.004)  # weighted by an eighth: 0.5 ms per row

    assert [policy.max_rows(waiting) for waiting in (40, 41)] == [64, 21]


def test_the_time_per_row_is_a_moving_average() -> None:
    policy = BatchSizePolicy(64, 2)
    for _ in range(2):
        policy.record(2, 0.008)

    assert [policy.max_rows(waiting) for waiting in (21, 22)] == [64, 11], (
        "0.9375 ms: an eighth of 4 ms, then of the rest"
    )


@given(st.integers(1, 64), st.integers(1, 4), st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1.0))))
def test_a_batch_has_at_least_one_row_and_at_most_the_limit(
    limit: int, streams: int, batches: list[tuple[int, float]]
) -> None:
    policy = BatchSizePolicy(limit, streams)
    for waiting, seconds in batches:
        rows = min(waiting, policy.max_rows(waiting))
        assert 1 <= rows <= limit
        policy.record(rows, seconds)
