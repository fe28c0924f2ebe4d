"""Hedgerow: an event-driven inference runtime for the edge.

This package exports the API for plugin authors; everything else is internal.
"""

TYPE_CHECKING = False  # not from `typing`: until these imports are done, Ctrl-C shows a traceback
if TYPE_CHECKING:
    from typing import Any

    from hedgerow.backends.base import TensorSpec
    from hedgerow.errors import FrameError, HedgerowError, StageMismatch
    from hedgerow.frame import Array, Drop, Frame
    from hedgerow.stage import ArraySpec, FrameSpec, ModelHandle, Outcome, PerStream, Stage, StageConfig, StageContext

__version__ = "0.1.0"

__all__ = [
    "Array",
    "ArraySpec",
    "Drop",
    "Frame",
    "FrameError",
    "FrameSpec",
    "HedgerowError",
    "ModelHandle",
    "Outcome",
    "PerStream",
    "Stage",
    "StageConfig",
    "StageContext",
    "StageMismatch",
    "TensorSpec",
]


def __getattr__(name: str) -> "Any":
    # Imported on first use: numpy and pydantic take half a second, which would delay `hedgerow --help`.
    if name in __all__:
        from hedgerow import errors, frame, stage

        value = globals()[name] = next(vars(module)[name] for module in (stage, frame, errors) if name in vars(module))
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
