"""The `ssd` stage: detectors whose outputs are relative to anchors."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import Frame, FrameError, StageContext
from hedgerow.errors import ModelMismatch
from hedgerow_vision.detection.anchors import AnchorConfig, make_anchors
from hedgerow_vision.detection.detections import Candidates, Detector, DetectorConfig, tensor
from hedgerow_vision.detection.source import Source
from hedgerow_vision.detection.values import check_logits, check_probabilities, sigmoid, softmax

Floats = NDArray[np.floating[Any]]


class SsdConfig(DetectorConfig):
    """Encoding of the detector's outputs."""

    anchors: AnchorConfig = Field(description="Layout of the model's anchors.")
    boxes: str = Field("boxes", description="Name of the tensor with the boxes, (1, N, 4 + 2K); K points, if any.")
    scores: str = Field("scores", description="Name of the tensor with the scores, (1, N, classes).")
    coding: Literal["pixels", "scaled"] = Field(
        "scaled",
        description="`scaled`: y x h w, in tenths and fifths of the anchor, sizes as logarithms (Faster R-CNN, TensorFlow); "
        "`pixels`: x y w h and points, in pixels of the input (MediaPipe's BlazeFace).",
    )
    activation: Literal["sigmoid", "softmax", "none"] = Field(
        "sigmoid", description="Function that turns outputs into scores."
    )
    background: bool = Field(False, description="The first class is the background.")


class Ssd(Detector[SsdConfig]):
    """Decode boxes, scores and points that are relative to anchors: SSD, MobileNet-SSD, BlazeFace.

    Liu et al. 2016, "SSD: Single Shot MultiBox Detector"; Bazarevsky et al. 2019, "BlazeFace".
    """

    def setup(self, context: StageContext) -> None:
        """Compute the anchors. Raises: as `Detector.setup`."""
        self._anchors = make_anchors(self.config.anchors)
        super().setup(context)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Detector.outputs`."""
        return self.config.boxes, self.config.scores

    def check(self, source: Source) -> None:
        """See `Detector.check`."""
        source.check_floats(*self.outputs)
        if source.may_be_shifted and not self.config.background:
            raise ModelMismatch(
                f"The first label is {source.labels[0]!r}, but no class is stated to be the background",
                remedy="Set `background: true`, or correct the labels.",
            )
        boxes, scores = (source.shape(name) for name in self.outputs)
        if boxes is not None and scores is not None:
            counts = [shape[1] if len(shape) == 3 else 0 for shape in (boxes, scores)]
            if any(count not in (None, len(self._anchors)) for count in counts):
                raise ModelMismatch(
                    f"`anchors` makes {len(self._anchors)} anchors, but {source.described(self.config.boxes)} and "
                    f"{source.described(self.config.scores)} have other numbers of boxes",
                    remedy=_ANCHORS,
                )
            source.check_classes(scores[2], source.described(self.config.scores))

    def decode_outputs(self, frame: Frame, source: Source) -> Candidates:
        """See `Detector.decode_outputs`."""
        config = self.config
        raw = tensor(frame, config.scores, None, None)
        codes = tensor(frame, config.boxes, None, None)
        if not len(self._anchors) == len(raw) == len(codes) or not raw.size or codes.shape[1] < 4 or codes.shape[1] % 2:
            raise FrameError(
                f"`anchors` makes {len(self._anchors)} anchors, but the model's boxes are {list(codes.shape)} and its "
                f"scores {list(raw.shape)}",
                code="bad-tensor",
                remedy=_ANCHORS,
            )
        source.check_classes(raw.shape[1], f"{config.scores!r}")
        rows, classes, scores = _above(raw, config, int(config.background))
        boxes, points = _decode(codes[rows], self._anchors[rows], config.coding, config.anchors.size)
        return Candidates(boxes, scores, classes, points)


_ANCHORS: Final = "Set `anchors` as in the model's training: strides, aspect_ratios, between, fewer_in_first."


def _above(raw: Floats, config: SsdConfig, first: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return row, class and score of the entries that score at least `min_score`.

    The sigmoid is applied only to those.
    """
    low, high, floor = float(raw.min()), float(raw.max()), config.min_score
    if config.activation == "none":
        check_probabilities(low, high, config.scores)
    else:
        check_logits(low, high, config.scores)
    if config.activation == "softmax":
        raw = softmax(raw)
    elif config.activation == "sigmoid":
        with np.errstate(divide="ignore"):
            floor = float(np.log(floor) - np.log1p(-floor))
    rows, classes = np.nonzero(raw[:, first:] >= floor)
    classes += first
    scores = raw[rows, classes]
    return rows, classes, sigmoid(scores) if config.activation == "sigmoid" else scores


def _decode(codes: Floats, anchors: Floats, coding: str, size: int) -> tuple[Floats, Floats | None]:
    """Return boxes (N, 4) and points (N, K, 2) or None, 0..1 of the input."""
    pairs = codes.reshape(len(codes), codes.shape[1] // 2, 2)  # centre, size, points
    if coding == "scaled":
        pairs = pairs[:, :, ::-1]
        size_in_anchors, offsets = np.exp(np.clip(pairs[:, 1] / 5, -20, 20)), pairs / 10
    else:
        size_in_anchors, offsets = pairs[:, 1] / size, pairs / size
    places = offsets * anchors[:, None, 2:] + anchors[:, None, :2]
    centre, half = places[:, 0], size_in_anchors * anchors[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1), places[:, 2:] if pairs.shape[1] > 2 else None
