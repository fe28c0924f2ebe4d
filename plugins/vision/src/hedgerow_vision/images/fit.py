"""Placement of a picture within a model's input, to map detections back onto the picture. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hedgerow import Frame, FrameError

META: Final = "fit"
"""Meta key under which `resize` and `letterbox` store the Fit."""

Floats = NDArray[np.floating[Any]]


class Fit(NamedTuple):
    """The part of a model's input that the picture fills; all in pixels of the input.

    Attributes:
        left, top: position of the picture.
        width, height: size of the scaled picture.
        input_width, input_height: size of the whole input.
    """

    left: int
    top: int
    width: int
    height: int
    input_width: int
    input_height: int

    @classmethod
    def stretch(cls, width: int, height: int) -> Fit:
        """Fill the whole input, ignoring the aspect ratio."""
        return cls(0, 0, width, height, width, height)

    @classmethod
    def inside(cls, picture: tuple[int, int], width: int, height: int, *, centred: bool = True) -> Fit:
        """Fit the picture inside the input as large as possible, keeping its aspect ratio.

        Args:
            picture: its width and height.
        """
        scale = min(width / picture[0], height / picture[1])
        w, h = max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))
        left, top = ((width - w) // 2, (height - h) // 2) if centred else (0, 0)
        return cls(left, top, w, h, width, height)

    def to_picture(self, points: Floats) -> NDArray[np.float64]:
        """Convert fractions of the input to fractions of the picture.

        Args:
            points: (…, 2), x and y, or boxes as (…, 4), x0 y0 x1 y1; 0..1 of the input.
        Returns: the same shape, 0..1 of the picture; outside that range within the padding.
        """
        pairs = points.reshape(*points.shape[:-1], points.shape[-1] // 2, 2).astype(np.float64)
        pairs = (pairs * (self.input_width, self.input_height) - (self.left, self.top)) / (self.width, self.height)
        return pairs.reshape(points.shape)

    def to_input(self, points: Floats) -> NDArray[np.float64]:
        """Convert fractions of the picture to fractions of the input."""
        pairs = points.reshape(*points.shape[:-1], points.shape[-1] // 2, 2).astype(np.float64)
        pairs = (pairs * (self.width, self.height) + (self.left, self.top)) / (self.input_width, self.input_height)
        return pairs.reshape(points.shape)


def fit_of(frame: Frame) -> Fit:
    """Return how the frame's picture was fitted into the model's input.

    Raises: FrameError: no `letterbox` or `resize` came before.
    """
    fit = frame.meta.get(META)
    if not isinstance(fit, Fit):
        raise FrameError(
            "Cannot map boxes back onto the picture: the frame does not say how it was fitted into the model's input",
            code="no-fit",
            remedy="Put `letterbox` or `resize` before `infer`.",
        )
    return fit
