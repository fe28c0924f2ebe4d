"""Lanes: threads that run lists of frames through a built pipeline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import structlog

from hedgerow.errors import FrameError
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed
from hedgerow.pipeline.delivery import Delivery

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Job:
    """A list on its way through a built pipeline; `began_at` in monotonic seconds."""

    built: BuiltPipeline
    deliveries: list[Delivery]
    began_at: float

    def run(self, lane: int) -> Completed:
        """Take the list through. For any thread; never raises."""
        try:
            return self.built.run(self.deliveries, lane)
        except Exception as error:  # nothing gets here that we know of, but a lane that ends takes its frames along
            log.exception("lane-failed", pipeline=self.built.name)
            fault = FrameError(f"The node failed: {error!r}", code="internal", remedy="Report it, with the node's log.")
            return Completed([self.built.bury(delivery, fault) for delivery in self.deliveries], [])


class Lane(threading.Thread):
    """Runs lists, one after the other.

    Args:
        index: which of the pipeline's lanes, from 0.
        name: of the pipeline.
        finished: called on the event loop when a list has run.
    Attributes:
        job: the list under way, or None; kept by whoever gives and takes jobs.
    """

    def __init__(self, index: int, name: str, finished: Callable[[Lane, Job, Completed], None]) -> None:
        super().__init__(name=f"{name}-{index}", daemon=True)
        self.index = index
        self.job: Job | None = None
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._finished = finished
        self._loop = asyncio.get_running_loop()

    def give(self, job: Job) -> None:
        """Have a list run."""
        self.job = job
        self._inbox.put(job)

    def end(self) -> None:
        """End the thread after the list under way."""
        self._inbox.put(None)

    def run(self) -> None:
        """(threading) Take jobs until told to end."""
        while (job := self._inbox.get()) is not None:
            completed = job.run(self.index)
            try:
                self._loop.call_soon_threadsafe(self._finished, self, job, completed)
            except RuntimeError:  # the loop is closed: the process is going down without us
                return
