"""Non-maximum suppression: keeps the best of overlapping boxes. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]


def overlaps(box: Floats, boxes: Floats) -> NDArray[np.float64]:
    """Return the intersection over union of one box with each of others.

    Args:
        box: (4,), x0 y0 x1 y1.
        boxes: (N, 4).
    Returns: (N,), 0..1; 0 where both are empty.
    """
    left_top = np.maximum(box[:2], boxes[:, :2])
    right_bottom = np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(right_bottom - left_top, 0, None), axis=1, dtype=np.float64)
    union = _area(box[None]) + _area(boxes) - shared
    shares: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def suppress(
    boxes: Floats, scores: Floats, labels: NDArray[np.integer[Any]], max_iou: float, limit: int
) -> list[tuple[int, Indices]]:
    """Apply greedy non-maximum suppression within each label (Felzenszwalb et al. 2010, §5.3).

    Ties are broken by label and box, so the order of the boxes does not matter.

    Args:
        boxes: (N, 4), x0 y0 x1 y1.
        scores: (N,).
        labels: (N,); boxes of different labels never suppress each other.
        max_iou: boxes that overlap by more than this are one object.
        limit: most boxes kept.
    Returns: for each box kept, best first: its index, and the indices of its group, itself included.
    """
    rest = np.lexsort((*boxes.T, labels, -scores))
    kept: list[tuple[int, Indices]] = []
    while rest.size and len(kept) < limit:
        best = rest[0]
        same = (labels[rest] == labels[best]) & (overlaps(boxes[best], boxes[rest]) > max_iou)
        same[0] = True
        kept.append((int(best), rest[same]))
        rest = rest[~same]
    return kept


def blend(values: Floats, scores: Floats, groups: list[tuple[int, Indices]]) -> NDArray[np.float64]:
    """Return each group's average, weighted by score: steadier between frames than its best (BlazeFace: Bazarevsky et
    al. 2019, §3.4).

    Args:
        values: (N, …), boxes or points.
        groups: from `suppress`.
    Returns: (len(groups), …).
    """
    out = np.empty((len(groups), *values.shape[1:]))
    for row, (_, members) in enumerate(groups):
        out[row] = np.average(values[members], axis=0, weights=scores[members].astype(np.float64))
    return out


def _area(boxes: Floats) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1, dtype=np.float64)
    return areas
