"""Bounds of the settings of a pipeline that may be changed from outside without a signature. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hedgerow.config import PipelineConfig

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "batch": (1, 256),
    "lanes": (1, 16),
    "queue.max_age_s": (0.1, 7 * 86_400),
    "queue.deadline_s": (0.01, 86_400),
    "queue.max_rate_per_stream": (0.01, 1e6),
    "queue.max_frames_per_stream": (1, 1024),
    "queue.max_frames": (1, 65_536),
    "queue.max_bytes": (2**20, 2**30),
}
"""Least and most by default, or what the node's file has, if that is further out."""


def own_value(pipeline: PipelineConfig, path: str) -> float | None:
    """Return what the node's file has for a setting; None: it leaves it open."""
    value = getattr(pipeline.queue if "." in path else pipeline, path.rpartition(".")[2])
    return value if isinstance(value, int | float) else None


def bounds(pipeline: PipelineConfig, path: str) -> tuple[float, float]:
    """Return the least and the most that a setting of this pipeline may be changed to, without `remote: limits`."""
    low, high = BOUNDS[path]
    if path == "queue.max_bytes":  # a frame that is larger than the queue would never be processed
        low = max(low, pipeline.max_payload_bytes)
    own = own_value(pipeline, path)
    return (low, high) if own is None else (min(low, own), max(high, own))
