"""The `boxes` stage: detectors whose outputs are boxes and scores: final ones, or those of DETR's family."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Array, Frame
from hedgerow.errors import ModelMismatch
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.detection.source import Source
from hedgerow_vision.detection.values import (
    Order,
    Unit,
    check_logits,
    check_probabilities,
    sigmoid,
    softmax,
    to_classes,
    to_fractions,
    wrong_values,
)
from hedgerow_vision.images.fit import fit_of

Floats = NDArray[np.floating[Any]]
Activation = Literal["none", "sigmoid", "softmax"]

_TORCHVISION: Final = "__background__"
"""Torchvision's first label, which its models count."""
_SUM_TOLERANCE: Final = 0.02
_MOST_QUERIES: Final = 1000
"""A transformer asks fewer questions, each for one object; more boxes come from a dense head, with duplicates."""


class BoxesConfig(DetectorConfig):
    """Names and format of the model's outputs.

    The defaults fit a TensorFlow Lite detector that ends in TFLite_Detection_PostProcess.
    """

    boxes: str = Field("detection_boxes", description="Name of the tensor with the boxes, (1, N, 4).")
    scores: str = Field(
        "detection_scores", description="Name of the tensor with the scores, (1, N); or of each class, (1, N, C)."
    )
    classes: str | None = Field(
        "detection_classes",
        description="Name of the tensor with the classes, (1, N); null: all of class 0. Not used with scores of each class.",
    )
    order: Order | None = Field(
        None,
        description="Order of a box's values; `cxcywh` is centre and size. By default `yxyx`; with scores of each class it must "
        "be set: `cxcywh` for DETR, RT-DETR and D-FINE.",
    )
    unit: Unit = Field("fraction", description="Whether boxes are in fractions or in pixels of the model's input.")
    activation: Activation | None = Field(
        None,
        description="Function that turns scores of each class into probabilities. By default none if all are within 0..1; "
        "else `softmax` with a class for no object (DETR), `sigmoid` without (RT-DETR, D-FINE).",
    )
    background: Literal["first", "last"] | None = Field(
        None,
        description="Class that is no object: `last` for DETR, `first` for torchvision. By default none, unless with scores of each "
        "class the first or last label says so: `no-object` or `background`.",
    )


