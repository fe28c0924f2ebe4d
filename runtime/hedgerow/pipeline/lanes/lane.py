"""Lanes: threads that run lists of frames through a built pipeline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import structlog

from hedgerow.errors import FrameError, text_of
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed
from hedgerow.pipeline.crash_journal import LaneRecord
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.lanes.hang_watch import HangWatch
from hedgerow.pipeline.lanes.journaled import run_journaled

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Job:
    """A list of frames to run through a built pipeline; `started_at` in monotonic seconds."""

    built: BuiltPipeline
    deliveries: list[Delivery]
    started_at: float

    def run(self, lane: int, record: LaneRecord) -> Completed:
        """Run the list. For any thread; never raises."""
        try:
            return run_journaled(self.built, self.deliveries, lane, self.built.journal, record)
        except BaseException as error:  # not expected; but a lane that ended would lose its frames
            with suppress(Exception):
                log.exception("lane-failed", pipeline=self.built.name)
            return self.failed(
                FrameError(
                    f"Internal error: {type(error).__name__}: {text_of(error)}",
                    code="internal",
                    remedy="Report this with the node's log.",
                )
            )

    def failed(self, error: FrameError) -> Completed:
        """Return the list with every frame dead."""
        return Completed([[self.built.dead_letter(delivery, error) for delivery in self.deliveries]], [])


class Lane(threading.Thread):
    """A thread that runs lists one after the other.

    Args:
        index: number of the lane in its pipeline, from 0.
        name: name of the pipeline.
        record: the lane's part of the crash journal.
        finished: called on the event loop when a list has run.
    Attributes:
        job: the list in progress, or None; `finished` clears it.
        stopped: whether the thread was told to end.
        record: the lane's part of the crash journal.
        watch: notices when its stage hangs.
    """

    def __init__(
        self, index: int, name: str, record: LaneRecord, finished: Callable[[Lane, Job, Completed], None]
    ) -> None:
        super().__init__(name=f"{name}-{index}", daemon=True)
        self.index = index
        self.job: Job | None = None
        self.stopped = False
        self.record = record
        self.watch = HangWatch()
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._finished = finished
        self._loop = asyncio.get_running_loop()

    def submit(self, job: Job) -> None:
        """Run a list; the lane must be idle."""
        self.job = job
        self._inbox.put(job)

    def stop(self) -> None:
        """End the thread after the list in progress."""
        self.stopped = True
        self._inbox.put(None)

    def run(self) -> None:
        """Run jobs until `stop`; called by `threading`."""
        while (job := self._inbox.get()) is not None:
            completed = job.run(self.index, self.record)
            try:
                self._loop.call_soon_threadsafe(self._finished, self, job, completed)
            except RuntimeError:  # the loop is closed: the process is exiting
                return
