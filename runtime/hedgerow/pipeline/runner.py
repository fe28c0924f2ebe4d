"""Runs one pipeline: messages in, results out, every frame accounted for.

    source ─▶ intake: queue ──▶ dispatcher: lanes (threads) ──▶ settler: sink ─▶ acknowledgement

Rules:
- Everything that counts or decides runs on the event loop's thread: queue, tally, acknowledgements. No locks.
- A lane takes everything queued, up to `batch`, as one list and runs it through the whole chain: two thread switches.
- A stream is in one lane at a time, so its results stay in order; different streams use different cores.
- With `lanes: 0`, lists run on the event loop.
- A frame is acknowledged when the broker has accepted all its results or its dead letter, when the outbox has stored
  its results on disk, or when it is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Literal

import structlog

from hedgerow import tasks
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.identity.moving_client import FormerSession, connect_or_move
from hedgerow.bus.message import Message
from hedgerow.bus.outbox import Outbox
from hedgerow.pipeline.built_pipeline import BuiltPipeline, Snapshot
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.intake.intake import Intake
from hedgerow.pipeline.lanes.dispatcher import Dispatcher
from hedgerow.pipeline.lanes.hang_watch import Hang
from hedgerow.pipeline.settlement.losses import Losses
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import Tally

log = structlog.get_logger(__name__)

_HOUSEKEEPING_S = 0.5


class PipelineRunner:
    """Runs one pipeline over its own links to the broker.

    Its own links isolate it from other pipelines: each link has its own session, Receive Maximum and pause, so a slow
    pipeline does not delay the others. Results use a second link: reading from the first can stop while results are
    still published and acknowledged.

    Args:
        built: the pipeline to run.
        source: link for incoming frames.
        sink: link for outgoing results.
        on_event: called with events for operators.
        outbox: stores the results of a durable pipeline; without it they go out on the sink.
        tally: counters to continue, of the runner that this one replaces.
        former: a session for frames that an earlier version may have left at the broker.
    Attributes:
        lanes_replaced: number of lanes whose thread ended unexpectedly.
    """

    def __init__(
        self,
        built: BuiltPipeline,
        source: ClientOptions,
        sink: ClientOptions,
        on_event: EventSink,
        outbox: Outbox | None = None,
        tally: Tally | None = None,
        *,
        former: FormerSession | None = None,
    ) -> None:
        self.built = built
        self.tally = tally or Tally()
        self.state: Literal["running", "paused", "stopping"] = "running"
        self.lanes_replaced = 0
        self._on_event = on_event
        self._source = connect_or_move(source, former, self._receive, on_event=on_event)
        self._sink = Client(sink, _ignore, on_event=on_event)
        self._settler = Settler(self._source, self._sink, self.tally, on_event, self._wake, outbox)
        self._intake = Intake(built, self._settler, self.tally, on_event)
        self._dispatcher = Dispatcher(built, self._intake, self._settler, self.tally, on_event)
        self._state_lock = asyncio.Lock()

    # Lifecycle

    async def start(self, *, paused: bool = False) -> None:
        """Connect and subscribe. Both continue in the background while the broker is unreachable.

        Args:
            paused: wait for `resume` before connecting.
        """
        self._housekeeping = tasks.supervise(self._keep_house, "housekeeping of a pipeline")
        self._dispatcher.use(self.built)
        if paused:
            self._set_paused(True)
        else:
            self._source.resume()
        self._sink.resume()
        await self._source.subscribe(_filters(self.built))

    async def stop(self, drain_s: float, *, forget_session: bool = False) -> None:
        """Accept no more frames, finish those in flight within a time limit, and disconnect.

        Args:
            drain_s: longest wait for frames in flight.
            forget_session: end the broker's session too, because the pipeline has been removed.
        """
        self.state = "stopping"
        self._dispatcher.paused = False
        self._intake.stopping = True
        deadline = time.monotonic() + drain_s
        while self.tally.held and time.monotonic() < deadline:
            if self.connected or self._settler.storing or self._intake.has_ready or self._dispatcher.busy:
                await asyncio.sleep(0.01)
            else:
                break  # the rest waits for a broker that is unreachable
        self._intake.drop_queued()
        self._housekeeping.cancel()
        self.built.retire()
        self._dispatcher.stop()
        self._settler.closing = True
        await self._sink.close(forget_session=True, timeout_s=_left_s(deadline))
        await self._source.close(forget_session=forget_session, timeout_s=_left_s(deadline))
        self._settler.drop_held()
        if stuck := self._dispatcher.stuck_lanes:
            log.warning("stage-stuck", pipeline=self.built.name, lanes=stuck, drain_s=drain_s)
            return
        limit_s = _left_s(deadline)
        if not await asyncio.to_thread(self.built.wait_closed, limit_s):
            log.warning("stage-does-not-close", pipeline=self.built.name, waited_s=limit_s)

    def abandon(self) -> None:
        """Clear lists that do not hang from the crash journal, because the process is about to be ended on request."""
        self._dispatcher.stop()

    async def pause(self) -> None:
        """Stop accepting frames; the broker keeps QoS 1 frames meanwhile."""
        async with self._state_lock:
            if self.state == "running":
                self._set_paused(True)
                await self._source.pause()

    async def resume(self) -> None:
        """Accept frames again."""
        async with self._state_lock:
            if self.state == "paused":
                self._set_paused(False)
                self._source.resume()
                self._dispatcher.dispatch()

    def _set_paused(self, paused: bool) -> None:
        self.state = "paused" if paused else "running"
        self._dispatcher.paused = paused

    async def renew_links(self) -> None:
        """Replace both links by new ones, which read the certificate files again; no frame is lost or duplicated."""
        await self._sink.renew()
        await self._source.renew()

    async def keep_session_after_crash(self) -> None:
        """Let the broker keep frames as long as configured after a crash too."""
        await self._source.keep_session_after_crash()

    # Swap

    def can_swap(self, built: BuiltPipeline) -> bool:
        """Whether `swap` can switch to another built pipeline: settings fixed by links and lanes must be equal."""
        now, then = (
            (c.receive_maximum, c.max_payload_bytes, c.if_qos_lowered, c.workers, c.publish.durable)
            for c in (built.config, self.built.config)
        )
        return now == then and built.lanes >= self._dispatcher.lanes

    async def add_subscriptions(self, built: BuiltPipeline) -> None:
        """Subscribe to what another built pipeline needs in addition: the part of a swap that can fail.

        Raises: BusError: the broker refuses.
        """
        present = _filters(self.built)
        await self._source.subscribe({name: qos for name, qos in _filters(built).items() if present.get(name) != qos})

    async def undo_subscriptions(self, built: BuiltPipeline) -> None:
        """Undo `add_subscriptions` for a built pipeline that is not used after all."""
        await self._source.unsubscribe(_filters(built).keys() - _filters(self.built).keys())

    async def swap(self, built: BuiltPipeline) -> None:
        """Switch to another built pipeline, after `add_subscriptions`; lists in progress finish in the old one."""
        old = self.built
        await self._source.unsubscribe(_filters(old).keys() - _filters(built).keys())
        self.built = built
        self._intake.use(built)
        self._dispatcher.use(built)
        old.retire()
        self._dispatcher.dispatch()

    # State

    @property
    def connected(self) -> bool:
        """Whether frames can be received and results published."""
        return self._source.connected and self._sink.connected

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until frames can be received and results published.

        Raises: BusError: they cannot yet.
        """
        await self._source.wait_connected(timeout_s)
        await self._sink.wait_connected(timeout_s)

    @property
    def refused(self) -> Mapping[str, str]:
        """Subscriptions that the broker refuses, with its reason, by filter."""
        return self._source.refused

    @property
    def lowered(self) -> Mapping[str, int]:
        """Subscriptions that the broker granted with a lower QoS than requested: that QoS by filter."""
        return self._source.lowered

    @property
    def sessions_lost(self) -> int:
        """Times the broker had forgotten the session, and with it the QoS 1 frames that waited there."""
        return self._source.sessions_lost

    @property
    def refused_publishes(self) -> int:
        """Number of results and dead letters that the broker did not accept."""
        return self._sink.refused_publishes

    @property
    def reconnects(self) -> int:
        """Number of reconnects of both links."""
        return self._source.reconnects + self._sink.reconnects

    @property
    def queued(self) -> int:
        """Number of queued frames."""
        return self._intake.queued

    @property
    def streams(self) -> int:
        """Number of streams seen and not forgotten."""
        return self._intake.streams

    @property
    def losses(self) -> Losses:
        """Frames lost since the last health report, by topic."""
        return self._settler.losses

    @property
    def flooding(self) -> tuple[str, int] | None:
        """The topic that fills the window for QoS 1 frames, so that the broker holds back all others, and its frames; None: none."""
        return self._intake.flooding()

    @property
    def snapshot(self) -> Snapshot | None:
        """The last frame that gave a result, if any."""
        return self._dispatcher.snapshot

    def hang(self) -> Hang | None:
        """(any thread) Return the stage that has made no progress for longest; None: no stage runs."""
        return self._dispatcher.hang()

    def stage_on_loop(self) -> str:
        """(any thread) Return the stage that runs on the event loop; empty: none does."""
        return self._dispatcher.stage_on_loop()

    # Callbacks

    def _receive(self, messages: list[Message]) -> None:
        self._intake.receive(messages)
        self._dispatcher.dispatch()

    def _wake(self) -> None:
        self._dispatcher.wake()

    async def _keep_house(self) -> None:
        """Drop frames that expire while none is dispatched, during a pause or an outage; watch the lanes and their stages."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            self._intake.expire()
            if died := self._dispatcher.replace_dead_lanes():
                self.lanes_replaced += died
                self._on_event("lane-died", {"lanes": died, "replaced": self.lanes_replaced})
            self._dispatcher.dispatch()
            self._dispatcher.watch()


def _filters(built: BuiltPipeline) -> dict[str, int]:
    """Return what a pipeline subscribes to: QoS by filter."""
    return dict.fromkeys(built.config.subscribe, built.config.qos)


def _left_s(deadline: float) -> float:
    """Return the time left for the next step of stopping; at least 1 s, enough to send a DISCONNECT."""
    return max(1.0, deadline - time.monotonic())


def _ignore(messages: list[Message]) -> None:
    """Ignore messages on a link without subscriptions."""
