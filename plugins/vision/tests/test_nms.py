"""Properties of non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hedgerow_vision.detection.nms import blend, overlaps, suppress

corner = st.integers(0, 20)
thing = st.tuples(corner, corner, st.integers(1, 10), st.integers(1, 10), st.integers(0, 5), st.integers(0, 2))
things = st.lists(thing, max_size=30)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.9])


def arrays(rows: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
    return boxes, table[:, 4] / 5, table[:, 5].astype(np.intp)


def kept(rows: list[Any], max_iou: float) -> list[int]:
    return [index for index, _ in suppress(*arrays(rows), max_iou, 100)]


def test_the_overlap_of_two_halves_is_a_third() -> None:
    shared = overlaps(np.array([0.0, 0, 2, 1]), np.array([[1.0, 0, 3, 1], [0, 0, 2, 1], [5, 5, 6, 6], [0, 0, 0, 0]]))

    np.testing.assert_allclose(shared, [1 / 3, 1, 0, 0])


@given(things, thresholds)
def test_kept_boxes_of_a_label_do_not_overlap(rows: list[Any], max_iou: float) -> None:
    boxes, _, labels = arrays(rows)
    survivors = kept(rows, max_iou)

    for n, one in enumerate(survivors):
        for other in survivors[n + 1 :]:
            assert labels[one] != labels[other] or overlaps(boxes[one], boxes[[other]])[0] <= max_iou


@given(things, thresholds)
def test_every_box_is_kept_or_grouped_with_a_better_one(rows: list[Any], max_iou: float) -> None:
    boxes, scores, labels = arrays(rows)
    groups = suppress(boxes, scores, labels, max_iou, 100)

    assert sorted(member for _, members in groups for member in members) == list(range(len(rows)))
    for best, members in groups:
        assert (scores[members] <= scores[best]).all()
        assert (labels[members] == labels[best]).all()


@given(things, thresholds)
def test_suppression_is_idempotent(rows: list[Any], max_iou: float) -> None:
    once = [rows[index] for index in kept(rows, max_iou)]

    assert [once[index] for index in kept(once, max_iou)] == once


@given(things, thresholds, st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_does_not_matter(rows: list[Any], max_iou: float, random: Any) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)

    assert [rows[index] for index in kept(rows, max_iou)] == [shuffled[index] for index in kept(shuffled, max_iou)]


def test_the_best_boxes_come_first_up_to_the_limit() -> None:
    rows = [(n * 20 % 400, 0, 5, 5, n % 6, 0) for n in range(12)]
    boxes, scores, labels = arrays(rows)

    picked = [scores[index] for index, _ in suppress(boxes, scores, labels, 0.5, 4)]

    assert picked == sorted(scores, reverse=True)[:4]


def test_blending_is_weighted_by_score() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]])
    scores = np.array([0.75, 0.25])

    groups = suppress(boxes, scores, np.zeros(2, np.intp), 0.3, 10)

    np.testing.assert_allclose(blend(boxes, scores, groups), [[0.5, 0, 10.5, 10]])
