"""Recognises what a YOLO-type tensor holds: from the model's metadata, and from its shape. Pure.

| head | tensor | models |
|---|---|---|
| plain | 4 box values, C class scores | YOLOv8, v9, v11, v12 |
| objectness | 4 box values, objectness, C class scores | YOLOv3, v5, v7, YOLOX |
| end-to-end | x0, y0, x1, y1, score, class | YOLOv10, YOLO26, and exports with suppression |

A dense head has one box for each cell of its grids, or three if it has anchors. So the number of boxes tells the axes
apart, and a head with anchors from one without; the number of labels must match what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import ceil
from typing import Final, Literal, NamedTuple

from hedgerow.errors import ModelMismatch
from hedgerow.models.bundle.class_names import literal

Kind = Literal["plain", "objectness", "end-to-end"]
Layout = Literal["values-first", "boxes-first"]
Shape = tuple[int | None, ...]

FIRST: Final[Mapping[Kind, int]] = {"plain": 4, "objectness": 5, "end-to-end": 6}
"""Values of a box before its class scores; of an end-to-end box before masks and points."""

_STRIDES: Final = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32))
_MOST_FINAL: Final = 1000
"""Exporters limit final detections to 300, at most 1000; so many rows in a dense head mean a very small picture."""
_ROUND: Final = 50
_TASKS: Final = ("detect", "segment", "pose")


class Evidence(NamedTuple):
    """What is known of a head besides its shape; None: not known.

    Attributes:
        output: name of the tensor.
        classes: number of labels.
        task: Ultralytics' task.
        end_to_end: whether rows are final detections.
        objectness: whether the fifth value is the objectness.
        layout: order of the axes.
        points: number of points of a box, and values per point.
        masks: number of mask coefficients of a box.
        strides: strides of the grids.
    """

    output: str
    classes: int | None = None
    task: str | None = None
    end_to_end: bool | None = None
    objectness: bool | None = None
    layout: Layout | None = None
    points: tuple[int, int] | None = None
    masks: int | None = None
    strides: tuple[int, ...] = ()


class Head(NamedTuple):
    """What a tensor holds.

    Attributes:
        kind: what a box's values are.
        values_first: the tensor is (values, boxes), not (boxes, values).
        classes: number of class scores; 0 for end-to-end.
        points: number of points of a box, and values per point; they follow the classes.
    """

    kind: Kind
    values_first: bool
    classes: int
    points: tuple[int, int] | None = None


def metadata_evidence(metadata: Mapping[str, str]) -> tuple[str | None, bool | None, tuple[int, int] | None]:
    """Return the task, whether the head is end-to-end, and the shape of its points, as far as metadata says so.

    Raises: ModelMismatch: the task is not detection, or its results are not supported.
    """
    task, end_to_end, points = (_value(metadata, key) for key in ("task", "end2end", "kpt_shape"))
    if isinstance(task, str) and task not in _TASKS:
        why = (
            "boxes would lose their angles, and suppression would take neighbours for one object"
            if task == "obb"
            else "it does not find boxes"
        )
        raise ModelMismatch(
            f"The model's task is {task!r}, which `yolo` does not decode: {why}",
            remedy="Use a model of task detect, segment or pose.",
        )
    shape = tuple(points) if isinstance(points, list | tuple) else None
    return (
        task if isinstance(task, str) else None,
        end_to_end if isinstance(end_to_end, bool) else None,
        shape if shape is not None and len(shape) == 2 and all(isinstance(size, int) for size in shape) else None,
    )


def check_head(shape: Shape, size: tuple[int, int] | None, evidence: Evidence) -> None:
    """Check a head of which not all sizes may be known yet.

    Raises: ModelMismatch: as `identify`, or it cannot be a head whatever the unknown sizes are.
    """
    rows, columns = shape
    square = rows == columns and evidence.layout is None  # only the values will tell the axes apart
    if rows and columns and size is not None and not square:
        identify((rows, columns), size, evidence)
    elif not any(_open_may_fit(head, shape, size, evidence) for head in _fitting(shape, evidence)):
        raise _unfitting(shape, evidence)


def _open_may_fit(head: Head, shape: Shape, size: tuple[int, int] | None, evidence: Evidence) -> bool:
    """Whether the axis of known size, if there is one, may be what a head takes it for.

    Exporters leave the number of boxes open rather than that of their values. So a number of boxes is known only if the
    model's input is as well, or if it is that of final detections: a round one.
    """
    values, boxes = shape if head.values_first else shape[::-1]
    if values is not None or boxes is None:
        return True
    if head.kind == "end-to-end":
        return boxes <= _MOST_FINAL and boxes % _ROUND == 0
    return size is not None and boxes in _grid_counts(_cell_counts(size, evidence))


@lru_cache(maxsize=256)
def identify(shape: tuple[int, int], size: tuple[int, int], evidence: Evidence) -> Head:
    """Return what a tensor holds.

    Args:
        shape: of the tensor, without its batch axis.
        size: width and height of the model's input, pixels.
        evidence: what else is known.
    Raises: ModelMismatch: nothing fits, or more than one thing does.
    """
    fitting = list(_fitting(shape, evidence))
    if not fitting:
        raise _unfitting(shape, evidence)
    rows, cells = shape[0], _cell_counts(size, evidence)
    dense = [head for head in fitting if _boxes(head, shape) in _dense_counts(head.kind, size, evidence)]
    final = [head for head in fitting if head.kind == "end-to-end" and (evidence.end_to_end or rows <= _MOST_FINAL)]
    # Either would be as likely as a dense head of so many boxes, so it must be stated.
    unproven_final = final and not evidence.end_to_end and rows in _grid_counts(cells)
    unproven_yolox = evidence.objectness is None and rows in cells and _row_wise_objectness(fitting)
    found = dense or final or _stated(fitting, shape, cells, evidence)
    if unproven_final or unproven_yolox or len(found) != 1:
        raise _unsure(shape, size, evidence)
    return found[0]


def _row_wise_objectness(heads: list[Head]) -> bool:
    return any(head.kind == "objectness" and not head.values_first for head in heads)


def _fitting(shape: Shape, evidence: Evidence) -> Iterator[Head]:
    """Yield the heads whose number of values fits the tensor and the labels; None fits all."""
    for values_first in (True, False):
        if evidence.layout is not None and values_first != (evidence.layout == "values-first"):
            continue
        values = shape[0] if values_first else shape[1]
        for kind in FIRST:
            if _ruled_out(kind, values_first, evidence):
                continue
            classes = _classes(kind, values, evidence)
            if classes is not None:
                yield Head(kind, values_first, classes, evidence.points if evidence.task == "pose" else None)


def _ruled_out(kind: Kind, values_first: bool, evidence: Evidence) -> bool:
    if kind == "end-to-end":
        dense = evidence.end_to_end is False or bool(evidence.strides)
        return values_first or dense or (evidence.objectness is not None and not evidence.end_to_end)
    return evidence.end_to_end is True or (
        evidence.objectness is not None and evidence.objectness != (kind == "objectness")
    )


def _classes(kind: Kind, values: int | None, evidence: Evidence) -> int | None:
    """Return the number of class scores among so many values; 0: not known yet, or end-to-end; None: they do not fit."""
    if values is None:
        return 0
    left = values - FIRST[kind]
    more = _more_values(evidence)
    if kind == "end-to-end":
        return 0 if left == more or (more is None and left > 0) else None
    if more is None:  # masks or points of unknown number follow the classes
        return evidence.classes if evidence.classes and left > evidence.classes else None
    classes = left - more
    return classes if classes > 0 and evidence.classes in (None, classes) else None


def _more_values(evidence: Evidence) -> int | None:
    """Return how many values follow the classes: masks or points; None: some, but not known how many."""
    if evidence.task == "pose":
        return None if evidence.points is None else evidence.points[0] * evidence.points[1]
    if evidence.task == "segment" or evidence.masks is not None:
        return evidence.masks
    return 0


def _boxes(head: Head, shape: tuple[int, int]) -> int:
    return shape[1] if head.values_first else shape[0]


def _dense_counts(kind: Kind, size: tuple[int, int], evidence: Evidence) -> set[int]:
    """Return the numbers of boxes that a dense head of this kind has: one per cell, or three with anchors.

    Only YOLOX has objectness and no anchors, which its labels alone do not prove, so it must be stated.
    """
    if kind == "end-to-end":
        return set()
    cells = _cell_counts(size, evidence)
    anchored = set() if evidence.strides else {3 * count for count in cells}
    if evidence.objectness is not None:
        return cells | anchored
    return cells if kind == "plain" else anchored


def _grid_counts(cells: set[int]) -> set[int]:
    """Return the numbers of boxes of all dense heads."""
    return cells | {3 * count for count in cells}


def _cell_counts(size: tuple[int, int], evidence: Evidence) -> set[int]:
    sets = (evidence.strides,) if evidence.strides else _STRIDES
    return {sum(ceil(size[0] / stride) * ceil(size[1] / stride) for stride in strides) for strides in sets}


def _stated(fitting: list[Head], shape: tuple[int, int], cells: set[int], evidence: Evidence) -> list[Head]:
    """Return the heads that labels or settings prove, where the number of boxes is that of no known grid."""
    if evidence.strides:
        return []
    if evidence.objectness is not None and (evidence.classes is not None or evidence.layout is not None):
        return fitting
    if evidence.classes is None:
        return []
    counts = _grid_counts(cells)
    return [head for head in fitting if head.kind == "plain" and _boxes(head, shape) not in counts]


def _value(metadata: Mapping[str, str], key: str) -> object:
    text = metadata.get(f"hedgerow.{key}", metadata.get(key))
    return None if text is None else literal(text)


def _unfitting(shape: Shape, evidence: Evidence) -> ModelMismatch:
    labels = "unknown labels" if evidence.classes is None else f"{evidence.classes} labels"
    task = f" of task {evidence.task}" if evidence.task else ""
    return ModelMismatch(
        f"{_described(shape, evidence)} is no head{task} for {labels}, which is {_expected(evidence)}",
        remedy="Correct `labels`, `output`, `objectness`, `end_to_end` or `layout`; for other outputs see the plugin's README.",
    )


def _unsure(shape: tuple[int, int], size: tuple[int, int], evidence: Evidence) -> ModelMismatch:
    cells = _cell_counts(size, evidence)
    readings = [_reading(*axes, cells, evidence) for axes in (shape, shape[::-1])]
    if evidence.strides and not any(readings):
        why, remedy = (
            f"`strides` {list(evidence.strides)} makes {min(cells)} cells",
            "Set `strides` as in the training.",
        )
    else:
        dense = " or ".join(map(str, sorted(cells)))
        if 6 + (_more_values(evidence) or 0) == shape[1] and shape[0] <= _MOST_FINAL:
            readings.append(f"or {shape[0]} rows may be final detections")
        why = "; ".join(filter(None, readings)) or f"a dense head has {dense} boxes, or thrice as many with anchors"
        remedy = (
            "Give a label for each class. Set `objectness: true` for YOLOX, `false` for YOLOv8; or state "
            "`layout` or `end_to_end`."
        )
    labels = "" if evidence.classes is None else f", {evidence.classes} labels"
    return ModelMismatch(
        f"Cannot tell what {_described(shape, evidence)} holds (input of {size[0]}x{size[1]} pixels{labels}): {why}",
        remedy=remedy,
    )


def _reading(values: int, boxes: int, cells: set[int], evidence: Evidence) -> str:
    """Describe what one of the axes as boxes would mean; empty: nothing."""
    more = _more_values(evidence) or 0
    if boxes in cells:
        return (
            f"{boxes} boxes are one per cell, with {values - 4 - more} classes (YOLOv8), or {values - 5 - more} and "
            "objectness (YOLOX)"
        )
    if boxes in {3 * count for count in cells}:
        return f"{boxes} boxes are three per cell, with {values - 5 - more} classes and objectness (YOLOv5)"
    return ""


def _described(shape: Shape, evidence: Evidence) -> str:
    return f"{evidence.output} [1, {', '.join('?' if side is None else str(side) for side in shape)}]"


def _expected(evidence: Evidence) -> str:
    """Describe the tensors that would fit."""
    if evidence.end_to_end:
        return f"[1, N, {6 + (_more_values(evidence) or 0)}]"
    classes = "C" if evidence.classes is None else str(evidence.classes)
    more = _more_values(evidence)
    tail = "" if more == 0 else " + more" if more is None else f" + {more}"
    kinds = [kind for kind in FIRST if kind != "end-to-end" and not _ruled_out(kind, True, evidence)]
    values = [f"{FIRST[kind]} + {classes}{tail}" for kind in kinds]
    return " or ".join([f"[1, {one}, N]" for one in values] + ["its transpose"])
