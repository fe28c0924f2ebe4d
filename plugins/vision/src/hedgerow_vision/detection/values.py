"""Checks what a detector's values can be, and converts its boxes. Pure.

A score is a probability and a box lies in the picture. Values that are neither show that a tensor is read wrongly; to
publish them would be a wrong answer.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from hedgerow import FrameError
from hedgerow_vision.images.fit import Fit

Floats = NDArray[np.floating[Any]]
Order = Literal["yxyx", "xyxy", "cxcywh"]
Unit = Literal["fraction", "pixel"]

_TOLERANCE: Final = 0.01
"""How far outside 0..1 rounding may take a probability: half precision, and dequantised eight bits."""
_DOT_PIXELS: Final = 4
"""No detector finds anything as small: boxes that are all within so few pixels of the corner are fractions."""
_LEAST_INPUT_PIXELS: Final = 32
_FARTHEST_CENTRE: Final = 2.0
"""Boxes may extend beyond the input, but their centres hardly do; in fractions of the input."""


def check_probabilities(low: float, high: float, name: str) -> None:
    """Check the smallest and largest of all scores. Raises: FrameError: they are no probabilities."""
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # false for NaN as well
        wrong_values(
            f"The scores in {name!r} are {low:.4g} to {high:.4g}, which are no probabilities",
            "This is another kind of head, or its scores are logits: correct the settings of this stage; see the plugin's README.",
        )


def check_logits(low: float, high: float, name: str) -> None:
    """Check the smallest and largest of all logits. Raises: FrameError: they are probabilities, or not numbers."""
    if not (low < 0 or high > 1) or np.isnan(low) or high == np.inf:  # masked ones may be -inf
        wrong_values(
            f"The scores in {name!r} are {low:.4g} to {high:.4g}: these are no logits",
            "Set `activation: none` if they are probabilities.",
        )


def sigmoid(logits: Floats) -> Floats:
    """Return the probabilities of logits."""
    out: Floats = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    return out


def softmax(logits: Floats) -> Floats:
    """Return the probabilities of logits, along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    out: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return out


def to_fractions(boxes: Floats, order: Order, unit: Unit, fit: Fit) -> Floats:
    """Convert boxes to corners in fractions of the model's input.

    Args:
        boxes: (N, 4), those that score high enough.
    Returns: (N, 4), x0 y0 x1 y1; empty where a value is not finite.
    Raises: FrameError: they cannot be in this order or unit.
    """
    usable = np.isfinite(boxes).all(axis=1, keepdims=True)  # some models fill unused rows with NaN
    boxes = np.where(usable, boxes, 0).astype(np.float32, copy=False)
    if order == "cxcywh":
        if (boxes[:, 2:] < 0).any():
            wrong_values(
                f"A box has the size {boxes[:, 2:].min(axis=0).tolist()}",
                "Set `strides` if the boxes are relative to cells (YOLOX), or correct `order`.",
            )
        half = boxes[:, 2:] / 2
        corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    else:
        corners = boxes[:, [1, 0, 3, 2]] if order == "yxyx" else boxes
        reversed_ = (corners[:, 2:] < corners[:, :2]).any(axis=1)
        if reversed_.any():
            wrong_values(
                f"A box ends before it begins: {boxes[reversed_.argmax()].tolist()}, read as {order}",
                "Correct `order`, or the settings that say which head the model has.",
            )
    side = np.array([fit.input_width, fit.input_height], np.float32)
    if unit == "pixel":
        if len(corners) and min(side) >= _LEAST_INPUT_PIXELS and _largest(corners) <= _DOT_PIXELS:
            wrong_values(
                f"All boxes are within {_largest(corners):.3g} pixels of the corner of an input of {fit.input_width}x"
                f"{fit.input_height}",
                "Set `unit: fraction`, or `strides` if the boxes are relative to cells (YOLOX).",
            )
        corners = corners / np.tile(side, 2)
    centres = np.abs((corners[:, :2] + corners[:, 2:]) / 2)
    if len(centres) and _largest(centres) > _FARTHEST_CENTRE:
        wrong_values(
            f"A box is at {(centres[centres.max(axis=1).argmax()] * side).round().tolist()} pixels, outside the "
            f"input of {fit.input_width}x{fit.input_height}",
            "Correct `unit`, or remove `strides` if the model decodes its boxes; the input's size must be the model's own.",
        )
    return corners


def to_classes(values: NDArray[Any], labels: int, name: str) -> NDArray[np.intp]:
    """Convert a model's class column to indices.

    Args:
        labels: number of labels; 0: not known.
    Raises: FrameError: they are no indices, or there are fewer labels.
    """
    classes = values.round().astype(np.intp)
    if (np.abs(values - classes) > _TOLERANCE).any() or (classes < 0).any() or (labels and (classes >= labels).any()):
        known = f", and there are {labels} labels" if labels else ""
        wrong_values(
            f"The classes in {name!r} are {values.min():.4g} to {values.max():.4g}{known}",
            "Give the labels that the model was trained with; or this is another kind of head.",
        )
    return classes


def wrong_values(message: str, remedy: str) -> NoReturn:
    """Raises: FrameError: always."""
    raise FrameError(message, code="bad-tensor", remedy=remedy)


def _largest(values: Floats) -> float:
    return float(np.abs(values).max(initial=0))
