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

    assert portion.most(8) == 8


@given(st.integers(1, 64), st.integers(1, 4), st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1.0))))
def test_it_is_never_more_than_the_limit_nor_less_than_one(
    limit: int, streams: int, batches: list[tuple[int, float]]
) -> None:
    portion = BatchSizePolicy(limit, streams)
    for waiting, seconds in batches:
        rows = min(waiting, portion.most(waiting))
        assert 1 <= rows <= limit
        portion.took(rows, seconds)
