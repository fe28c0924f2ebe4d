"""Quadrilaterals around lines of text: ordering and rectification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow import HedgerowError
from hedgerow_vision.images.pictures import Picture, opencv

Quads = NDArray[np.floating[Any]]


class OpenCvMissing(HedgerowError):
    """OpenCV, which the text stages need, is not installed."""

    code = "opencv-missing"

    def __init__(self, stage: str) -> None:
        super().__init__(
            f"Stage {stage} needs OpenCV, which is not installed", remedy="Run `pip install 'hedgerow-vision[text]'`."
        )


def require_opencv(stage: str) -> Any:
    """Return the cv2 module. Raises: OpenCvMissing: it is not installed."""
    cv2 = opencv()
    if cv2 is None:
        raise OpenCvMissing(stage)
    return cv2


def clockwise(corners: Quads) -> Quads:
    """Return a rectangle's corners as top left, top right, bottom right, bottom left.

    Args:
        corners: (4, 2), x y, in any order; the rectangle may be rotated.
    """
    left_first = corners[np.argsort(corners[:, 0], kind="stable")]
    left = left_first[:2][np.argsort(left_first[:2, 1], kind="stable")]
    right = left_first[2:][np.argsort(left_first[2:, 1], kind="stable")]
    return np.stack([left[0], right[0], right[1], left[1]])


def reading_order(quads: Quads) -> list[int]:
    """Return the indices of quads in reading order: line by line downwards, within a line from left to right.

    A quad belongs to a line if its middle is above the bottom of the line's first quad.

    Args:
        quads: (N, 4, 2), x y.
    """
    if not len(quads):
        return []
    tops, bottoms = quads[:, :, 1].min(axis=1), quads[:, :, 1].max(axis=1)
    middles, lefts = (tops + bottoms) / 2, quads[:, :, 0].min(axis=1)
    order: list[int] = []
    line: list[int] = []
    for index in np.lexsort((lefts, middles)).tolist():
        if line and middles[index] > bottoms[line[0]]:
            order += sorted(line, key=lefts.__getitem__)
            line = []
        line.append(index)
    return order + sorted(line, key=lefts.__getitem__)


def rectify(image: Picture, quad: Quads, height: int) -> Picture:
    """Return the content of a quad as a rectangle; a quad much higher than wide is rotated left by 90°.

    Args:
        image: (H, W, 3).
        quad: (4, 2), x y in pixels of the image, clockwise from top left.
        height: of the result.
    Returns: (height, w, 3), w by the quad's aspect ratio.
    """
    cv2 = require_opencv("read-text")
    wide = max(math.dist(quad[0], quad[1]), math.dist(quad[3], quad[2]), 1.0)
    high = max(math.dist(quad[0], quad[3]), math.dist(quad[1], quad[2]), 1.0)
    if high >= 1.5 * wide:
        quad, wide, high = np.roll(quad, -1, axis=0), high, wide
    # Warping skips pixels if it shrinks more than twofold: warp to a multiple of the height, then average.
    whole = max(1, int(high // height))
    w, h = max(1, round(wide * height / high)), height
    across, down = w * whole, h * whole
    corners = np.array([[0, 0], [across, 0], [across, down], [0, down]], np.float32)
    turn = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
    crop: Picture = cv2.warpPerspective(image, turn, (across, down), borderMode=cv2.BORDER_REPLICATE)
    return crop if whole == 1 else cv2.resize(crop, (w, h), interpolation=cv2.INTER_AREA)
