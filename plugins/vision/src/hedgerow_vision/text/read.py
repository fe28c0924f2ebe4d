"""The `read-text` stage: recognises lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import ArraySpec, Frame, FrameSpec, HedgerowError, ModelHandle, Outcome, Stage, StageConfig, StageContext
from hedgerow.errors import ModelMismatch
from hedgerow.stage import THRESHOLD
from hedgerow_vision.detection.values import check_probabilities
from hedgerow_vision.images.pictures import Picture, picture, picture_spec
from hedgerow_vision.text.detect import QUADS, check_model
from hedgerow_vision.text.quads import rectify, require_opencv

_WHOLE: Final = np.array([[[0, 0], [1, 0], [1, 1], [0, 1]]], np.float64)
_STEP: Final = 64
"""Widths of inputs are multiples of this, so that lines of similar length share a batch with little padding. Sorting
all lines into a few wide batches took 50 % longer on a CPU."""
_NARROWEST: Final = 320 / 48
"""Width ÷ height of the narrowest input; the models were trained on lines padded to this."""


_MIN_UPSIDE_DOWN: Final = 0.9
"""Probability from which the angle model's "upside down" is believed."""


class ReadTextConfig(StageConfig):
    """Models, input size and threshold."""

    model: str = Field(description="A CTC text recogniser with its characters in the metadata, e.g. PP-OCR's.")
    angle_model: str | None = Field(None, description="A classifier that detects upside-down text.")
    min_score: float = Field(
        0.5, ge=0, le=1, description="Leave out lines with a lower score.", json_schema_extra=THRESHOLD
    )
    height: int = Field(48, ge=8, description="Height of the recogniser's input, pixels.")
    max_width: int = Field(2400, ge=48, description="A longer line is squeezed to this width, pixels.")


class Line(NamedTuple):
    """A recognised line of text."""

    text: str
    score: float


class _Crop(NamedTuple):
    frame: int
    line: int
    image: Picture


