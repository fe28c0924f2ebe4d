"""The `resize` and `letterbox` stages: convert a picture to a model's input in one pass."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field, model_validator

from hedgerow import Array, ArraySpec, Frame, FrameSpec, Stage, StageConfig, StageContext
from hedgerow_vision.images.fit import META, Fit
from hedgerow_vision.images.pictures import Picture, picture, picture_spec, resample


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _three(value: Any) -> Any:
    return (value, value, value) if isinstance(value, int | float) else value


Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_pair)]
Channels = Annotated[tuple[float, float, float], BeforeValidator(_three)]


class ResizeConfig(StageConfig):
    """Format of the model's input.

    A value is `(p − mean) ÷ std`, with p the pixel scaled to `range`.
    """

    size: Size = Field(description="Width and height of the input, or one number for both.", examples=[640, [640, 480]])
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Order of axes: channels first or last.")
    channels: Literal["rgb", "bgr", "grey"] = Field(
        "rgb", description="Order of the colours; grey: one channel, the brightness (ITU-R BT.601)."
    )
    dtype: Literal["float32", "uint8"] = Field(
        "float32", description="uint8 leaves the pixels unchanged; omit range, mean and std then."
    )
    range: tuple[float, float] = Field((0, 1), description="Values of the darkest and the brightest pixel.")
    mean: Channels = Field(
        (0, 0, 0), description="Subtracted, per colour in the order of `channels`, or one for all.", examples=[0.5]
    )
    std: Channels = Field((1, 1, 1), description="Divided by, per colour in the order of `channels`, or one for all.")
    tensor: str = Field("image", description="Name of the output tensor.")

    @model_validator(mode="after")
    def _sane(self) -> ResizeConfig:
        if 0 in self.std:
            raise ValueError("std must not be 0")
        if self.dtype == "uint8" and {"range", "mean", "std"} & self.model_fields_set:
            raise ValueError("dtype uint8 leaves the pixels unchanged: omit range, mean and std")
        if self.channels == "grey" and (len({*self.mean}) > 1 or len({*self.std}) > 1):
            raise ValueError("a grey picture has one mean and one std: give one number each")
        return self


class LetterboxConfig(ResizeConfig):
    """Format of the model's input, and its padding."""

    pad: int = Field(114, ge=0, le=255, description="Grey that fills the rest, as a pixel value.")
    align: Literal["centre", "top-left"] = Field("centre", description="Position of the picture in the input.")


R = TypeVar("R", bound=ResizeConfig)


class _InputStage(Stage[R]):
    """Base of both stages; subclasses place the picture in `_fit`."""

    concurrent = True

    def setup(self, context: StageContext) -> None:
        self._fill = InputFiller(self.config, getattr(self.config, "pad", 0))

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a picture; give the input tensor. Raises: StageMismatch: there is no picture."""
        config, (width, height) = self.config, self.config.size
        count = 1 if config.channels == "grey" else 3
        shape = (1, count, height, width) if config.layout == "nchw" else (1, height, width, count)
        tensors = {config.tensor: ArraySpec(config.dtype, shape)}
        return picture_spec(incoming).with_tensors(tensors, **{META: None})

    def process(self, frame: Frame) -> Frame:
        """Raises: FrameError: not-decoded, not-a-picture."""
        image = picture(frame)
        fit = self._fit(image.shape[1], image.shape[0])
        return frame.with_tensors({self.config.tensor: self._fill(image, fit)}, **{META: fit})

    def _fit(self, width: int, height: int) -> Fit:
        raise NotImplementedError


class Resize(_InputStage[ResizeConfig]):
    """Stretch the picture to a model's input; the picture itself stays in `frame.array`.

    Adds the tensor (1, C, H, W) or (1, H, W, C), with C 3 or, if grey, 1; and its mapping onto the picture in meta `fit`.
    """

    def _fit(self, width: int, height: int) -> Fit:
        return Fit.stretch(*self.config.size)


class Letterbox(_InputStage[LetterboxConfig]):
    """Fit the picture into a model's input, keeping its aspect ratio; the rest is grey.

    Otherwise like `resize`.
    """

    def _fit(self, width: int, height: int) -> Fit:
        return Fit.inside((width, height), *self.config.size, centred=self.config.align == "centre")


class InputFiller:
    """Writes a picture into a new input tensor: scaled, normalised and in the configured layout.

    Normalising is one multiplication and one addition per value, in place: plane by plane for channels first, row by
    row with repeated factors for channels last. Both are several times as fast as broadcasting over the colours.
    """

    def __init__(self, config: ResizeConfig, pad: int = 0) -> None:
        low, high = config.range
        self._count = 1 if config.channels == "grey" else 3
        mean, std = np.array(config.mean[: self._count]), np.array(config.std[: self._count])
        self._factor = ((high - low) / 255 / std).astype(np.float32)
        self._offset = ((low - mean) / std).astype(np.float32)
        self._pad = (pad * self._factor + self._offset).astype(np.float32)
        self._raw_pad = pad
        self._dtype = np.dtype(config.dtype)
        self._first = config.layout == "nchw"
        self._bgr = config.channels == "bgr"

    def __call__(self, image: Picture, fit: Fit) -> Array:
        """Return the input tensor for one picture.

        Args:
            image: (H, W, 3), uint8, RGB.
            fit: its placement.
        Returns: (1, C, H, W) or (1, H, W, C), C-contiguous.
        """
        scaled = resample(image, fit.width, fit.height)
        if self._count == 1:
            scaled = np.asarray(Image.fromarray(scaled).convert("L"))[:, :, np.newaxis]
        if self._bgr:
            scaled = scaled[:, :, ::-1]
        return self._channels_first(scaled, fit) if self._first else self._channels_last(scaled, fit)

    def _channels_first(self, scaled: Picture, fit: Fit) -> Array:
        out = np.empty((1, self._count, fit.input_height, fit.input_width), self._dtype)
        whole = (fit.width, fit.height) == (fit.input_width, fit.input_height)
        rows, columns = slice(fit.top, fit.top + fit.height), slice(fit.left, fit.left + fit.width)
        for channel in range(self._count):
            plane = out[0, channel]
            if not whole:
                plane.fill(self._raw_pad if self._dtype == np.uint8 else self._pad[channel])
            target = plane[rows, columns]
            target[...] = scaled[:, :, channel]
            if self._dtype != np.uint8:
                target *= self._factor[channel]
                target += self._offset[channel]
        return out

    def _channels_last(self, scaled: Picture, fit: Fit) -> Array:
        count = self._count
        out = np.empty((1, fit.input_height, fit.input_width, count), self._dtype)
        if (fit.width, fit.height) != (fit.input_width, fit.input_height):
            out[...] = self._raw_pad if self._dtype == np.uint8 else self._pad
        if self._dtype == np.uint8:
            out[0, fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = scaled
            return out
        lines: NDArray[np.float32] = out.reshape(fit.input_height, fit.input_width * count)
        target = lines[fit.top : fit.top + fit.height, fit.left * count : (fit.left + fit.width) * count]
        np.multiply(scaled.reshape(fit.height, fit.width * count), np.tile(self._factor, fit.width), out=target)
        target += np.tile(self._offset, fit.width)
        return out
