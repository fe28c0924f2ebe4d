"""Pictures as the stages exchange them: (H, W, 3), uint8, RGB."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hedgerow import ArraySpec, Frame, FrameError, FrameSpec

Picture = NDArray[np.uint8]
SPEC: Final = ArraySpec("uint8", (None, None, 3))


def picture_spec(incoming: FrameSpec) -> FrameSpec:
    """Return what is known of frames that hold a picture.

    Raises: StageMismatch: they hold none.
    """
    found = incoming.expect_array(SPEC, remedy="Put `decode` before it, and nothing that changes the picture between.")
    return incoming if found.shape is not None else incoming.with_array(SPEC)


def picture(frame: Frame) -> Picture:
    """Return the frame's picture.

    Returns: (H, W, 3), uint8, RGB.
    Raises: FrameError: the frame is not decoded, or its array is not a picture.
    """
    array = frame.array
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise FrameError(
            f"Expected a picture, uint8 (H, W, 3), got {array.dtype}{list(array.shape)}",
            code="not-a-picture",
            remedy="Put `decode` before this stage, or check which sensors this pipeline subscribes to.",
        )
    return array


def resample(image: Picture, width: int, height: int) -> Picture:
    """Scale a picture, without aliasing when it shrinks.

    Uses OpenCV if installed: a box filter over whole pixels, then bilinear, in about a third of Pillow's time.
    Otherwise uses Pillow: the same two steps, with a better filter in the second.

    Args:
        image: (H, W, 3), uint8.
    Returns: (height, width, 3), uint8; the picture itself if it has that size.
    """
    high, wide = image.shape[:2]
    if (high, wide) == (height, width):
        return image
    cv2 = opencv()
    if cv2 is None:
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return np.asarray(scaled)
    across, down = max(1, wide // width), max(1, high // height)
    if (across, down) == (1, 1):
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
    whole = (wide // across, high // down)
    small = cv2.resize(image[: whole[1] * down, : whole[0] * across], whole, interpolation=cv2.INTER_AREA)
    # Not resize: it would compensate for the edges that the box filter cut off by stretching, and shift every box.
    x, y = wide / across / width, high / down / height
    back = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


@cache
def opencv() -> Any:
    """Return the cv2 module, or None if the extra `text` is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    # The node already runs frames in parallel; OpenCV's own threads would compete for the same cores.
    cv2.setNumThreads(1)
    return cv2
