"""Hedgerow: an event-driven inference runtime for the edge.

This package exports the API for plugin authors; everything else is internal.
"""

TYPE_CHECKING = False  # not from `typing`: until these imports are done, Ctrl-C shows a traceback
if TYPE_CHECKING:
    from typing import Any

    from hedgerow.backends.base import TensorSpec
    from hedgerow.columns.frame_batch import ABSENT, FrameBatch, Irregular
    from hedgerow.columns.stream_table import StreamTable
    from hedgerow.errors import FrameError, HedgerowError, StageMismatch
    from hedgerow.frame import Array, Drop, Frame
    from hedgerow.stage import ArraySpec, FrameSpec, ModelHandle, Outcome, PerStream, Stage, StageConfig, StageContext

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "Array",
    "ArraySpec",
    "Drop",
    "Frame",
    "FrameBatch",
    "FrameError",
    "FrameSpec",
    "HedgerowError",
    "Irregular",
    "ModelHandle",
    "Outcome",
    "PerStream",
    "Stage",
    "StageConfig",
    "StageContext",
    "StageMismatch",
    "StreamTable",
    "TensorSpec",
]


def __getattr__(name: str) -> "Any":
    # Imported on first use: numpy and pydantic take half a second, which would delay `hedgerow --help`.
    if name in __all__:
        from hedgerow import errors, frame, stage
        from hedgerow.columns import frame_batch, stream_table

        modules = (stage, frame, frame_batch, stream_table, errors)
        value = globals()[name] = next(vars(module)[name] for module in modules if name in vars(module))
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