class Boxes(Detector[BoxesConfig]):
    """Read boxes, and remove remaining duplicates, except of models that return each object once.

    Carion et al. 2020, "End-to-End Object Detection with Transformers" (DETR); Zhao et al. 2024, "DETRs Beat YOLOs on
    Real-time Object Detection" (RT-DETR).
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        return self.config.boxes, self.config.scores

    def check(self, source: Source) -> None:
        """See `Detector.check`."""
        config = self.config
        source.check_floats(config.scores)
        boxes, scores = (source.shape(name) for name in self.outputs)
        if boxes is not None and boxes[-1] not in (None, 4):
            raise ModelMismatch(
                f"{source.described(config.boxes)} has {boxes[-1]} values per box; `boxes` takes 4",
                remedy="Correct `boxes`; or use the stage that decodes this model: see the plugin's README.",
            )
        if boxes is None or scores is None:
            return
        if len(scores) == len(boxes):  # of each class, with or without a batch axis
            if scores[-1] is not None:
                self._background(source, scores[-1])
        elif config.classes is None:
            source.check_classes(1, source.described(config.scores), ", since `classes` is null,")
        elif not source.has(config.classes):
            raise ModelMismatch(
                f"{source.described(config.scores)} is one score a box, and the model has no output {config.classes!r}",
                remedy="Set `classes` to the output with the classes, or to null if all are of class 0.",
            )
        elif source.may_be_shifted and config.background != "first" and source.labels[0] != _TORCHVISION:
            raise ModelMismatch(
                f"The first label is {source.labels[0]!r}, and the classes in {config.classes!r} may begin with it or after it",
                remedy="Remove it from the labels for TFLite_Detection_PostProcess, which does not count it; or set `background: "
                "first` if the model counts it as class 0.",
            )

    def decode_outputs(self, frame: Frame, source: Source) -> Candidates:
        """See `Detector.decode_outputs`."""
        config = self.config
        boxes = tensor(frame, config.boxes, None, 4)
        raw = _scores_of(frame, config.scores, len(boxes))
        classes: NDArray[Any]
        if raw.ndim == 2:
            scores, classes = self._each_class(raw, source)
        else:
            scores = raw
            classes = np.zeros(len(boxes)) if config.classes is None else tensor(frame, config.classes, None)
            if len(classes) != len(boxes):
                _uneven(len(boxes), f"{len(classes)} classes")
            if scores.size:
                check_probabilities(0, float(np.fmax.reduce(scores)), config.scores)  # unused rows may be NaN or -1
        rows = np.flatnonzero((scores >= config.min_score) & (scores > 0))
        found = to_classes(classes[rows], len(source.labels), config.classes or config.scores)
        corners = to_fractions(boxes[rows], config.order or "yxyx", config.unit, fit_of(frame))
        queries = raw.ndim == 2 and config.order == "cxcywh" and len(boxes) <= _MOST_QUERIES
        return Candidates(corners, scores[rows], found, final=queries)

    def _background(self, source: Source, classes: int) -> Literal["first", "last"] | None:
        """Return which class of the scores is no object.

        Raises: ModelMismatch: the number of labels does not fit, or the scores may be read in two ways.
        """
        config, labels = self.config, source.labels
        if config.order is None:
            raise ModelMismatch(
                f"{config.scores!r} has scores of each of {classes} classes, and the order of a box's values is not stated",
                remedy="Set `order: cxcywh` for DETR, RT-DETR and D-FINE; `xyxy` for YOLO-NAS.",
            )
        if not labels:
            if config.activation is None:
                raise ModelMismatch(
                    f"Cannot tell how to read the scores of {classes} classes in {config.scores!r} without labels",
                    remedy="Set `labels`; or `activation`, and `background: last` for DETR.",
                )
            return config.background
        if config.background is not None:
            if len(labels) != classes - 1:  # the background may have a label or not
                source.check_classes(classes, f"{config.scores!r}")
            return config.background
        if len(labels) == classes and source.background is not None:
            return source.background
        if len(labels) == classes - 1 and config.activation == "softmax" and config.order == "cxcywh":
            return "last"
        if len(labels) == classes - 1:
            raise ModelMismatch(
                f"{config.scores!r} has {classes} classes and there are {len(labels)} labels: one class may be no object, or a "
                "label may be missing",
                remedy="Set `background: last` for DETR, or give a label for each class.",
            )
        source.check_classes(classes, f"{config.scores!r}")
        return None

    def _each_class(self, raw: Floats, source: Source) -> tuple[Floats, NDArray[np.intp]]:
        """Return the best class of each box, and its score, from the scores of each class."""
        background = self._background(source, raw.shape[1])
        scores = self._probabilities(raw.astype(np.float32, copy=False), background)
        first = int(background == "first")
        objects = scores[:, first : raw.shape[1] - (background == "last")]
        if not objects.size:
            return np.zeros(len(raw), np.float32), np.zeros(len(raw), np.intp)
        classes = objects.argmax(axis=1)
        best = objects[np.arange(len(raw)), classes]
        # A label of the background shifts nothing: the classes keep the model's index.
        shift = first if len(source.labels) in (0, raw.shape[1]) else 0
        return best, classes + shift

    def _probabilities(self, raw: Floats, background: str | None) -> Floats:
        if not raw.size:
            return raw
        low, high, name = float(raw.min()), float(raw.max()), self.config.scores
        activation = self.config.activation
        if activation is None:
            unscaled: Activation = "sigmoid" if background is None else "softmax"
            activation = "none" if low >= 0 and high <= 1 else unscaled
        if activation == "none":
            check_probabilities(low, high, name)
            if background is not None and np.abs(raw.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
                wrong_values(
                    f"The scores in {name!r} do not add up to 1, although one of them is for no object",
                    "Set `activation`, or give a label for each class.",
                )
            return raw
        check_logits(low, high, name)
        if activation == "sigmoid":
            return sigmoid(raw)
        scores = softmax(raw)
        check_probabilities(float(scores.min()), float(scores.max()), name)  # a box of which all logits are -inf
        return scores


def _scores_of(frame: Frame, name: str, boxes: int) -> Array:
    """Return the scores of so many boxes, (N,), or of each class, (N, C)."""
    raw = frame.tensors.get(name)
    if raw is None:
        return tensor(frame, name, None)
    if raw.ndim > 1 and raw.shape[0] == 1 and raw.shape[1] == boxes:
        raw = raw[0]
    if not 1 <= raw.ndim <= 2 or raw.shape[0] != boxes:
        _uneven(boxes, f"scores {list(raw.shape)}")
    return raw


def _uneven(boxes: int, other: str) -> None:
    wrong_values(
        f"The model returned {boxes} boxes and {other}",
        "Correct the names of the tensors: `boxes`, `scores`, `classes`.",
    )
