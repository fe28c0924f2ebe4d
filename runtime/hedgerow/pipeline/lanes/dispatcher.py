"""Dispatcher of a pipeline: hands lists of queued frames to idle lanes, and lists that have run to the settler."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any, Final

from hedgerow.errors import FrameError
from hedgerow.models.session.batch_size import LONG_S
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed, Snapshot
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.crash_journal import LaneRecord
from hedgerow.pipeline.delivery import BatchSettlement, Delivery
from hedgerow.pipeline.intake.intake import Intake
from hedgerow.pipeline.intake.queue import FrameQueue
from hedgerow.pipeline.lanes.hang_watch import Hang
from hedgerow.pipeline.lanes.lane import Job, Lane
from hedgerow.pipeline.lanes.lane_tuner import LaneTuner
from hedgerow.pipeline.lanes.service_time import ServiceTime
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import DropReason, Tally

_STACK_LINES: Final = 8
"""Calls that the report of a hang shows, innermost last."""


class Dispatcher:
    """Runs the queued frames of one pipeline on its lanes. For the event loop's thread.

    Args:
        built: the pipeline that runs them.
        intake: where frames are queued.
        settler: settles frames that have run or expired.
        tally: counters of the pipeline.
        on_event: called with events for operators.
    Attributes:
        paused: dispatch nothing.
        snapshot: the last frame that gave a result, if any.
    """

    def __init__(
        self, built: BuiltPipeline, intake: Intake, settler: Settler, tally: Tally, on_event: EventSink
    ) -> None:
        self.paused = False
        self.snapshot: Snapshot | None = None
        self._built = built
        self._intake = intake
        self._settler = settler
        self._tally = tally
        self._on_event = on_event
        self._hangs: dict[Lane, Hang] = {}
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._service_time = ServiceTime()
        self._tuner: LaneTuner | None = None
        self._running_on_loop = False
        self._loop_record: LaneRecord | None = None

    @property
    def lanes(self) -> int:
        """Number of lanes; 0: lists run on the event loop."""
        return len(self._lanes)

    @property
    def idle(self) -> int:
        """Number of lanes that run nothing."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Number of lanes that run a list."""
        return len(self._lanes) - len(self._idle)

    @property
    def stuck_lanes(self) -> int:
        """Number of lanes whose list is still in progress."""
        return sum(lane.job is not None for lane in self._lanes)

    def use(self, built: BuiltPipeline) -> None:
        """Run the next lists through this built pipeline, and start the lanes that it has in addition."""
        if built is not self._built:
            self._built = built
            self._tuner = None  # it was tuned for other stages
        while len(self._lanes) < built.lanes:
            record = built.journal.open_lane(built.name)
            lane = Lane(len(self._lanes), built.name, record, self._finished)
            self._lanes.append(lane)
            self._idle.append(lane)
            lane.start()
        if not built.lanes and self._loop_record is None:
            self._loop_record = built.journal.open_lane(built.name)
        if built.pinned or built.config.lanes is not None:
            self._tuner = None
        elif self._tuner is None:
            self._tuner = LaneTuner(len(self._lanes), built.first_lanes, time.process_time)

    def stop(self) -> None:
        """End each lane's thread after its current list, which a worker is not allowed to finish.

        A list that hangs stays in the crash journal, others do not. The pipeline must be retired.
        """
        self.watch()
        hung = {lane for lane, hang in self._hangs.items() if hang.expired}
        for lane in self._lanes:
            lane.stop()
            if lane not in hung:
                lane.record.end()
                lane.record.remove()
            if lane.job is not None:
                lane.job.built.end_stopped(lane.index)
        if self._loop_record is not None:
            self._loop_record.remove()

    def replace_dead_lanes(self) -> int:
        """Replace lanes whose thread ended though it was not told to, and dead-letter their frames; return how many.

        Nothing in a lane raises; but code in the same process can end any thread.
        """
        dead = [lane for lane in self._lanes if not lane.stopped and not lane.is_alive()]
        for lane in dead:
            replacement = self._lanes[lane.index] = Lane(lane.index, self._built.name, lane.record, self._finished)
            replacement.start()
            if lane in self._idle:
                self._idle.remove(lane)
            self._idle.append(replacement)
            job, lane.job = lane.job, None
            if job is not None:
                self._completed(self._intake.queue_of(lane.index), job, job.failed(_lane_died()))
        return len(dead)

    def watch(self) -> None:
        """Look for stages that hang: report each once it has taken longer than it may, and end its list if possible."""
        now, hangs = time.monotonic(), {}
        for built in {self._built, *(lane.job.built for lane in self._lanes if lane.job is not None)}:
            built.supervise()
        for lane in self._lanes:
            job = lane.job
            call = None if job is None else job.built.stage_call(lane.index) or lane.record.progress.now()
            waited_s = lane.watch.look(call, now)
            if job is None or call is None:
                continue
            limit_s = job.built.timeouts_s[call.stage] * call.frames
            hangs[lane] = hang = Hang(job.built.step_names[call.stage], waited_s, limit_s)
            if hang.expired:
                if not lane.watch.reported:
                    lane.watch.reported = True
                    self._report(hang, lane)
                job.built.end_hung(lane.index, call)
        self._hangs = hangs

    def hang(self) -> Hang | None:
        """Return the stage that has made no progress for longest, as of the last `watch`; None: no stage runs."""
        return max(self._hangs.values(), key=lambda hang: hang.waited_s, default=None)

    def stage_on_loop(self) -> str:
        """(any thread) Return the stage that runs on the event loop; empty: none does."""
        call = None if self._loop_record is None else self._loop_record.progress.now()
        return "" if call is None else self._built.step_names[call.stage]

    def _report(self, hang: Hang, lane: Lane) -> None:
        self._tally.hung[hang.stage] += 1
        detail: dict[str, Any] = {"stage": hang.stage, "waited_s": round(hang.waited_s, 1), "limit_s": hang.limit_s}
        running = sys._current_frames().get(lane.ident or 0)
        if lane.record.progress.now() is not None and running is not None:  # else a worker's log has the stack
            detail["stack"] = "".join(traceback.format_stack(running)[-_STACK_LINES:])
        self._on_event("stage-hangs", detail)

    def wake(self) -> None:
        """Dispatch again after the broker has accepted results, in case the queue was held back by those."""
        if (self._idle or not self._built.lanes) and self._intake.has_ready:
            self.dispatch()

    def dispatch(self) -> None:
        """Give each idle lane what is queued for it."""
        if self.paused:
            return
        if not self._built.lanes:
            self._run_on_loop()
            return
        for lane in tuple(self._idle):
            if self.busy >= self._usable:
                return
            job = self._next_job(self._intake.queue_of(lane.index))
            if job is not None:
                self._idle.remove(lane)
                lane.submit(job)

    def _run_on_loop(self) -> None:
        """Run everything queued on the event loop: no thread switch, but the loop does nothing else meanwhile."""
        queue = self._intake.queue_of(0)
        record = self._loop_record
        assert record is not None  # noqa: S101 - opened by `use`
        while not self._running_on_loop and (job := self._next_job(queue)) is not None:
            self._running_on_loop = True
            completed = job.run(0, record)
            self._running_on_loop = False
            self._completed(queue, job, completed)

    def _next_job(self, queue: FrameQueue[Delivery]) -> Job | None:
        """Return the next list to run; drop frames that have expired or would miss their deadline."""
        deadline_s = self._built.config.queue.deadline_s
        while queue.has_ready and not self._settler.full:
            now, limit = time.monotonic(), self._batch_limit(queue)
            if deadline_s is None:
                taken, expired = queue.take(limit, now)
            else:
                taken, expired = queue.take(limit, now, self._service_time.needs)
            for delivery, reason in expired:
                self._settler.drop(delivery, reason)
            if taken:
                for delivery in taken:
                    delivery.dispatched_at = now
                self._built.running += 1
                return Job(self._built, taken, now)
            if not self.busy and any(reason is DropReason.LATE for _, reason in expired):
                self._service_time.decay()  # nothing runs, and every frame was judged too late to start
        return None

    @property
    def _usable(self) -> int:
        """Number of lanes that may run at the same time."""
        return self._built.lanes if self._tuner is None else self._tuner.lanes

    def _batch_limit(self, queue: FrameQueue[Delivery]) -> int:
        """Return the most frames for the next list.

        Short lists cost more per frame, so a lane takes everything queued. It takes less if that would run for long: a
        list blocks its streams, and would leave nothing for the other lanes.
        """
        batch = self._built.batch
        if self._built.pinned or self._usable <= 1 or self._service_time.needs(queue.ready) <= LONG_S:
            return batch
        return min(batch, max(1, int(LONG_S / self._service_time.needs(1))))

    def _finished(self, lane: Lane, job: Job, completed: Completed) -> None:
        if lane.job is not job:
            return  # its thread ended, and it has been replaced
        lane.job = None
        try:
            self._completed(self._intake.queue_of(lane.index), job, completed)
        finally:  # whatever happens, the lane goes on
            if completed.not_run and not lane.stopped:  # their streams stay in this lane, which keeps them in order
                self._built.running += 1
                lane.submit(Job(self._built, list(completed.not_run), time.monotonic()))
            else:
                self._idle.append(lane)
        self.dispatch()

    def _completed(self, queue: FrameQueue[Delivery], job: Job, completed: Completed) -> None:
        now, frames = time.monotonic(), len(job.deliveries) - len(completed.not_run)
        if frames:
            self._service_time.took(frames, now - job.started_at)
        job.built.running -= 1
        if job.built.retired:
            job.built.retire()
        streams = {delivery.stream for delivery in job.deliveries}
        queue.release(streams.difference([delivery.stream for delivery in completed.not_run]))
        if self._tuner is not None:
            self._tuner.finished(frames, now, queue.has_ready)
        for stream in self._intake.forgotten(streams):  # forgotten while it ran, which brought its state back
            job.built.forget(stream)
        tally = self._tally
        self.snapshot = completed.snapshot or self.snapshot
        for name, seconds, count in completed.timings:
            tally.stage_s[name] += seconds
            tally.stage_frames[name] += count
        for name, count in completed.columns:
            tally.stage_columns[name] += count
        for group in completed.groups:
            if isinstance(group, BatchSettlement):
                self._settler.settle_batch(job.built, group)
            else:
                self._settler.settle(job.built, group)


def _lane_died() -> FrameError:
    return FrameError(
        "The lane's thread ended while it ran this frame",
        code="lane-died",
        remedy="Look for code that ends threads, such as PyThreadState_SetAsyncExc; `workers: 1` keeps it out of the node.",
    )
