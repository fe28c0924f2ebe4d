"""Hedgerow: an event-driven inference runtime for the edge.

What a plugin author needs is here; everything else is the node's business.
"""

TYPE_CHECKING = False  # not from `typing`: what is imported here delays the moment from which Ctrl-C is quiet
if TYPE_CHECKING:
    from typing import Any

    from hedgerow.backends.base import TensorSpec
    from hedgerow.errors import FrameError, HedgerowError
    from hedgerow.frame import Array, Drop, Frame
    from hedgerow.stage import ModelHandle, Outcome, PerStream, Stage, StageConfig, StageContext

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Drop",
    "Frame",
    "FrameError",
    "HedgerowError",
    "ModelHandle",
    "Outcome",
    "PerStream",
    "Stage",
    "StageConfig",
    "StageContext",
    "TensorSpec",
]


def __getattr__(name: str) -> "Any":
    # Imported when first asked for: numpy and pydantic take half a second, which `hedgerow --help` need not wait for.
    if name in __all__:
        from hedgerow import errors, frame, stage

        value = globals()[name] = next(vars(module)[name] for module in (stage, frame, errors) if name in vars(module))
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
