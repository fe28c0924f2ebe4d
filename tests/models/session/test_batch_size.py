"""A batch takes what waits, and leaves other streams something to do where that takes long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.session.batch_size import LONG_S, BatchSizePolicy


def test_short_batches_take_all_that_waits() -> None:
    portion = BatchSizePolicy(64, 2)
    for _ in range(50):
        portion.took(20, 20 * LONG_S / 1000)

    assert portion.most(40) == 64


def test_a_long_batch_leaves_the_other_stream_its_share() -> None:
    portion = BatchSizePolicy(8, 2)
    for _ in range(50):
        portion.took(8, 8 * LONG_S)

    assert [portion.most(waiting) for waiting in (8, 5, 2)] == [4, 3, 1]


def test_one_stream_has_nobody_to_leave_anything_to() -> None:
    portion = BatchSizePolicy(8, 1)
    for _ in range(50):
        portion.took(8, 8 * LONG_S)

    assert [portion.most(waiting) for waiting in (8, 5)] == [8, 5]


def test_long_is_what_takes_more_than_a_fiftieth_of_a_second() -> None:
    portion = BatchSizePolicy(64, 2)
    assert portion.most(40) == 64, "before a batch has run, none is long"
    portion.took(1, 0.004)  # counts an eighth: half a millisecond a row

    assert [portion.most(waiting) for waiting in (40, 41)] == [64, 21]


def test_the_time_of_a_row_is_a_moving_mean() -> None:
    portion = BatchSizePolicy(64, 2)
    for _ in range(2):
        portion.took(2, 0.008)

    assert [portion.most(waiting) for waiting in (21, 22)] == [64, 11], "0.9375 ms: an eighth of 4 ms, and of the rest"


@given(st.integers(1, 64), st.integers(1, 4), st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1.0))))
def test_it_is_never_more_than_the_limit_nor_less_than_one(
    limit: int, streams: int, batches: list[tuple[int, float]]
) -> None:
    portion = BatchSizePolicy(limit, streams)
    for waiting, seconds in batches:
        rows = min(waiting, portion.most(waiting))
        assert 1 <= rows <= limit
        portion.took(rows, seconds)
