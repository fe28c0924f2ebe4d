"""The `yolo` stage: detectors with one tensor of boxes and scores."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Frame
from hedgerow.errors import ModelMismatch
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.detection.heads import (
    FIRST,
    Evidence,
    Head,
    Layout,
    check_head,
    identify,
    metadata_evidence,
)
from hedgerow_vision.detection.source import Source
from hedgerow_vision.detection.values import Unit, check_probabilities, to_classes, to_fractions, wrong_values
from hedgerow_vision.images.fit import Fit, fit_of

Floats = NDArray[np.floating[Any]]


class YoloConfig(DetectorConfig):
    """Encoding of the detector's outputs.

    What is not set is taken from the model's metadata, its shapes and the number of labels; a model that remains unsure is
    refused. YOLOX needs `objectness: true`, and `strides: [8, 16, 32]` if it was exported without decoding.
    """

    output: str = Field(
        "output0", description="Name of the tensor: (1, 4 + C, N) or (1, N, 4 + C) with C classes, or (1, N, 6)."
    )
    objectness: bool | None = Field(
        None, description="Whether the fifth value is the probability that there is an object (YOLOv5, YOLOX)."
    )
    end_to_end: bool | None = Field(
        None, description="Whether each row is a final detection: x0, y0, x1, y1, score, class (YOLOv10, YOLO26)."
    )
    layout: Layout | None = Field(None, description="Whether the values of a box or the boxes are the first axis.")
    unit: Unit = Field("pixel", description="Whether boxes are in pixels or in fractions of the model's input.")
    strides: tuple[int, ...] = Field(
        (),
        description="Boxes are relative to cells of these sizes, in pixels of the input; empty: they are not.",
    )


class Yolo(Detector[YoloConfig]):
    """Decode the heads of YOLOv3 to v12, YOLOX, YOLOv10 and YOLO26: boxes, scores, classes, and points of poses.

    Masks of segmentation heads are ignored. A box has the class that scores best. Each model is checked at start.

    Redmon et al. 2016, "You Only Look Once"; Ge et al. 2021, "YOLOX", §2; Wang et al. 2024, "YOLOv10", §3.1.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        return (self.config.output,)

    def check(self, source: Source) -> None:
        """See `Detector.check`."""
        source.check_floats(self.config.output)
        evidence = self._evidence(source)
        self._collected = (source, evidence)
        shape = source.shape(self.config.output)
        if shape is None:
            return
        if len(shape) != 3:
            raise ModelMismatch(
                f"{source.described(self.config.output)} has {len(shape)} dimensions; a head has [1, values, boxes] or "
                "[1, boxes, values]",
                remedy="Use `boxes` for final boxes, or export the model without suppression; see the plugin's README.",
            )
        check_head(shape[1:], source.input_size, evidence)

    def decode_outputs(self, frame: Frame, source: Source) -> Candidates:
        """See `Detector.decode_outputs`."""
        fit = fit_of(frame)
        raw = tensor(frame, self.config.output, None, None)
        if 0 in raw.shape:
            return _NOTHING
        head = _head(raw, fit, self._known(source))
        values = raw if head.values_first else raw.T
        if head.kind == "end-to-end":
            return self._final(values, head, fit, len(source.labels))
        rows, scores, classes = self._scores(values, head)
        boxes = _boxes(values, rows, self.config.output)
        if self.config.strides:
            boxes = _from_cells(boxes, rows, fit, self.config.strides)
        points = None if head.points is None else _points(values, rows, head, fit)
        return Candidates(to_fractions(boxes, "cxcywh", self.config.unit, fit), scores, classes, points)

    def _known(self, source: Source) -> Evidence:
        """Return the evidence of this version of the model, collected once."""
        collected = self._collected
        if collected[0] is not source:
            collected = self._collected = (source, self._evidence(source))
        return collected[1]

    def _evidence(self, source: Source) -> Evidence:
        config = self.config
        task, end_to_end, points = metadata_evidence(source.metadata)
        return Evidence(
            config.output,
            len(source.labels) or None,
            task,
            end_to_end if config.end_to_end is None else config.end_to_end,
            config.objectness,
            config.layout,
            points,
            source.masks(config.output),
            config.strides,
        )

    def _scores(self, values: Floats, head: Head) -> tuple[NDArray[np.intp], Floats, NDArray[np.intp]]:
        """Return the boxes that score high enough, with score and class."""
        first, output, floor = FIRST[head.kind], self.config.output, self.config.min_score
        scores = values[first : first + head.classes]
        if head.kind == "objectness":
            objectness = values[4]
            check_probabilities(float(objectness.min()), float(objectness.max()), output)
            rows = np.flatnonzero(objectness >= floor)  # a score is at most the objectness
            scores = scores[:, rows]
            if rows.size:
                check_probabilities(float(scores.min()), float(scores.max()), output)
            best = scores.max(axis=0).astype(np.float32) * objectness[rows]
            good = best >= floor
            return rows[good], best[good], scores[:, good].argmax(axis=0)
        best = scores.max(axis=0)
        check_probabilities(float(scores.min()), float(best.max()), output)
        rows = np.flatnonzero(best >= floor)
        return rows, best[rows], scores[:, rows].argmax(axis=0)

    def _final(self, values: Floats, head: Head, fit: Fit, labels: int) -> Candidates:
        """Return the rows of an end-to-end head that score high enough."""
        output = self.config.output
        scores = np.where(values[4] == -1, 0, values[4])  # unused rows score 0 or -1
        check_probabilities(float(scores.min()), float(scores.max()), output)
        rows = np.flatnonzero((scores >= self.config.min_score) & (scores > 0))
        classes = to_classes(values[5, rows], labels, output)
        boxes = to_fractions(_boxes(values, rows, output), "xyxy", self.config.unit, fit)
        points = None if head.points is None else _points(values, rows, head, fit)
        return Candidates(boxes, scores[rows], classes, points, final=True)


