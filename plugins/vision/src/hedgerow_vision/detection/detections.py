"""Base class of the detectors, and the result they share.

    {"detections": [{"label": "person", "score": 0.87, "box": [x0, y0, x1, y1], "points": [[x, y], …]}]}

Boxes and points are fractions of the picture, 0..1; `points` only if the model returns them. Best detection first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Array, Frame, FrameError, FrameSpec, Stage, StageConfig, StageContext
from hedgerow.errors import ConfigError, ModelMismatch
from hedgerow.models.bundle.class_names import read_class_names
from hedgerow.stage import THRESHOLD
from hedgerow_vision.detection.nms import blend, suppress
from hedgerow_vision.detection.source import BadLabels, Source, model_before
from hedgerow_vision.images.fit import META, fit_of

MAX_IOU: Final = 0.5
MOST_CANDIDATES: Final = 10_000
"""Best candidates that suppression compares; each kept box is compared with all, so more would take seconds."""


class DetectorConfig(StageConfig):
    """Settings of every detector."""

    min_score: float = Field(
        0.5, ge=0, le=1, description="Leave out detections with a lower score.", json_schema_extra=THRESHOLD
    )
    max_iou: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Boxes of one label that overlap by more than this are one object. By default 0.5; or 1, where the model "
        "itself returns each object once (end-to-end YOLO, DETR).",
        json_schema_extra=THRESHOLD,
    )
    blend: bool = Field(
        False, description="Average the boxes of one object instead of taking the best, which is steadier."
    )
    limit: int = Field(100, ge=1, description="Maximum number of detections in a result.")
    labels: tuple[str, ...] = Field(
        (), description="Names of the classes, in the model's order; by default those in its metadata."
    )
    labels_file: Path | None = Field(
        None,
        description="File with one name per line, with or without its index, instead of `labels`; relative to the "
        "configuration file. A blank line is a class without a name.",
    )
    only: tuple[str, ...] = Field((), description="Keep only detections with these labels.")


class Candidates(NamedTuple):
    """Decoded outputs of a model for one picture, before non-maximum suppression.

    Attributes:
        boxes: (N, 4), x0 y0 x1 y1, 0..1 of the model's input.
        scores: (N,), 0..1.
        classes: (N,), integers.
        points: (N, K, 2), x y, 0..1 of the model's input; None if the model has no points.
        final: the model returns each object once, so that none needs to be suppressed.
    """

    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]
    classes: NDArray[np.integer[Any]]
    points: NDArray[np.floating[Any]] | None = None
    final: bool = False


D = TypeVar("D", bound=DetectorConfig)


class Detector(Stage[D]):
    """Turns a model's raw outputs into detections; subclasses decode them in `decode_outputs`."""

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Read the labels, and check the model.

        Raises:
            BadLabels: the labels cannot be read, or `only` names others.
            ModelMismatch: the model has another head than is configured, or another number of classes.
        """
        self._labels = self.config.labels
        if self.config.labels_file is not None:
            try:
                self._labels = read_class_names(context.path(self.config.labels_file))
            except ConfigError as error:
                raise BadLabels(f"{error}. {error.remedy}", error.outside) from error
        self._model = model_before(context.models, self.outputs)
        self._source = self._examine()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs that the stage needs."""
        raise NotImplementedError

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take the model's outputs, and how the picture was fitted into its input.

        Raises: StageMismatch: one is missing.
        """
        for name in self.outputs:
            incoming.expect_tensor(name, remedy="Put `infer` before it, and name the tensors as the model does.")
        incoming.expect_meta(META, remedy="Put `letterbox` or `resize` before `infer`.")
        return incoming

    def check(self, source: Source) -> None:
        """Check the model before its first frame, as far as its shapes are known.

        Raises: ModelMismatch: it has another head than is configured, or another number of classes.
        """
        raise NotImplementedError

    def decode_outputs(self, frame: Frame, source: Source) -> Candidates:
        """Decode the model's outputs.

        Returns: candidates that score at least `min_score`.
        Raises:
            FrameError: a tensor is missing, or has a shape or values that this head cannot have.
            ModelMismatch: as in `check`.
        """
        raise NotImplementedError

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: no-fit, bad-tensor."""
        fit = fit_of(frame)
        try:
            source = self._source
            if self._model is not None and self._model.state_token is not source.token:  # the node swapped the version
                source = self._source = self._examine()
            found = _usable(self.decode_outputs(frame, source))
        except (ModelMismatch, BadLabels) as error:
            raise FrameError(str(error), code="bad-tensor", remedy=error.remedy) from error
        if source.only is not None:
            found = _select(found, np.flatnonzero(np.isin(found.classes, source.only)))
        if len(found.scores) > MOST_CANDIDATES:
            found = _select(found, np.argpartition(-found.scores, MOST_CANDIDATES)[:MOST_CANDIDATES])
        max_iou = self.config.max_iou if self.config.max_iou is not None else 1.0 if found.final else MAX_IOU
        groups = suppress(found.boxes, found.scores, found.classes, max_iou, self.config.limit)
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
            if x1 <= x0 or y1 <= y0:  # within the padding
                continue
            detection = {
                "label": source.label(int(found.classes[index])),
                "score": round(min(1.0, float(found.scores[index])), 4),
                "box": [x0, y0, x1, y1],
            }
            if points is not None:
                detection["points"] = points[row].tolist()
            detections.append(detection)
        return with_result_part(frame, "detections", detections)

    def _examine(self) -> Source:
        source = Source(self._model, self._labels, self.config.only)
        self.check(source)
        return source


def tensor(frame: Frame, name: str, *shape: int | None) -> Array:
    """Return one of the model's outputs for this frame, without its batch axis.

    Args:
        name: of the output.
        shape: expected shape without the batch axis; None for any size.
    Raises: FrameError: there is no such tensor, or it has another shape.
    """
    array = frame.tensors.get(name)
    if array is None:
        available = ", ".join(f"{key} {list(value.shape)}" for key, value in frame.tensors.items()) or "none"
        raise FrameError(
            f"The frame has no tensor {name!r}; its tensors: {available}",
            code="bad-tensor",
            remedy="Put `infer` before this stage, and name the tensors as the model does.",
        )
    if array.ndim == len(shape) + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != len(shape) or any(
        expected_size not in (None, actual_size) for expected_size, actual_size in zip(shape, array.shape, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise FrameError(
            f"Expected tensor {name!r} of shape [{expected}], got {list(array.shape)}",
            code="bad-tensor",
            remedy="Use the stage that decodes this model, and correct its settings: see the plugin's README.",
        )
    return array


def with_result_part(frame: Frame, key: str, value: Any) -> Frame:
    """Return the frame with a value added to its result; a list is appended to that of an earlier detector."""
    before = frame.result if isinstance(frame.result, Mapping) else {}
    if isinstance(value, list) and isinstance(before.get(key), list):
        value = [*before[key], *value]
    return frame.with_result({**before, key: value})


def _usable(found: Candidates) -> Candidates:
    """Remove empty and non-finite boxes, with which some models fill unused rows."""
    valid = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
    valid &= (found.boxes[:, 2] > found.boxes[:, 0]) & (found.boxes[:, 3] > found.boxes[:, 1])
    return found if valid.all() else _select(found, np.flatnonzero(valid))


def _select(found: Candidates, rows: NDArray[np.intp]) -> Candidates:
    points = None if found.points is None else found.points[rows]
    return Candidates(found.boxes[rows], found.scores[rows], found.classes[rows], points, found.final)
