"""Test utilities for stages and pipelines: run them without a broker, or with a real one.

from hedgerow.testing import frame, run_stage

def test_a_black_frame_is_dropped_as_too_dark():
    run = run_stage(Brightness, [frame(np.zeros((4, 4, 3), np.uint8))], floor=0.05)
    assert run.dropped == {"too-dark": 1}
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hedgerow.testing.kit import PipelineRun, frame, frames, run_pipeline, run_stage
    from hedgerow.testing.mosquitto import Mosquitto

__all__ = ["Mosquitto", "PipelineRun", "frame", "frames", "run_pipeline", "run_stage"]


def __getattr__(name: str) -> Any:
    # Imported on first use: pytest loads this package in every project that has Hedgerow installed.
    if name == "Mosquitto":
        from hedgerow.testing.mosquitto import Mosquitto

        return Mosquitto
    if name in __all__:
        from hedgerow.testing import kit

        return getattr(kit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
