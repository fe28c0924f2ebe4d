"""Anchors: the reference boxes of an SSD-type detector."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hedgerow import StageConfig


class AnchorConfig(StageConfig):
    """Layout of a detector's anchors, as in its training."""

    size: int = Field(ge=1, description="Edge of the model's input, pixels.")
    strides: tuple[int, ...] = Field(min_length=1, description="Pixels of the input per cell, one entry per layer.")
    aspect_ratios: tuple[float, ...] = Field((1.0,), min_length=1, description="Width ÷ height of a cell's anchors.")
    scales: tuple[float, float] = Field((0.2, 0.95), description="Size of the anchors in the first and the last layer.")
    between: bool = Field(
        True, description="Add to each cell a square anchor of a size between this layer and the next."
    )
    fewer_in_first: bool = Field(False, description="Use only three anchors per cell in the first layer.")
    unit: bool = Field(
        False, description="Anchors have a position but no size: boxes are not relative to an anchor's size."
    )


def make_anchors(config: AnchorConfig) -> NDArray[np.float32]:
    """Return the anchors, layer by layer, row by row.

    As in SSD (Liu et al. 2016, §2.2), with MediaPipe's variation: layers of equal stride share one grid, their anchors
    concatenated within each cell.

    Returns: (N, 4), centre x, centre y, width, height, 0..1 of the input.
    """
    scale = [_scale(config, layer) for layer in range(len(config.strides) + 1)]
    grids = []
    for stride, group in groupby(enumerate(config.strides), key=lambda item: item[1]):
        sizes = [size for layer, _ in group for size in _sizes(config, layer, scale[layer], scale[layer + 1])]
        cells = math.ceil(config.size / stride)
        centres = (np.arange(cells) + 0.5) / cells
        grid = np.empty((cells, cells, len(sizes), 4), np.float32)
        grid[..., 0] = centres[None, :, None]
        grid[..., 1] = centres[:, None, None]
        grid[..., 2:] = sizes
        grids.append(grid.reshape(-1, 4))
    return np.concatenate(grids)


def _scale(config: AnchorConfig, layer: int) -> float:
    low, high = config.scales
    layers = len(config.strides)
    if layer == layers:
        return 1.0
    return (low + high) / 2 if layers == 1 else low + (high - low) * layer / (layers - 1)


def _sizes(config: AnchorConfig, layer: int, scale: float, next_scale: float) -> list[tuple[float, float]]:
    if layer == 0 and config.fewer_in_first:
        shapes = [(1.0, 0.1), (2.0, scale), (0.5, scale)]
    else:
        shapes = [(ratio, scale) for ratio in config.aspect_ratios]
        if config.between:
            shapes.append((1.0, math.sqrt(scale * next_scale)))
    if config.unit:
        return [(1.0, 1.0)] * len(shapes)
    return [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for ratio, size in shapes]
