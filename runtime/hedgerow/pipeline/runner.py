"""A running pipeline: messages in, results out, every frame accounted for.

    source ─▶ queue ──▶ lane (a thread): frames ▶ chain ▶ encoding ──▶ sink ─▶ acknowledgement

Rules:
- Everything that counts or decides happens on the event loop, in one thread: queue, tally, acknowledgements. No locks.
- A lane takes all that waits, up to `batch`, as one list, and runs it through the whole chain: one hop there, one back.
- A stream is in one lane at a time, so its results keep their order; different streams use different cores.
- Without lanes (`lanes: 0`) the lists run on the event loop.
- A frame is acknowledged when the broker has accepted all its results, or the outbox has them on its disk, or the broker
  has its dead letter, or when it is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.outbox import Outbox
from hedgerow.config import QueueSection
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.models.session.batch_size import LONG_S
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Completed, Snapshot
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.delivery import Delivery, shed_reason
from hedgerow.pipeline.frame_maker import unusable
from hedgerow.pipeline.intake.placement import Placement
from hedgerow.pipeline.intake.queue import FrameQueue
from hedgerow.pipeline.intake.rate_limit import RateLimit
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.pipeline.lanes.lane import Job, Lane
from hedgerow.pipeline.lanes.lane_tuner import LaneTuner
from hedgerow.pipeline.lanes.service_time import ServiceTime
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import DropReason, Tally

log = structlog.get_logger(__name__)


def _filters(built: BuiltPipeline) -> dict[str, int]:
    """What a pipeline subscribes to: QoS by filter."""
    return dict.fromkeys(built.config.subscribe, built.config.qos)


def _share(limits: QueueSection, parts: int) -> QueueSection:
    """What each of several queues may hold, so that together they hold what one may."""
    if parts == 1:
        return limits
    totals = {"max_frames": max(1, limits.max_frames // parts), "max_bytes": max(1024, limits.max_bytes // parts)}
    return limits.model_copy(update=totals)


def _left_s(deadline: float) -> float:
    """What is left for one more step of stopping: a second in any case, for a farewell that only has to be written."""
    return max(1.0, deadline - time.monotonic())


def _nothing_comes(messages: list[Message]) -> None:
    """Takes what comes on a link that subscribes to nothing."""


class PipelineRunner:
    """Runs one pipeline over links of its own to the broker.

    A link a pipeline keeps them apart: each has its own session, its own Receive Maximum and its own pause, and a
    pipeline that is slow holds up nobody else. Results go out on a second link, so that frames can be held back, by
    not reading, while results still go and are acknowledged.

    Args:
        built: what to run.
        source: the link that frames come in on.
        sink: the link that results go out on.
        on_event: takes what operators should know.
        outbox: where results go if the pipeline is durable; else the sink takes them.
        tally: counts to go on from, of a runner this one takes over from.
    """

    def __init__(
        self,
        built: BuiltPipeline,
        source: ClientOptions,
        sink: ClientOptions,
        on_event: EventSink,
        outbox: Outbox | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.built = built
        self.tally = tally or Tally()
        self.state: Literal["running", "paused", "stopping"] = "running"
        self.snapshot: Snapshot | None = None
        self._source = Client(source, self._take_in)
        self._sink = Client(sink, _nothing_comes)
        self._settler = Settler(self._source, self._sink, self.tally, on_event, self._wake, outbox)
        self._streams: OrderedDict[str, int] = OrderedDict()
        # One for all lanes; or one a lane, where a stream must stay in its lane.
        self._queues: list[FrameQueue[Delivery]] = [
            FrameQueue(built.config.queue) for _ in range(built.lanes if built.pinned else 1)
        ]
        self._placement = Placement(len(self._queues))
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._service_time = ServiceTime()
        self._rate = RateLimit()
        self._lane_tuner: LaneTuner | None = None
        self._running_here = False
        self._turn = asyncio.Lock()
        self._adopt(built)

    def _adopt(self, built: BuiltPipeline) -> None:
        self.built = built
        self._key = StreamKey(built.config)
        for queue in self._queues:
            queue.limits = _share(built.config.queue, len(self._queues))

    # Lifecycle

    async def start(self, *, paused: bool = False) -> None:
        """Connect and subscribe; both go on in the background if the broker is away.

        Args:
            paused: wait for `resume` before connecting.
        """
        loop = asyncio.get_running_loop()
        self._housekeeping = loop.create_task(self._keep_house(), name=f"{self.built.name}-housekeeping")
        self._add_lanes()
        if paused:
            self.state = "paused"
        else:
            self._source.resume()
        self._sink.resume()
        await self._source.subscribe(_filters(self.built))

    async def stop(self, drain_s: float, *, forget_session: bool = False) -> None:
        """Take no more, finish what is in flight within a limit, disconnect.

        Args:
            drain_s: longest time to wait for frames in flight.
            forget_session: end the session at the broker too: the pipeline is not coming back.
        """
        self.state = "stopping"
        deadline = time.monotonic() + drain_s
        while self.tally.held and time.monotonic() < deadline:
            if self.connected or self._settler.storing or self._has_ready or len(self._idle) < len(self._lanes):
                await asyncio.sleep(0.01)
            else:
                break  # all that is left waits for a broker that is away
        for queue in self._queues:
            for delivery in list(queue.drain()):
                self._settler.drop(delivery, shed_reason(delivery))
        self._housekeeping.cancel()
        for lane in self._lanes:
            lane.end()
        self._settler.closing = True
        await self._sink.close(forget_session=True, timeout_s=_left_s(deadline))
        await self._source.close(forget_session=forget_session, timeout_s=_left_s(deadline))
        self._settler.give_up()
        stuck = [lane for lane in self._lanes if lane.job is not None]
        if stuck:
            log.warning("stage-stuck", pipeline=self.built.name, lanes=len(stuck), drain_s=drain_s)
            return
        self.built.retire()
        limit_s = _left_s(deadline)
        if not await asyncio.to_thread(self.built.wait_closed, limit_s):
            log.warning("stage-does-not-close", pipeline=self.built.name, waited_s=limit_s)

    async def pause(self) -> None:
        """Stop taking frames; the broker keeps QoS 1 frames meanwhile."""
        async with self._turn:
            if self.state == "running":
                self.state = "paused"
                await self._source.pause()

    async def resume(self) -> None:
        """Take frames again."""
        async with self._turn:
            if self.state == "paused":
                self.state = "running"
                self._source.resume()
                self._dispatch()

    async def renew_links(self) -> None:
        """Make both links anew, with certificate files as they are now; no frame is lost and none comes twice."""
        await self._sink.renew()
        await self._source.renew()

    def can_swap(self, built: BuiltPipeline) -> bool:
        """Whether it can go over to another built pipeline as it runs; what is settled when links and lanes are made must be the same."""
        now, then = (
            (c.receive_maximum, c.max_payload_bytes, c.workers, c.publish.durable)
            for c in (built.config, self.built.config)
        )
        return now == then and built.lanes >= len(self._lanes)

    async def add_subscriptions(self, built: BuiltPipeline) -> None:
        """Subscribe to what another built pipeline wants beside the present one's filters: the part of a swap that may fail.

        Raises: BusError: the broker refuses.
        """
        had = _filters(self.built)
        await self._source.subscribe({name: qos for name, qos in _filters(built).items() if had.get(name) != qos})

    async def undo_subscriptions(self, built: BuiltPipeline) -> None:
        """Take back what `add_subscriptions` did for a built pipeline that is not used after all."""
        await self._source.unsubscribe(_filters(built).keys() - _filters(self.built).keys())

    async def swap(self, built: BuiltPipeline) -> None:
        """Go over to another built pipeline, subscribed to already, between two lists; frames that run finish in the old one."""
        old = self.built
        await self._source.unsubscribe(_filters(old).keys() - _filters(built).keys())
        self._adopt(built)
        self._lane_tuner = None  # other stages, another number of lanes
        self._add_lanes()
        old.retire()
        self._dispatch()

    def _add_lanes(self) -> None:
        while len(self._lanes) < self.built.lanes:
            lane = Lane(len(self._lanes), self.built.name, self._finished)
            self._lanes.append(lane)
            self._idle.append(lane)
            lane.start()
        if self.built.pinned or self.built.config.lanes is not None:
            self._lane_tuner = None
        elif self._lane_tuner is None:
            self._lane_tuner = LaneTuner(len(self._lanes))

    @property
    def connected(self) -> bool:
        """Whether frames can come in and results go out."""
        return self._source.connected and self._sink.connected

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until frames can come in and results go out.

        Raises: BusError: they cannot yet.
        """
        await self._source.wait_connected(timeout_s)
        await self._sink.wait_connected(timeout_s)

    @property
    def refused(self) -> Mapping[str, str]:
        """Subscriptions that the broker refuses: why, by filter."""
        return self._source.refused

    @property
    def refused_publishes(self) -> int:
        """Results and dead letters that the broker did not take."""
        return self._sink.refused_publishes

    @property
    def reconnects(self) -> int:
        """Times a link was made anew."""
        return self._source.reconnects + self._sink.reconnects

    @property
    def queued(self) -> int:
        """Frames that wait."""
        return sum(map(len, self._queues))

    @property
    def _has_ready(self) -> bool:
        return any(queue.has_ready for queue in self._queues)

    @property
    def streams(self) -> int:
        """Streams seen and not forgotten."""
        return len(self._streams)

    def stuck_for_s(self) -> float:
        """How long the oldest list under way has been running; 0 if none is."""
        began = [lane.job.began_at for lane in self._lanes if lane.job is not None]
        return time.monotonic() - min(began) if began else 0.0

    # In

    def _take_in(self, messages: Sequence[Message]) -> None:
        tally, queues, built, key = self.tally, self._queues, self.built, self._key
        tally.received += len(messages)
        max_age_s, deadline_s = built.config.queue.max_age_s, built.config.queue.deadline_s
        per_s, admits = built.config.queue.max_rate_per_stream, self._rate.admits
        for message in messages:
            tally.bytes_in += len(message.payload)
            stream, expiry_s = message.topic, None
            problem: HedgerowError | None = None
            if message.oversized is None and message.malformed is None:
                try:
                    stream = key(message)
                    expiry_s = message.properties.expiry_s
                except FrameError as error:
                    problem = error
            else:
                problem = unusable(message, built.config.max_payload_bytes)
            delivery = Delivery(message, stream, self._number(stream), max_age_s)
            if expiry_s is not None:
                delivery.expire_in(expiry_s)
            if deadline_s is not None:
                delivery.expire_in(deadline_s)
            tally.held.add(delivery)
            if problem is not None:
                self._settler.bury(built, delivery, problem)
            elif message.retain:
                self._settler.drop(delivery, DropReason.RETAINED)
            elif self.state == "stopping":
                self._settler.drop(delivery, shed_reason(delivery))
            elif per_s is not None and not admits(stream, message.received_at, per_s):
                self._settler.drop(delivery, DropReason.RATE)
            else:
                queue = queues[self._placement(stream)] if len(queues) > 1 else queues[0]
                for shed, reason in queue.put(delivery):
                    self._settler.drop(shed, reason)
        if messages:
            tally.last_frame_at = time.time()
        self._dispatch()

    def _number(self, stream: str) -> int:
        """The next number of a stream; forgets the longest silent one when there are too many."""
        streams = self._streams
        number = streams.get(stream)
        if number is None:
            while len(streams) >= self.built.config.stream.max_streams:
                self.built.forget(streams.popitem(last=False)[0])
            number = 0
        else:
            streams.move_to_end(stream)
        streams[stream] = number + 1
        return number

    def _dispatch(self) -> None:
        """Give every idle lane what waits for it."""
        if self.state == "paused":
            return
        if not self.built.lanes:
            self._run_here()
            return
        for lane in tuple(self._idle):
            if len(self._lanes) - len(self._idle) >= self._usable:
                return
            job = self._next(self._queues[lane.index % len(self._queues)])
            if job is not None:
                self._idle.remove(lane)
                lane.give(job)

    def _run_here(self) -> None:
        """Run all that waits on the event loop: no thread to wake, and nothing else until it is done."""
        queue = self._queues[0]
        while not self._running_here and (job := self._next(queue)) is not None:
            self._running_here = True
            completed = job.run(0)
            self._running_here = False
            self._completed(queue, job, completed)

    def _next(self, queue: FrameQueue[Delivery]) -> Job | None:
        """The next list; drops what is of no use any more."""
        deadline_s = self.built.config.queue.deadline_s
        while queue.has_ready and not self._settler.full:
            now, most = time.monotonic(), self._most(queue)
            if deadline_s is None:
                taken, expired = queue.take(most, now)
            else:
                taken, expired = queue.take(most, now, self._service_time.needs)
            for delivery, reason in expired:
                self._settler.drop(delivery, reason)
            if taken:
                for delivery in taken:
                    delivery.dispatched_at = now
                self.built.running += 1
                return Job(self.built, taken, now)
            if len(self._idle) == len(self._lanes) and any(reason is DropReason.LATE for _, reason in expired):
                self._service_time.doubt()  # nothing runs and nothing was worth starting
        return None

    @property
    def _usable(self) -> int:
        """Lanes that may run at the same time."""
        return self.built.lanes if self._lane_tuner is None else self._lane_tuner.lanes

    def _most(self, queue: FrameQueue[Delivery]) -> int:
        """Most frames for the next list.

        Short lists cost more a frame, so a lane takes all that waits; but not for long, where frames are slow: a list holds
        its streams, and the other lanes would have nothing to do.
        """
        batch = self.built.config.batch
        if self.built.pinned or self._usable <= 1 or self._service_time.needs(queue.ready) <= LONG_S:
            return batch
        return min(batch, max(1, int(LONG_S / self._service_time.needs(1))))

    # Out

    def _finished(self, lane: Lane, job: Job, completed: Completed) -> None:
        lane.job = None
        self._completed(self._queues[lane.index % len(self._queues)], job, completed)
        if completed.left:  # their streams stay in this lane, so they keep their order
            self.built.running += 1
            lane.give(Job(self.built, list(completed.left), time.monotonic()))
        else:
            self._idle.append(lane)
        self._dispatch()

    def _completed(self, queue: FrameQueue[Delivery], job: Job, completed: Completed) -> None:
        now, frames = time.monotonic(), len(job.deliveries) - len(completed.left)
        if frames:
            self._service_time.took(frames, now - job.began_at)
        job.built.running -= 1
        if job.built.retired:
            job.built.retire()
        streams = {delivery.stream for delivery in job.deliveries}
        queue.release(streams - {delivery.stream for delivery in completed.left})
        if self._lane_tuner is not None:
            self._lane_tuner.finished(frames, now, queue.has_ready)
        for stream in streams - self._streams.keys():  # forgotten while it was being worked on: its state has come back
            job.built.forget(stream)
        tally = self.tally
        self.snapshot = completed.snapshot or self.snapshot
        for name, seconds, count in completed.timings:
            tally.stage_s[name] += seconds
            tally.stage_frames[name] += count
        self._settler.settle(job.built, completed.settlements)

    def _wake(self) -> None:
        """Go on after the broker has accepted results, if that is what the queue was waiting for."""
        if (self._idle or not self.built.lanes) and self._has_ready:
            self._dispatch()

    async def _keep_house(self) -> None:
        """Let go of frames that expire while nothing is taken out of the queue (a pause, a broker that is away)."""
        while True:
            await asyncio.sleep(0.5)
            for queue in self._queues:
                for delivery, reason in queue.expire(time.monotonic()):
                    self._settler.drop(delivery, reason)
            if self._rate:
                self._rate.sweep(time.monotonic())
            if len(self._placement) > len(self._streams):
                self._placement.sweep(self._streams, lambda stream, lane: self._queues[lane].holds(stream))
            self._dispatch()