_NOTHING = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.intp))


def _head(raw: Floats, fit: Fit, evidence: Evidence) -> Head:
    if raw.shape[0] == raw.shape[1] > FIRST["objectness"] and evidence.layout is None:
        evidence = evidence._replace(layout=_layout_of_square(raw))
    return identify((raw.shape[0], raw.shape[1]), (fit.input_width, fit.input_height), evidence)


def _layout_of_square(raw: Floats) -> Layout | None:
    """Return the order of the axes of as many values as boxes: scores are probabilities, boxes are not."""
    first, last = (part.min() >= 0 and part.max() <= 1 for part in (raw[5:], raw[:, 5:]))
    return None if first == last else "values-first" if first else "boxes-first"


def _boxes(values: Floats, rows: NDArray[np.intp], output: str) -> Floats:
    boxes = values[:4, rows].T
    if not np.isfinite(boxes).all():
        wrong_values(
            f"A box in {output!r} is NaN or infinite, although it scores high enough",
            "Check the model with this frame's input; in half precision it may overflow.",
        )
    return boxes


def _points(values: Floats, rows: NDArray[np.intp], head: Head, fit: Fit) -> Floats:
    """Return the points of poses, (N, K, 2), 0..1 of the input."""
    count, size = head.points or (0, 0)
    first = FIRST[head.kind] + head.classes
    points = values[first : first + count * size, rows].T.reshape(len(rows), count, size)[:, :, :2]
    fractions: Floats = np.divide(points, [fit.input_width, fit.input_height], dtype=np.float32)
    return fractions


@lru_cache(maxsize=16)
def _cells(width: int, height: int, strides: tuple[int, ...]) -> NDArray[np.float32]:
    """Return column, row and stride of each cell, (N, 3)."""
    cells = []
    for stride in strides:
        columns, rows = np.meshgrid(np.arange(-(-width // stride)), np.arange(-(-height // stride)))
        cells.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    return np.concatenate(cells).astype(np.float32)


def _from_cells(boxes: Floats, rows: NDArray[np.intp], fit: Fit, strides: tuple[int, ...]) -> Floats:
    """Convert offsets within cells and logarithms of sizes to pixels of the input."""
    cells = _cells(fit.input_width, fit.input_height, strides)[rows]
    centre = (boxes[:, :2] + cells[:, :2]) * cells[:, 2:]
    size = np.exp(np.clip(boxes[:, 2:], -20, 20)) * cells[:, 2:]
    return np.concatenate([centre, size], axis=1)
