"""Any head is recognised for what it is, or refused: never taken for another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.errors import ModelMismatch
from hedgerow_vision.detection.heads import FIRST, Evidence, Kind, check_head, identify, metadata_evidence

HEADS: dict[str, tuple[Kind, int, bool]] = {
    "v8": ("plain", 1, True),
    "v8 transposed": ("plain", 1, False),
    "v5": ("objectness", 3, False),
    "v5 transposed": ("objectness", 3, True),
    "YOLOX": ("objectness", 1, False),
    "end-to-end": ("end-to-end", 0, False),
}
sides = st.integers(1, 40).map(lambda cells: cells * 32)
grids = st.sampled_from([(8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32)])
counts = st.integers(1, 90) | st.sampled_from([79, 80, 81, 91, 296, 300, 365, 601, 1000])


@given(st.sampled_from(list(HEADS)), sides, sides, grids, counts, st.booleans(), st.sampled_from([0, 32]))
def test_no_head_is_taken_for_another(
    name: str, width: int, height: int, strides: tuple[int, ...], classes: int, labelled: bool, masks: int
) -> None:
    kind, per_cell, values_first = HEADS[name]
    boxes = per_cell * sum(-(-width // stride) * -(-height // stride) for stride in strides) or 300
    values = FIRST[kind] + (classes if per_cell else 0) + masks
    shape = (values, boxes) if values_first else (boxes, values)
    evidence = Evidence("output0", classes if labelled else None, masks=masks or None)

    try:
        head = identify(shape, (width, height), evidence)
    except ModelMismatch:
        return

    assert (head.kind, head.values_first, head.classes) == (kind, values_first, classes if per_cell else 0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("side", [320, 416, 640, 1280])
def test_common_heads_with_labels_are_recognised(name: str, side: int) -> None:
    """At common sizes the labels decide, save for YOLOX, whose objectness is stated."""
    kind, per_cell, values_first = HEADS[name]
    boxes = per_cell * sum((side // stride) ** 2 for stride in (8, 16, 32)) or 300
    values = FIRST[kind] + (80 if per_cell else 0)
    shape = (values, boxes) if values_first else (boxes, values)
    evidence = Evidence("output0", 80, objectness=True if name == "YOLOX" else None)

    assert identify(shape, (side, side), evidence)[:2] == (kind, values_first)


@pytest.mark.parametrize("shape", [(84, None), (None, 84), (None, None), (None, 6), (300, None), (84, 0)])
def test_open_sizes_are_left_to_the_first_frame(shape: tuple[int | None, int | None]) -> None:
    check_head(shape, (640, 640), Evidence("output0", 80))


@pytest.mark.parametrize("shape", [(83, None), (None, 83), (None, 7), (5, 3)])
def test_what_cannot_fit_whatever_the_open_sizes_are_is_refused(shape: tuple[int | None, int | None]) -> None:
    with pytest.raises(ModelMismatch, match="80 labels"):
        check_head(shape, (640, 640), Evidence("output0", 80))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, (None, None, None)),
        ({"task": "detect", "end2end": "True"}, ("detect", True, None)),
        ({"task": "detect", "end2end": "false"}, ("detect", False, None)),
        ({"task": "pose", "kpt_shape": "[17, 3]"}, ("pose", None, (17, 3))),
        ({"hedgerow.task": "segment", "task": "detect"}, ("segment", None, None)),
        ({"task": "pose", "kpt_shape": "many"}, ("pose", None, None)),
        ({"task": "7"}, (None, None, None)),
    ],
)
def test_metadata_of_exporters_is_read(metadata: dict[str, str], expected: tuple[object, ...]) -> None:
    assert metadata_evidence(metadata) == expected


@pytest.mark.parametrize("task", ["obb", "classify", "semantic"])
def test_other_tasks_are_refused(task: str) -> None:
    with pytest.raises(ModelMismatch, match=task):
        metadata_evidence({"task": task})
