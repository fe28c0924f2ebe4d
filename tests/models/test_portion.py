"""Batch sizes are found by what they cost, and leave other streams something to do."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.portion import LONG_S, Portion


def serve(portion: Portion, cost_s: Callable[[int], float], waiting: Callable[[], int], batches: int) -> list[int]:
    """A simulated slot. Returns: the sizes of its batches."""
    sizes = []
    for _ in range(batches):
        many = waiting()
        rows = min(many, portion.most(many))
        portion.took(rows, cost_s(rows))
        sizes.append(rows)
    return sizes


def test_where_batches_pay_all_that_waits_is_taken() -> None:
    sizes = serve(Portion(64, 1), lambda rows: 1e-4 + rows * 1e-5, lambda: 40, 1000)

    assert sizes.count(40) > 950


@pytest.mark.parametrize("waiting", [6, 16, 64])
def test_a_model_that_is_slower_in_batches_is_run_alone_most_of_the_time(waiting: int) -> None:
    """In a batch of eight a row costs 1.7 times as much."""
    sizes = serve(Portion(16, 1), lambda rows: 1e-3 * rows * (1 + 0.1 * (rows - 1)), lambda: waiting, 3000)

    assert sum(size == 1 for size in sizes[1000:]) > 0.9 * 2000


def test_what_has_become_dearer_is_noticed() -> None:
    """Another model on the node fills the cache, say; and when it has gone, batches come back."""
    portion = Portion(8, 1)
    serve(portion, lambda rows: 1e-4 + rows * 1e-5, lambda: 8, 300)
    assert portion.usual == 8
    serve(portion, lambda rows: 1e-4 * rows * (1 + 0.2 * (rows - 1)), lambda: 8, 2000)
    assert portion.usual == 1
    serve(portion, lambda rows: 1e-4 + rows * 1e-5, lambda: 8, 8000)
    assert portion.usual == 8


def test_noise_does_not_take_batches_away() -> None:
    dice = random.Random(2)
    sizes = serve(
        Portion(32, 1), lambda rows: (2e-4 + rows * 1e-5) * dice.uniform(0.8, 1.3), lambda: dice.randint(1, 40), 3000
    )

    assert sum(sizes) / len(sizes) > 14


def test_a_long_batch_leaves_the_other_stream_its_share() -> None:
    portion = Portion(8, 2)
    serve(portion, lambda rows: rows * LONG_S, lambda: 8, 20)

    assert portion.most(8) == 4


@given(
    st.integers(1, 64), st.integers(1, 4), st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1.0)), max_size=600)
)
def test_it_is_never_more_than_the_limit_nor_less_than_one(
    limit: int, streams: int, batches: list[tuple[int, float]]
) -> None:
    portion = Portion(limit, streams)
    for waiting, seconds in batches:
        rows = min(waiting, portion.most(waiting))
        assert 1 <= rows <= limit
        portion.took(rows, seconds)
