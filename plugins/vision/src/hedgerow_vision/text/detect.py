"""The `detect-text` stage: finds lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import ArraySpec, Frame, FrameSpec, Outcome, Stage, StageConfig, StageContext, StageMismatch, TensorSpec
from hedgerow.stage import THRESHOLD
from hedgerow_vision.detection.detections import with_result_part
from hedgerow_vision.detection.values import check_probabilities
from hedgerow_vision.images.fit import Fit
from hedgerow_vision.images.pictures import Picture, picture, picture_spec
from hedgerow_vision.images.resize import InputFiller, ResizeConfig
from hedgerow_vision.text.quads import clockwise, reading_order, require_opencv

QUADS: Final = "quads"
"""Meta key of the boxes: (N, 4, 2), float64, x y as fractions of the picture, clockwise from top left."""
_GRID: Final = 32
_SMALLEST: Final = 3


class DetectTextConfig(StageConfig):
    """Model, scaling and thresholds."""

    model: str = Field(description="A DB text detector, e.g. PP-OCR's.")
    max_side: int = Field(
        960, ge=_GRID, description="A picture with a longer side is scaled down; the cost grows with the square."
    )
    min_side: int = Field(
        0, ge=0, description="A picture whose shorter side is below this is scaled up, within max_side."
    )
    threshold: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="A pixel is text if the model's output for it is at least this.",
        json_schema_extra=THRESHOLD,
    )
    min_score: float = Field(
        0.5, ge=0, le=1, description="Leave out boxes whose mean pixel score is lower.", json_schema_extra=THRESHOLD
    )
    grow: float = Field(
        1.6, ge=0, description="The model marks the core of a line; its box is grown by area × this ÷ perimeter."
    )
    limit: int = Field(1000, ge=1, description="Maximum number of boxes in a picture.")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="Subtracted, per colour, of 0..1.")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="Divided by, per colour.")


class DetectText(Stage[DetectTextConfig]):
    """Find lines of text by differentiable binarisation (Liao et al. 2020, "Real-time Scene Text Detection…").

    The result has `texts`, in reading order, each with `score` and `box`: four points, clockwise from top left. Meta
    `quads` holds the same for `read-text`. Pictures of one size run as one batch.
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Load the model.

        Raises:
            OpenCvMissing: the extra `text` is not installed.
            ModelError: the model cannot be loaded.
        """
        require_opencv("detect-text")
        self._model = context.model(self.config.model)
        (self._input,), (self._output,) = self._model.inputs, self._model.outputs
        norm = ResizeConfig(size=_GRID, channels="bgr", mean=self.config.mean, std=self.config.std)
        self._fill = InputFiller(norm)

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a picture. Raises: StageMismatch: there is none, or the model does not take one."""
        picture = ArraySpec("float32", (None, 3, None, None))
        check_model(self._model.name, self._input, picture, self._output, ArraySpec(shape=(None, None, None, None)))
        if any(side is not None and side % _GRID for side in self._input.shape[2:]):
            remedy = "Export the model with a dynamic height and width."
            raise StageMismatch(f"a model whose sides are multiples of {_GRID}", str(self._input), remedy=remedy)
        return picture_spec(incoming).with_meta(**{QUADS: None})

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Raises: FrameError: not-decoded, not-a-picture."""
        outcomes: list[Outcome | Exception] = [None] * len(frames)
        pictures: dict[int, Picture] = {}
        for index, frame in enumerate(frames):
            try:
                pictures[index] = picture(frame)
            except Exception as error:  # noqa: BLE001 - becomes this frame's outcome
                outcomes[index] = error
        if pictures:
            inputs = [{self._input.name: self._prepare(image)} for image in pictures.values()]
            for index, output in zip(pictures, self._model.infer_each(inputs), strict=True):
                if isinstance(output, Exception):
                    outcomes[index] = output
                else:
                    outcomes[index] = self._finish(frames[index], output[self._output.name][0, 0])
        return outcomes

    def _prepare(self, image: Picture) -> NDArray[Any]:
        height, width = image.shape[:2]
        scale = max(1.0, self.config.min_side / min(width, height))
        scale = min(scale, self.config.max_side / max(width, height))
        return self._fill(image, Fit.stretch(_on_grid(width * scale), _on_grid(height * scale)))

    def _finish(self, frame: Frame, heat: NDArray[np.float32]) -> Frame:
        config = self.config
        quads, scores = find_quads(heat, config.threshold, config.min_score, config.grow, config.limit)
        order = reading_order(quads)
        quads, scores = quads[order], scores[order]
        texts = [
            {"score": score, "box": box}
            for score, box in zip(scores.round(4).tolist(), quads.round(5).tolist(), strict=True)
        ]
        return with_result_part(frame.with_meta(**{QUADS: quads}), "texts", texts)


def check_model(name: str, taken: TensorSpec, picture: ArraySpec, given: TensorSpec, read: ArraySpec) -> None:
    """Check that a text model takes pictures as a stage makes them, and gives what the stage reads.

    Raises: StageMismatch: it does not.
    """
    remedy = "Use a model of PaddleOCR, exported to ONNX with float32 and channels first."
    if not picture.agrees(_without_batch(taken)):
        raise StageMismatch(f"a model of {picture}", f"{taken} of model {name}", remedy=remedy)
    if given.shape and not read.agrees(_without_batch(given)):
        raise StageMismatch(f"a model that gives {read}", f"{given} of model {name}", remedy=remedy)


def _without_batch(tensor: TensorSpec) -> ArraySpec:
    """Return what is known of a tensor when its batch axis may have any size."""
    return ArraySpec(str(tensor.dtype), (None, *tensor.shape[1:]))


def find_quads(
    heat: NDArray[np.float32], threshold: float, min_score: float, grow: float, limit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rectangles around the text in a detector's heat map.

    The paper grows each outline by polygon offsetting. Here the outlines are rectangles, so moving every side outwards
    gives the same bounding rectangle.

    Args:
        heat: (h, w), 0..1, probability that a pixel is text.
    Returns: quads (N, 4, 2), x y as fractions, clockwise from top left; scores (N,).
    Raises: FrameError: it holds no probabilities.
    """
    cv2 = require_opencv("detect-text")
    check_probabilities(float(heat.min()), float(heat.max()), "the text detector's heat map")
    height, width = heat.shape
    mask = cv2.dilate((heat > threshold).astype(np.uint8), np.ones((2, 2), np.uint8))
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    quads: list[NDArray[np.float64]] = []
    scores: list[float] = []
    for outline in outlines[:limit]:
        middle, (w, h), angle = cv2.minAreaRect(outline)
        if min(w, h) < _SMALLEST:
            continue
        score = _mean_inside(heat, outline[:, 0])
        if score < min_score:
            continue
        out = w * h * grow / (w + h)  # twice area × grow ÷ perimeter
        corners = clockwise(cv2.boxPoints((middle, (w + out, h + out), angle)).astype(np.float64))
        quads.append(np.clip(corners / (width, height), 0, 1))
        scores.append(score)
    return np.array(quads).reshape(-1, 4, 2), np.array(scores)


def _mean_inside(heat: NDArray[np.float32], outline: NDArray[np.int32]) -> float:
    """Return the mean within an outline; its bounding box would score bent lines, which fill part of it, too low."""
    cv2 = require_opencv("detect-text")
    left, top, width, height = cv2.boundingRect(outline)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [outline - (left, top)], 1)
    return float(cv2.mean(heat[top : top + height, left : left + width], mask)[0])


def _on_grid(side: float) -> int:
    return max(_GRID, round(side / _GRID) * _GRID)