class ReadText(Stage[ReadTextConfig]):
    """Read each line that `detect-text` found; without it, take the whole picture as one line.

    The result has `texts`, in reading order, each with `text`, `score` and `box`, four points clockwise from top left.
    The lines of all waiting pictures run together; lines of similar length share a batch.

    Shi et al. 2015, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition" (CRNN, CTC).
    """

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Load the models.

        Raises:
            OpenCvMissing: the extra `text` is not installed.
            NoAlphabet: the recogniser's metadata lacks its characters.
            ModelMismatch: it has another number of characters.
            ModelError: a model cannot be loaded.
        """
        require_opencv("read-text")
        self._reader = context.model(self.config.model)
        self._angle_model = None if self.config.angle_model is None else context.model(self.config.angle_model)
        self._alphabet = (self._reader.state_token, _alphabet(self._reader))

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a picture. Raises: StageMismatch: there is none, or a model does not take one."""
        height = self.config.height
        for model, width, shape in ((self._reader, None, (None, None, None)), (self._angle_model, 192, (None, 2))):
            if model is not None:
                picture = ArraySpec("float32", (None, 3, height, width))
                check_model(model.name, model.inputs[0], picture, model.outputs[0], ArraySpec(shape=shape))
        return picture_spec(incoming)

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        """Raises: FrameError: not-decoded, not-a-picture; bad-tensor: a model gives no probabilities."""
        outcomes: list[Outcome | Exception] = [None] * len(frames)
        quads: dict[int, NDArray[np.float64]] = {}
        crops: list[_Crop] = []
        for index, frame in enumerate(frames):
            try:
                image = picture(frame)
            except Exception as error:  # noqa: BLE001 - becomes this frame's outcome
                outcomes[index] = error
                continue
            quads[index] = frame.meta.get(QUADS, _WHOLE)
            for number, quad in enumerate(quads[index] * (image.shape[1], image.shape[0])):
                crops.append(_Crop(index, number, rectify(image, quad, self.config.height)))
        lines = self._read(crops)
        for index, found in quads.items():
            outcomes[index] = self._finish(frames[index], found, lines.get(index, {}))
        return outcomes

    def _read(self, crops: list[_Crop]) -> dict[int, dict[int, Line]]:
        """Return the lines by frame and number."""
        images = [crop.image for crop in crops]
        if self._angle_model is not None:
            angles = self._infer(self._angle_model, [_input(image, 192) for image in images])
            for angle in angles:
                check_probabilities(float(angle.min()), float(angle.max()), "the angle model's output")
            images = [
                np.ascontiguousarray(image[::-1, ::-1]) if angle[0, 1] > _MIN_UPSIDE_DOWN else image
                for image, angle in zip(images, angles, strict=True)
            ]
        outputs = self._infer(self._reader, [_input(image, self._width(image)) for image in images])
        token, alphabet = self._alphabet
        if token is not self._reader.state_token:  # the node swapped the version
            alphabet = _alphabet(self._reader)
            self._alphabet = (self._reader.state_token, alphabet)
        lines: dict[int, dict[int, Line]] = {}
        for crop, output in zip(crops, outputs, strict=True):
            lines.setdefault(crop.frame, {})[crop.line] = read_ctc(output[0], alphabet)
        return lines

    def _width(self, image: Picture) -> int:
        needed: float = max(image.shape[1], _NARROWEST * self.config.height)
        return min(self.config.max_width, _STEP * math.ceil(needed / _STEP))

    def _infer(self, model: ModelHandle, inputs: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        outputs = model.infer([{model.inputs[0].name: one} for one in inputs]) if inputs else []
        return [output[model.outputs[0].name] for output in outputs]

    def _finish(self, frame: Frame, quads: NDArray[np.float64], lines: dict[int, Line]) -> Frame:
        texts = [
            {"text": lines[number].text, "score": round(lines[number].score, 4), "box": box}
            for number, box in enumerate(quads.round(5).tolist())
            if lines[number].text and lines[number].score >= self.config.min_score
        ]
        before = frame.result if isinstance(frame.result, dict) else {}
        return frame.with_result({**before, "texts": texts})


def _input(image: Picture, width: int) -> NDArray[np.float32]:
    """Return a line as a model's input, squeezed if it is wider, else padded with zeros.

    Returns: (1, 3, h, width), BGR, -1..1.
    """
    if image.shape[1] > width:
        cv2 = require_opencv("read-text")
        image = cv2.resize(image, (width, image.shape[0]), interpolation=cv2.INTER_AREA)
    out = np.zeros((1, 3, image.shape[0], width), np.float32)
    filled = out[0, :, :, : image.shape[1]]
    filled[...] = image[:, :, ::-1].transpose(2, 0, 1)
    filled /= 127.5
    filled -= 1
    return out


def read_ctc(probabilities: NDArray[np.floating[Any]], alphabet: Sequence[str]) -> Line:
    """Decode the best path: the likeliest class at each step, without repeats and blanks (Graves et al. 2006, §3.2).

    Args:
        probabilities: (steps, classes), class 0 the blank.
        alphabet: the character of each class.
    Returns: the line; its score is the mean probability of the characters kept, 0 if there are none.
    Raises: FrameError: these are no probabilities.
    """
    best = probabilities.argmax(axis=1)
    kept = best != 0
    kept[1:] &= best[1:] != best[:-1]
    if not kept.any():
        return Line("", 0.0)
    text = "".join(alphabet[index] for index in best[kept]).strip()
    scores = probabilities[kept, best[kept]]
    check_probabilities(float(scores.min()), float(scores.max()), "the text recogniser's output")
    return Line(text, float(scores.mean()))


class NoAlphabet(HedgerowError):
    """A text recogniser's metadata lacks its characters."""

    code = "no-alphabet"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"Model {model} has no `character` in its metadata",
            remedy="Add its characters to the ONNX metadata, one per line under `character`, as in PP-OCR's models.",
        )


def _alphabet(model: ModelHandle) -> tuple[str, ...]:
    """Raises: NoAlphabet: there is none. ModelMismatch: it has another number of characters than the model."""
    characters = model.metadata.get("character", "").replace("\r\n", "\n").removesuffix("\n")
    if not characters:
        raise NoAlphabet(model.name)
    alphabet = ("", *characters.split("\n"), " ")
    output = model.outputs[0]
    classes = output.shape[-1] if output.shape else None
    if classes not in (None, len(alphabet)):
        raise ModelMismatch(
            f"{output} of model {model.name} has {classes} characters, but its metadata {len(alphabet)}, with blank and space",
            remedy="Write the characters that the model was trained with into its metadata, one per line.",
        )
    return alphabet
