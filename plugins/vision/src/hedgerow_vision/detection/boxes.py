"""The `boxes` stage: detectors whose outputs are final boxes, scores and classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from hedgerow import Frame, FrameError
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.images.fit import fit_of


class BoxesConfig(DetectorConfig):
    """Names and format of the model's outputs.

    The defaults fit a TensorFlow Lite detector that ends in TFLite_Detection_PostProcess.
    """

    boxes: str = Field("detection_boxes", description="Name of the tensor with the boxes, (1, N, 4).")
    scores: str = Field("detection_scores", description="Name of the tensor with the scores, (1, N).")
    classes: str | None = Field(
        "detection_classes", description="Name of the tensor with the classes, (1, N); null: all of class 0."
    )
    order: Literal["yxyx", "xyxy"] = Field("yxyx", description="Order of a box's corners.")
    unit: Literal["fraction", "pixel"] = Field(
        "fraction", description="Whether boxes are in fractions or in pixels of the model's input."
    )


class Boxes(Detector[BoxesConfig]):
    """Read final boxes, and remove remaining duplicates."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        config = self.config
        return (config.boxes, config.scores, *(() if config.classes is None else (config.classes,)))

    def decode_outputs(self, frame: Frame) -> Candidates:
        """See `Detector.decode_outputs`."""
        config = self.config
        boxes = tensor(frame, config.boxes, None, 4).astype(np.float32, copy=False)
        scores = tensor(frame, config.scores, None)
        classes = np.zeros(len(scores)) if config.classes is None else tensor(frame, config.classes, None)
        if not len(boxes) == len(scores) == len(classes):
            raise FrameError(
                f"The model returned {len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes",
                code="bad-tensor",
                remedy="Correct the names of the tensors: `boxes`, `scores`, `classes`.",
            )
        rows = np.flatnonzero(scores >= config.min_score)
        boxes = boxes[rows]
        if config.order == "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
        if config.unit == "pixel":
            fit = fit_of(frame)
            boxes = boxes / np.array([fit.input_width, fit.input_height] * 2)
        return Candidates(boxes, scores[rows], classes[rows].astype(np.intp))
