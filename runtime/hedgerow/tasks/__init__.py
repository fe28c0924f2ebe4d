"""Starts asyncio tasks and threads so that none of them ends unnoticed, and ends them so that nothing is left half done.

Rules:
- Every task and thread starts here; `tests/test_conventions.py` refuses any other way.
- An exception is logged with its traceback, and counted in `hedgerow_task_failures`. A long-lived task or thread then starts
  again, after a pause that grows.
- A cancelled operation either has changed nothing, or is finished first: `run_to_end`.
"""

from hedgerow.tasks.cancellation import WorkCancelled, check_cancelled, in_executor, interrupted_by
from hedgerow.tasks.failures import gauges
from hedgerow.tasks.tasks import cancel, in_thread, run_to_end, start, supervise
from hedgerow.tasks.threads import start_thread, supervise_thread

__all__ = [
    "WorkCancelled",
    "cancel",
    "check_cancelled",
    "gauges",
    "in_executor",
    "in_thread",
    "interrupted_by",
    "run_to_end",
    "start",
    "start_thread",
    "supervise",
    "supervise_thread",
]
