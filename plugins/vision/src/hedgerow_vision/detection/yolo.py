"""The `yolo` stage: anchor-free detectors with one tensor of boxes and scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Frame, FrameError
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.images.fit import Fit, fit_of


class YoloConfig(DetectorConfig):
    """Encoding of the detector's outputs.

    The defaults fit YOLOv8 and later; YOLOX needs `objectness: true` and `strides: [8, 16, 32]`.
    """

    output: str = Field("output0", description="Name of the tensor, (1, 4 + C, N) or (1, N, 4 + C); C classes.")
    objectness: bool = Field(False, description="The fifth value is the probability that there is an object.")
    strides: tuple[int, ...] = Field(
        (),
        description="Boxes are relative to cells of these sizes, in pixels of the input; empty: boxes are in pixels.",
    )


class Yolo(Detector[YoloConfig]):
    """Decode centre, size and scores: YOLOv5, v8 and v11, YOLOX and similar models.

    Redmon et al. 2016, "You Only Look Once"; Ge et al. 2021, "YOLOX", §2.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        return (self.config.output,)

    def decode_outputs(self, frame: Frame) -> Candidates:
        """See `Detector.decode_outputs`."""
        fit = fit_of(frame)
        raw = tensor(frame, self.config.output, None, None)
        if raw.shape[0] < raw.shape[1]:  # there are always more boxes than values per box
            raw = raw.T
        first = 5 if self.config.objectness else 4
        if raw.shape[1] <= first:
            raise FrameError(
                f"Expected at least {first + 1} values per box in {self.config.output!r}, got {raw.shape[1]}",
                code="bad-tensor",
                remedy="Correct `output` and `objectness`.",
            )
        scores = raw[:, first:]
        if self.config.objectness:
            scores = scores * raw[:, 4:5]
        rows, classes = np.nonzero(scores >= self.config.min_score)
        boxes = raw[:, :4]
        if self.config.strides:
            boxes = _from_cells(boxes, fit, self.config.strides)
        centre, half = boxes[rows, :2], boxes[rows, 2:] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1)
        corners /= np.array([fit.input_width, fit.input_height] * 2, np.float32)
        return Candidates(corners, scores[rows, classes], classes)


def _from_cells(boxes: NDArray[np.float32], fit: Fit, strides: tuple[int, ...]) -> NDArray[np.float32]:
    """Convert offsets within cells and log sizes to pixels of the input."""
    cells = []
    for stride in strides:
        columns, rows = np.meshgrid(np.arange(fit.input_width // stride), np.arange(fit.input_height // stride))
        cells.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    grid = np.concatenate(cells).astype(np.float32)
    if len(grid) != len(boxes):
        raise FrameError(
            f"`strides` {list(strides)} makes {len(grid)} cells, but the model has {len(boxes)} boxes",
            code="bad-tensor",
            remedy="Set `strides` as in the model's training.",
        )
    centre = (boxes[:, :2] + grid[:, :2]) * grid[:, 2:]
    size = np.exp(np.clip(boxes[:, 2:], -20, 20)) * grid[:, 2:]
    return np.concatenate([centre, size], axis=1)
