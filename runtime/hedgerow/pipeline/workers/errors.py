"""Why a frame or a pipeline was lost with its worker."""

from __future__ import annotations

from hedgerow.errors import HedgerowError
from hedgerow.pipeline.workers.worker import WorkerEnd


class WorkerDied(HedgerowError):
    """A worker process ended twice on the same frame."""

    code = "worker-crashed"

    def __init__(self, pipeline: str, end: WorkerEnd, stage: str) -> None:
        where = f" in stage {stage}" if stage else ""
        super().__init__(
            f"A worker of pipeline {pipeline} crashed twice on this frame{where}: it {end.how}",
            remedy="Run the frame from the dead letter through the pipeline by hand; the node's log has the stack of the crash.",
        )


class StageTimeout(HedgerowError):
    """A stage took longer than it may for a frame that ran alone."""

    code = "stage-timeout"

    def __init__(self, stage: str, limit_s: float) -> None:
        super().__init__(
            f"Stage {stage} took longer than {limit_s:g} s for this frame",
            remedy="The node's log has the stack where it hung. Raise its `timeout_s` if it is only slow.",
        )


class WorkerMemoryExceeded(HedgerowError):
    """A worker needed too much memory for a frame that ran alone."""

    code = "worker-memory"

    def __init__(self, stage: str, limit_bytes: int) -> None:
        super().__init__(
            f"A worker exceeded {limit_bytes:,} bytes, twice its `worker_max_bytes`, with this frame in stage "
            f"{stage or 'unknown'}",
            remedy="Raise the pipeline's `worker_max_bytes`, or send smaller frames.",
        )


class WorkerNotStarted(HedgerowError):
    """A worker process ended, or timed out, before it was ready."""

    code = "worker-not-started"

    def __init__(self, pipeline: str, end: WorkerEnd, stage: str = "") -> None:
        where = (
            f" while stage {stage} was set up"
            if stage
            else " before it was ready"
            if end.returncode is not None
            else ""
        )
        super().__init__(
            f"A worker of pipeline {pipeline} {end.how}{where}",
            remedy="See its output in the log above; `workers: 0` runs the stages in the node, where they are easier to debug.",
        )
