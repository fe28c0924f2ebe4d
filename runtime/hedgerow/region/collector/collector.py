"""The region's collector: stores messages from the region's broker, and acknowledges results to the nodes' outboxes.

Rules:
- A message is acknowledged to the broker, and a result to its outbox, only once it is on the store's disk.
- Acknowledgements to an outbox are cumulative and paced. A duplicate is acknowledged again, since the outbox has missed the
  last acknowledgement.
- If the broker or the store is unreachable, the collector retries. Of the messages received, it drops only those of QoS 0, such as
  health reports, and those beyond a site's quota.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.identity.client_ids import FILE, client_id, client_token, former_client_id
from hedgerow.bus.identity.moving_client import FormerSession, connect_or_move
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.node.link.options import is_plain_text_on_network, link_options
from hedgerow.region.collector.ack_pacing import TICK_S, AckPacing
from hedgerow.region.collector.decode import decode_message, filters
from hedgerow.region.collector.metrics import CollectorCounts, RegionMetrics
from hedgerow.region.collector.pinger import Pinger
from hedgerow.region.collector.site_rates import REASON, SiteRates
from hedgerow.region.config import RegionConfig, on_postgres
from hedgerow.region.rollouts.service import RolloutService
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.ledgers import LedgerKey
from hedgerow.region.store.records import PingRecord, RefusedRecord, StoreRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest
from hedgerow.telemetry import logs, systemd
from hedgerow.telemetry.metrics import ProbeServer
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 2000
"""Lists of messages waiting for the store, above which health reports are dropped; the broker holds everything else."""
MAX_WAITING_BYTES: Final = 128 << 20
"""The same, in bytes of their payloads."""
_QUICK_BYTES: Final = 1024
"""Reading a payload up to this size takes too little time to measure it."""
_BEAT_EVERY_S: Final = 1.0
_HUNG_AFTER_S: Final = 30.0
_JSON: Final = encode_properties([(Property.CONTENT_TYPE, JSON)])


class Collector:
    """Collects messages from a region's broker until `stop` is called.

    Args:
        config: the region, its broker and its store.
    Attributes:
        counts: its counters.
    """

    def __init__(self, config: RegionConfig) -> None:
        self.config = config
        self.counts = CollectorCounts()
        self._region = config.region.name
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._store_opened = asyncio.Event()
        self._fatal: Exception | None = None
        self._failure: Exception | None = None
        self._closing = False
        self._last_beat = time.monotonic()
        self._rates = SiteRates(config.quotas.messages_per_s, config.quotas.nodes)
        self._pacing: AckPacing[LedgerKey] = AckPacing()
        self._timer: asyncio.TimerHandle | None = None
        self._probes: ProbeServer | None = None
        state_dir = config.state_folder
        former = _former_session(config, state_dir)
        token = client_token(state_dir)
        options = link_options(
            config.broker,
            client_id(self._region, token, "collector"),
            receive_maximum=config.region.receive_maximum,
            max_payload_bytes=config.region.max_payload_bytes,
            session_file=state_dir / "links" / "collector",
        )
        self._client = connect_or_move(options, former, self._receive, self._link_changed)
        self._blobs = self._refresher = None
        if config.models.repository is not None:
            # Imports libraries that a region without models does not need.
            from hedgerow.blobs.serve import BlobServer
            from hedgerow.region.collector.metadata_refresher import MetadataRefresher

            blob_options = replace(options, client_id=client_id(self._region, token, "blobs"), session_file=None)
            self._blobs = BlobServer(blob_options, self._region, config.models.repository)
            self._refresher = MetadataRefresher(config.models.repository, config.models.online_key)
        self._rollouts = RolloutService(config, self._client, self._loop)
        self._pinger = None
        if config.ping.every_s is not None:
            self._pinger = Pinger(self._region, config.ping, self._client, self._record_ping)
        self._writer = StoreWriter(
            lambda: RegionStore(open_database(config.store.url, write=True, group=config.store.group_access), config),
            self._on_report,
        )

    @property
    def probe_port(self) -> int | None:
        """Port of metrics and probes; None if they are disabled."""
        return self._probes.port if self._probes is not None else None

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Collect until `stop` is called or a signal arrives; then store what was received.

        Args:
            started: called once, when the store is open.
        Raises:
            RegionStoreError: the store cannot be used at all.
            ConfigError: the probes' address is in use.
        """
        config = self.config
        if is_plain_text_on_network(config.broker.url):
            log.warning("plain-text-broker", url=config.broker.url, remedy="Use mqtts:// with certificates.")
        if config.metrics.enabled:
            metrics = config.metrics
            self._probes = ProbeServer(
                metrics.host,
                metrics.port,
                RegionMetrics(self.counts, self._gauges),
                self._liveness_problems,
                self._readiness_problems,
            )
            log.info("probes", url=f"{self._probes.url}/metrics")
        self._writer.start()
        running = [tasks.supervise(self._beat, "heartbeat")]
        if self._refresher is not None:
            running.append(tasks.supervise(self._refresher.run, "refresh of the repository"))
        try:
            await self._wait_for_any(self._store_opened, self._stop)
            if self._store_opened.is_set():
                async with self._blobs or nullcontext(), self._client:
                    subscriptions = filters(self._region)
                    if self._pinger is not None:
                        subscriptions |= self._pinger.filters
                        running.append(tasks.supervise(self._pinger.keep_pinging, "pings"))
                    await self._client.subscribe(subscriptions)
                    self._rollouts.start()
                    log.info("region-started", region=self._region, broker=config.broker.url)
                    started()
                    systemd.ready()
                    await self._stop.wait()
                    systemd.stopping()
                    await self._drain()
        finally:
            await tasks.run_to_end(self._close(running), "end of the collector")
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Store what was received, then stop."""
        self._stop.set()

    def handle_signals(self) -> None:
        """Stop on SIGTERM and Ctrl-C; a second signal exits at once, which loses nothing either."""

        def interrupt(number: signal.Signals) -> None:
            if self._stop.is_set():
                log.warning("stopping-at-once", signal=number.name)
                os._exit(128 + number)
            self.stop()
            log.info("stopping", signal=number.name, stop_s=self.config.region.stop_s)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, interrupt, number)

    def _receive(self, messages: list[Message]) -> None:
        if self._closing:
            return  # not acknowledged: the broker delivers them to the next run
        now, clock = time.time(), time.monotonic()
        records: list[StoreRecord] = []
        accepted: list[Message] = []
        full = self._writer.waiting >= MAX_WAITING or self._writer.waiting_bytes >= MAX_WAITING_BYTES
        for message in messages:
            if not self._rates.admits(message.topic, clock):
                self._client.ack(message)  # a durable result is sent again, because its outbox gets no acknowledgement
            elif self._pinger is not None and self._pinger.take(message):
                self.counts.stray_replies = self._pinger.stray_replies
                self._client.ack(message)
            elif full and message.qos == 0:
                self.counts.overload += 1
            else:
                records.append(self._decode(message, now, clock))
                accepted.append(message)
        if records:
            self._writer.submit(WriteRequest(records, accepted))

    def _decode(self, message: Message, now: float, clock: float) -> StoreRecord:
        names = self.config.quotas.names_per_report
        if len(message.payload) <= _QUICK_BYTES:
            return decode_message(message, self._region, now, names)
        began = time.thread_time()  # other load on the machine is not the site's fault
        record = decode_message(message, self._region, now, names)
        self._rates.charge(message.topic, time.thread_time() - began, clock)
        return record

    def _record_ping(self, ping: PingRecord) -> None:
        self._writer.submit(WriteRequest([ping], []))

    def _record_refused(self) -> None:
        for site, count in self._rates.take_refused().items():
            detail = f"more than {self._rates.per_s:g} messages per second, or half as many of one node, or they take too long to read"
            self._writer.submit(
                WriteRequest([RefusedRecord(None, 0, time.time(), True, site, REASON, detail, count)], [])
            )

    def _on_report(self, report: WriteReport) -> None:
        """(called in the writer's thread)"""
        with suppress(RuntimeError):  # the loop is closed: stopping took too long
            self._loop.call_soon_threadsafe(self._handle_report, report)

    def _handle_report(self, report: WriteReport) -> None:
        """Act on a batch that was stored or failed."""
        self._update_failure(report)
        if report.failure is not None:
            return
        counts = self.counts
        counts.waiting, counts.stored_bytes = self._writer.waiting, report.stored_bytes
        if report.statuses is not None:
            counts.statuses = report.statuses
        if report.opened is not None:
            self._store_opened.set()
            if self._pinger is not None:
                self._pinger.add(report.opened, at_once=False)
        for message in report.messages:
            self._client.ack(message)
        now = time.monotonic()
        for key, ack in report.acks:
            self._pacing.add(key, ack, 0, now, urgent=True)
        for outcome in report.outcomes:
            counts.add(outcome)
            counts.batches += 1
            for key, due in outcome.acks.items():
                self._pacing.add(key, due.ack, due.records, now, urgent=due.urgent)
            for (site, reason), count in outcome.refused.items():
                log.warning("rejected", site=site, reason=reason, count=count)
            if outcome.clashes:
                log.warning(
                    "outbox-clash", results=outcome.clashes, remedy="A node runs twice: see `hedgerow region status`."
                )
            if outcome.new_nodes and self._pinger is not None:
                self._pinger.add(outcome.new_nodes, at_once=True)
        counts.write_s += report.took_s
        self._acknowledge()

    def _update_failure(self, report: WriteReport) -> None:
        self.counts.store_works = report.failure is None
        if report.failure is not None:
            if self._failure is None or report.fatal:
                log.error(
                    "store-failing", code=report.failure.code, error=str(report.failure), remedy=report.failure.remedy
                )
            self._failure = report.failure
            if report.fatal:
                self._fatal = report.failure
                self.stop()
        elif self._failure is not None:
            log.info("store-recovered")
            self._failure = None

    def _acknowledge(self, *, flush: bool = False) -> None:
        """Publish the acknowledgements due now, and schedule the rest."""
        for key, ack in self._pacing.due(time.monotonic(), flush=flush):
            self.counts.acks += 1
            address: Address = key[0]
            self._client.publish(
                address.topic(Channel.ACK),
                ack.encode(),
                qos=1,
                properties=_JSON,
                done=partial(self._acknowledged, key),
            )
        if len(self._pacing) and self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._on_timer)

    def _acknowledged(self, key: LedgerKey, error: Exception | None) -> None:
        self._pacing.sent(key)
        if error is not None and not self._closing:
            log.warning("acknowledgement-refused", node=str(key[0]), error=str(error))

    def _on_timer(self) -> None:
        self._timer = None
        self._acknowledge()

    async def _drain(self) -> None:
        """Store what was received, acknowledge it, and disconnect."""
        self._closing = True
        deadline = time.monotonic() + self.config.region.stop_s
        await self._close_writer()
        await asyncio.sleep(0)  # lets the writer's last reports run
        self._acknowledge(flush=True)
        with suppress(BusError):
            await self._client.flush(max(0.1, min(2.0, deadline - time.monotonic())))
        unstored = self._client.unacknowledged
        log.info("region-stopped", stored=sum(self.counts.results.values()), left_to_broker=unstored)

    async def _close_writer(self) -> None:
        self._rollouts.close()
        self._writer.close()
        await asyncio.to_thread(self._writer.join, self.config.region.stop_s)

    async def _close(self, running: list[asyncio.Task[None]]) -> None:
        """End all parts, each whatever becomes of the others, last first."""
        async with AsyncExitStack() as parts:
            if self._probes is not None:
                parts.callback(self._probes.close)
            if self._timer is not None:
                parts.callback(self._timer.cancel)
            parts.push_async_callback(self._close_writer)
            parts.push_async_callback(tasks.cancel, *running)

    def _link_changed(self, connected: bool, reason: str) -> None:
        self._writer.connected = self.counts.connected = connected
        self._rollouts.link_changed(connected=connected)

    async def _beat(self) -> None:
        while True:
            self._last_beat = time.monotonic()
            systemd.alive()
            logs.report_repeats()
            self._record_refused()
            await asyncio.sleep(_BEAT_EVERY_S)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        for part in (tasks, self._rollouts, self._blobs, self._refresher):
            if part is not None:
                yield from part.gauges()

    def _liveness_problems(self) -> list[str]:
        silent_s = time.monotonic() - self._last_beat
        reasons = [f"the event loop has been blocked for {silent_s:.0f} s"] if silent_s > _HUNG_AFTER_S else []
        return reasons if self._writer.is_alive() else [*reasons, "the store's writer thread has died"]

    def _readiness_problems(self) -> list[str]:
        reasons = [] if self._client.connected else ["not connected to the broker"]
        if self._failure is not None:
            reasons.append(f"the store does not work: {self._failure}")
        elif not self._store_opened.is_set():
            reasons.append("the store is not open yet")
        if self._rollouts.failure is not None:
            reasons.append(f"rollouts are stalled: {self._rollouts.failure}")
        if self._refresher is not None:
            reasons += self._refresher.problems()
        return reasons + [f"the broker refuses {name}: {reason}" for name, reason in dict(self._client.refused).items()]

    async def _wait_for_any(self, *events: asyncio.Event) -> None:
        waits: list[asyncio.Task[Any]] = [tasks.start(event.wait(), "start of the collector") for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.cancel(*waits)


def _former_session(config: RegionConfig, state_dir: Path) -> FormerSession:
    """Return the session that a version before tokens may have left at the broker."""
    name = config.region.name
    # The service may publish and receive there, and no bridge forwards it: no site has this name.
    topic = Address(name, "collector-move", "collector").topic(Channel.DESIRED)
    session = FormerSession(former_client_id(name, "collector"), state_dir / "sessions" / "collector", topic)
    used = on_postgres(config.store.url) or Path(config.store.url).exists()
    if used and not (state_dir / FILE).exists():
        ClientOptions(url=config.broker.url, client_id=session.client_id, session_file=session.mark).mark_session()
    return session
