"""The one shape in which every detector here gives its results.

    {"detections": [{"label": "person", "score": 0.87, "box": [x0, y0, x1, y1], "points": [[x, y], …]}]}

Boxes and points are fractions of the picture, 0..1; `points` only where the model finds any. Best first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Array, Frame, FrameError, HedgerowError, Stage, StageConfig, StageContext
from hedgerow_vision.detection.nms import blend, suppress
from hedgerow_vision.images.fit import fit_of


class DetectorConfig(StageConfig):
    """What every detector can be told."""

    min_score: float = Field(0.5, ge=0, le=1, description="Leave out detections with a lower score.")
    max_iou: float = Field(
        0.5, ge=0, le=1, description="Boxes of one label that overlap by more than this are one object."
    )
    blend: bool = Field(
        False, description="Average the boxes of one object instead of taking the best, which is steadier."
    )
    limit: int = Field(100, ge=1, description="Most detections in a result.")
    labels: tuple[str, ...] = Field((), description="Names of the classes, in the model's order.")
    labels_file: Path | None = Field(
        None, description="File with one name per line, instead of `labels`; relative to the configuration file."
    )
    only: tuple[str, ...] = Field((), description="Leave out all but these labels.")


class Found(NamedTuple):
    """What a model found in one picture, before doubles are taken out.

    Attributes:
        boxes: (N, 4), x0 y0 x1 y1, 0..1 of the model's input.
        scores: (N,), 0..1.
        classes: (N,), integers.
        points: (N, K, 2), x y, 0..1 of the model's input; None if the model finds none.
    """

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    classes: NDArray[np.integer[Any]]
    points: NDArray[np.floating[Any]] | None = None


D = TypeVar("D", bound=DetectorConfig)


class Detector(Stage[D]):
    """Turns a model's raw outputs into detections; a subclass says how its model encodes them, in `find`."""

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Read the labels. Raises: BadLabels: they cannot be used."""
        self._labels = self.config.labels
        if self.config.labels_file is not None:
            self._labels = _read_labels(context.path(self.config.labels_file))
        self._wanted: NDArray[np.intp] | None = None
        if self.config.only:
            missing = sorted(set(self.config.only) - set(self._labels))
            if missing:
                raise BadLabels(f"`only` names {', '.join(missing)}, which the labels do not have")
            self._wanted = np.flatnonzero(np.isin(self._labels, self.config.only))

    def find(self, frame: Frame) -> Found:
        """Read the model's outputs.

        Returns: what scores at least `min_score`.
        Raises: FrameError: a tensor is missing or has another shape.
        """
        raise NotImplementedError

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: no-fit, bad-tensor."""
        fit = fit_of(frame)
        found = _usable(self.find(frame))
        if self._wanted is not None:
            found = _take(found, np.flatnonzero(np.isin(found.classes, self._wanted)))
        groups = suppress(found.boxes, found.scores, found.classes, self.config.max_iou, self.config.limit)
        best = [index for index, _ in groups]
        boxes, points = found.boxes[best], None if found.points is None else found.points[best]
        if self.config.blend and groups:
            boxes = blend(found.boxes, found.scores, groups)
            points = None if found.points is None else blend(found.points, found.scores, groups)
        boxes = np.clip(fit.to_picture(boxes), 0, 1).round(5)
        points = None if points is None else fit.to_picture(points).round(5)
        detections = []
        for row, index in enumerate(best):
            x0, y0, x1, y1 = boxes[row].tolist()
            if x1 <= x0 or y1 <= y0:  # it lies in the padding
                continue
            detection = {
                "label": self._label(int(found.classes[index])),
                "score": round(float(found.scores[index]), 4),
                "box": [x0, y0, x1, y1],
            }
            if points is not None:
                detection["points"] = points[row].tolist()
            detections.append(detection)
        return with_part(frame, "detections", detections)

    def _label(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else str(index)


class BadLabels(HedgerowError):
    """The labels of a detector cannot be used."""

    code = "bad-labels"

    def __init__(self, message: str) -> None:
        super().__init__(message, remedy="Mend `labels`, `labels_file` or `only` of this stage.")


def tensor(frame: Frame, name: str, *shape: int | None) -> Array:
    """One of the model's outputs for this frame, without its batch axis.

    Args:
        name: as the model names it.
        shape: what it must be like without the batch axis; None for any size.
    Raises: FrameError: there is no such tensor, or it has another shape.
    """
    array = frame.tensors.get(name)
    if array is None:
        there = ", ".join(f"{key} {list(value.shape)}" for key, value in frame.tensors.items()) or "none"
        raise FrameError(
            f"The model gave no tensor {name!r} (there are: {there})",
            code="bad-tensor",
            remedy="Put `infer` before this stage, and name the tensors as the model does.",
        )
    if array.ndim == len(shape) + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise FrameError(
            f"Tensor {name!r} is {list(array.shape)}, wanted [{wanted}]",
            code="bad-tensor",
            remedy="This stage does not fit the model, or its configuration does not: see the plugin's README.",
        )
    return array


def with_part(frame: Frame, key: str, value: Any) -> Frame:
    """The frame with one more part in its result: a second detector adds to what the first one found."""
    before = frame.result if isinstance(frame.result, Mapping) else {}
    if isinstance(value, list) and isinstance(before.get(key), list):
        value = [*before[key], *value]
    return frame.with_result({**before, key: value})


def _usable(found: Found) -> Found:
    """Without what has no size or is not a number: some models give such boxes for what they do not see."""
    fine = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
    fine &= (found.boxes[:, 2] > found.boxes[:, 0]) & (found.boxes[:, 3] > found.boxes[:, 1])
    return found if fine.all() else _take(found, np.flatnonzero(fine))


def _take(found: Found, rows: NDArray[np.intp]) -> Found:
    points = None if found.points is None else found.points[rows]
    return Found(found.boxes[rows], found.scores[rows], found.classes[rows], points)


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BadLabels(f"The labels in {path} cannot be read: {error}") from error
