from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.models.session.batching import pick, split, stack

WAITING = st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 5)), max_size=40)


@given(WAITING, st.integers(1, 8))
def test_a_batch_has_the_oldest_request_one_key_and_no_more_rows_than_the_limit(
    waiting: list[tuple[str | None, int]], limit: int
) -> None:
    chosen = pick(waiting, limit)

    assert chosen == sorted(set(chosen))
    if waiting:
        assert chosen[0] == 0
        assert {waiting[i][0] for i in chosen} == {waiting[0][0]}
        assert len(chosen) == 1 or sum(waiting[i][1] for i in chosen) <= limit
    else:
        assert chosen == []


@given(WAITING, st.integers(1, 8))
def test_batches_contain_each_request_once_and_keep_the_order_of_each_key(
    waiting: list[tuple[str | None, int]], limit: int
) -> None:
    left = list(enumerate(waiting))
    taken: list[int] = []
    while left:
        chosen = pick([request for _, request in left], limit)
        taken += [left[i][0] for i in chosen]
        left = [item for i, item in enumerate(left) if i not in chosen]

    assert sorted(taken) == list(range(len(waiting)))
    for key in ("a", "b"):
        own = [i for i in taken if waiting[i][0] == key]
        assert own == sorted(own)


@given(WAITING, st.integers(1, 8))
def test_a_batch_is_filled_until_the_next_request_of_its_key_does_not_fit(
    waiting: list[tuple[str | None, int]], limit: int
) -> None:
    chosen = pick(waiting, limit)
    if waiting and waiting[0][0] is not None:
        rows = sum(waiting[i][1] for i in chosen)
        after = next(
            (n for i, (key, n) in enumerate(waiting) if key == waiting[0][0] and i > chosen[-1] and i not in chosen),
            None,
        )
        assert after is None or rows + after > limit


def test_a_request_without_a_key_runs_alone() -> None:
    assert pick([(None, 1), (None, 1)], 8) == [0]


def test_a_request_larger_than_the_limit_runs_alone() -> None:
    assert pick([("a", 9), ("a", 1)], 8) == [0]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2), st.integers(0, 9))
def test_splitting_reverses_stacking(rows: list[int], axis: int, padding: int) -> None:
    """On any batch axis, with any number of rows per request, padded or not."""
    rng = np.random.default_rng(0)

    def shape(count: int) -> list[int]:
        return [2] * axis + [count] + [3] * (2 - axis)

    requests = [{"x": rng.random(shape(count)), "scale": np.float32(2) * np.ones(())} for count in rows]
    axes = {"x": axis, "scale": None}
    total = sum(rows)

    batch = stack(requests, axes, padding)
    parts = split({"x": batch["x"]}, {"x": axis}, rows, total + padding)

    assert batch["x"].shape[axis] == total + padding
    assert batch["scale"] == 2
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["x"], request["x"])


def test_padding_repeats_the_last_row() -> None:
    """A model may divide by its input; zeros would be a frame that no sensor sent."""
    batch = stack([{"x": np.array([[1], [2]])}], {"x": 0}, 2)
    of_two = stack([{"x": np.array([[1]])}, {"x": np.array([[2]])}], {"x": 0}, 1)

    assert batch["x"].tolist() == [[1], [2], [2], [2]]
    assert of_two["x"].tolist() == [[1], [2], [2]]


def test_a_single_request_is_not_copied() -> None:
    array = np.ones((1, 3))

    assert stack([{"x": array}], {"x": 0}, 0)["x"] is array


def test_a_transposed_image_is_made_contiguous_for_the_backend() -> None:
    image = np.ones((1, 4, 4, 3)).transpose(0, 3, 1, 2)

    assert stack([{"x": image}], {"x": 0}, 0)["x"].flags.c_contiguous


@pytest.mark.parametrize("shape", [(3, 2), (), (1, 2)])
def test_an_output_without_a_row_for_every_request_cannot_be_split(shape: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="output y has the shape"):
        split({"y": np.zeros(shape)}, {"y": 0}, [1, 1], 2)
