"""The region's collector: stores messages from the region's broker, and acknowledges results to the nodes' outboxes.

It works for one term, while its service leads (`service.py`). Rules:
- A message is acknowledged to the broker, and a result to its outbox, only once it is on the store's disk.
- Acknowledgements to an outbox are cumulative and paced. A duplicate is acknowledged again, since the outbox has missed the
  last acknowledgement.
- If the broker or the store is unreachable, the collector retries. Of the messages received, it drops only those of QoS 0, such as
  health reports, and those beyond a site's quota.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.identity.client_ids import client_id
from hedgerow.bus.identity.moving_client import FormerSession, connect_or_move
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.node.link.options import link_options
from hedgerow.region.collector.ack_pacing import TICK_S, AckPacing
from hedgerow.region.collector.decode import clears, decode_message, filters
from hedgerow.region.collector.metrics import CollectorCounts
from hedgerow.region.collector.name_notices import NameNotices
from hedgerow.region.collector.other_services import OtherServices
from hedgerow.region.collector.pinger import Pinger
from hedgerow.region.collector.site_rates import REASON, SiteRates
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.service import RolloutService
from hedgerow.region.store.database.database import LeaseLost
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.ingest import EVENTS
from hedgerow.region.store.lease import Term
from hedgerow.region.store.outboxes.ledgers import LedgerKey
from hedgerow.region.store.records import OtherService, PingRecord, RefusedRecord, ServicesRecord, StoreRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 2000
"""Lists of messages waiting for the store, above which health reports are dropped; the broker holds everything else."""
MAX_WAITING_BYTES: Final = 128 << 20
"""The same, in bytes of their payloads."""
_RECORD_REFUSED_S: Final = 1.0
_JSON: Final = encode_properties([(Property.CONTENT_TYPE, JSON)])


class Collector:
    """Collects messages from a region's broker until `stop` or `step_down` is called.

    Args:
        config: the region, its broker and its store.
        counts: its counters; of all terms of this process.
        term: the term for which this service leads.
        leads: whether it leads for certain; if not, nothing is published, and no connection made.
        former: session that a version before tokens may have left at the broker.
    """

    def __init__(
        self,
        config: RegionConfig,
        counts: CollectorCounts,
        term: Term,
        leads: Callable[[], bool],
        former: FormerSession,
    ) -> None:
        self.config = config
        self.counts = counts
        self._term = term
        self._leads = leads
        self._region = config.region.name
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._store_opened = asyncio.Event()
        self._fatal: Exception | None = None
        self._failure: Exception | None = None
        self._closing = False
        self._lost = False
        self._rates = SiteRates(config.quotas.messages_per_s, config.quotas.nodes)
        self._pacing: AckPacing[LedgerKey] = AckPacing()
        self._timer: asyncio.TimerHandle | None = None
        token = term.client_token
        options = replace(collector_link(config, token), may_connect=leads)
        self._client = connect_or_move(options, former, self._receive, self._link_changed)
        self._blobs = self._refresher = None
        if config.models.repository is not None:
            # Imports libraries that a region without models does not need.
            from hedgerow.blobs.serve import BlobServer
            from hedgerow.region.collector.metadata_refresher import MetadataRefresher

            blob_options = replace(options, client_id=client_id(self._region, token, "blobs"), session_file=None)
            self._blobs = BlobServer(blob_options, self._region, config.models.repository)
            self._refresher = MetadataRefresher(config.models.repository, config.models.online_key, leads=leads)
        self._rollouts = RolloutService(config, self._client, self._loop, term, leads)
        self._services = OtherServices(self._region, self._client, self._record_services)
        self._name_notices = NameNotices(self._client)
        self._enrolment = None
        if config.enrolment.places is not None:
            from hedgerow.region.enrolment.service import EnrolmentService  # imports cryptography

            self._enrolment = EnrolmentService(config, self._client, self._loop, term)
        self._pinger = None
        if config.ping.every_s is not None:
            self._pinger = Pinger(self._region, config.ping, self._client, self._record_ping)
        self._writer = StoreWriter(self._open_store, self._on_report)

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Collect until `stop` is called, then store what was received; or until `step_down` is.

        Args:
            started: called once, when the store is open.
        Raises: RegionStoreError: the store cannot be used at all.
        """
        self._writer.start()
        running = [tasks.supervise(self._keep_recording_refused, "record of refused messages")]
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
                    if self._enrolment is not None:
                        subscriptions |= self._enrolment.filters
                        self._enrolment.start()
                    await self._client.subscribe(subscriptions)
                    running.append(tasks.supervise(self._services.run, "other services"))
                    self._rollouts.start()
                    log.info("region-started", region=self._region, broker=self.config.broker.url)
                    started()
                    await self._stop.wait()
                    if self._lost:
                        await self._abandon()
                    else:
                        await self._drain()
        finally:
            await tasks.run_to_end(self._close(running), "end of the collector")
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Store what was received, then stop."""
        self._stop.set()

    def step_down(self) -> None:
        """Stop at once, since another service leads: store, acknowledge and publish nothing more."""
        self._lost = self._closing = True
        self._stop.set()

    def _open_store(self) -> RegionStore:
        store = self.config.store
        database = open_database(store.url, write=True, group=store.group_access)
        try:
            database.lead(self._term.fence)
        except BaseException:
            database.close()
            raise
        return RegionStore(database, self.config)

    def _receive(self, messages: list[Message]) -> None:
        if self._closing:
            return  # not acknowledged: the broker delivers them to the next run
        now, clock = time.time(), time.monotonic()
        records: list[StoreRecord] = []
        accepted: list[Message] = []
        full = self._writer.waiting >= MAX_WAITING or self._writer.waiting_bytes >= MAX_WAITING_BYTES
        for message in messages:
            if self._services.take(message) or (self._enrolment is not None and self._enrolment.take(message)):
                self._client.ack(message)
            elif not self._rates.admits(message.topic, clock):
                self._client.ack(message)  # a durable result is sent again, because its outbox gets no acknowledgement
            elif self._pinger is not None and self._pinger.take(message):
                self.counts.stray_replies = self._pinger.stray_replies
                self._client.ack(message)
            elif not message.payload and clears(message):
                self._client.ack(message)
            elif full and message.qos == 0:
                self.counts.overload += 1
            else:
                records.append(self._decode(message, now, clock))
                accepted.append(message)
        if records:
            self._writer.submit(WriteRequest(records, accepted))

    def _decode(self, message: Message, now: float, clock: float) -> StoreRecord:
        began, worked = time.monotonic(), time.thread_time()
        record = decode_message(message, self._region, now, self.config.quotas.names_per_report)
        # Other load on the machine is not the site's fault; but it blocks all sites for as long, so half of that time counts.
        spent_s = max(time.thread_time() - worked, (time.monotonic() - began) / 2)
        self._rates.charge(message.topic, spent_s, clock)
        return record

    def _record_ping(self, ping: PingRecord) -> None:
        self._writer.submit(WriteRequest([ping], []))

    def _record_services(self, others: Sequence[OtherService]) -> None:
        self._writer.submit(WriteRequest([ServicesRecord(None, 0, time.time(), True, tuple(others))], []))

    def _record_refused(self) -> None:
        for site, count in self._rates.take_refused().items():
            detail = f"more than {self._rates.per_s:g} messages per second, or one node more than its site leaves, or they take too long to read"
            self._writer.submit(
                WriteRequest([RefusedRecord(None, 0, time.time(), True, site, REASON, detail, count)], [])
            )
        if self._enrolment is not None:
            for (site, reason), count in self._enrolment.take_refused().items():
                detail = f"{reason}: of a machine that wants to enrol; `hedgerow node pending` lists valid ones"
                record = RefusedRecord(None, 0, time.time(), True, site, f"enrolment-{reason}", detail, count)
                self._writer.submit(WriteRequest([record], []))

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
            self._rates.know(report.statuses, time.monotonic())  # renamed ones too
            if self._pinger is not None:
                self._pinger.keep(report.statuses.keys())
        if report.opened is not None:
            self._rates.know(report.opened, time.monotonic())
            self._store_opened.set()
            self._services.store = report.store_id
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
            for address, change in outcome.twins:
                tell = log.warning if change.began else log.info
                remedy = {"remedy": change.remedy} if change.began else {}
                tell(EVENTS[change.kind, change.began], node=str(address), detail=change.text, **remedy)
            if outcome.shared_names and self._leads():
                self._name_notices.send(outcome.shared_names, now)
            if outcome.new_nodes:
                self._rates.know(outcome.new_nodes, now)
                if self._pinger is not None:
                    self._pinger.add(outcome.new_nodes, at_once=True)
        counts.write_s += report.took_s
        self._acknowledge()

    def _update_failure(self, report: WriteReport) -> None:
        if isinstance(report.failure, LeaseLost):
            self.step_down()
            return
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
        for key, ack in self._pacing.due(time.monotonic(), flush=flush) if self._leads() else ():
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
        self._services.leave()
        with suppress(BusError):
            await self._client.flush(max(0.1, min(2.0, deadline - time.monotonic())))
        unstored = self._client.unacknowledged
        log.info("region-stopped", stored=sum(self.counts.results.values()), left_to_broker=unstored)

    async def _abandon(self) -> None:
        """Disconnect without sending anything: what was received comes again, to the service that leads."""
        await self._client.close(timeout_s=0)
        log.info("region-stepped-down", term=self._term.fence)

    async def _close_writer(self) -> None:
        self._rollouts.close()
        if self._enrolment is not None:
            self._enrolment.close()
        self._writer.close()
        await asyncio.to_thread(self._writer.join, self.config.region.stop_s)

    async def _close(self, running: list[asyncio.Task[None]]) -> None:
        """End all parts, each whatever becomes of the others, last first."""
        async with AsyncExitStack() as parts:
            if self._timer is not None:
                parts.callback(self._timer.cancel)
            parts.push_async_callback(self._close_writer)
            parts.push_async_callback(tasks.cancel, *running)

    def _link_changed(self, connected: bool, reason: str) -> None:
        self._writer.connected = self.counts.connected = connected
        self._rollouts.link_changed(connected=connected)
        self._services.link_changed()

    async def _keep_recording_refused(self) -> None:
        while True:
            self._record_refused()
            await asyncio.sleep(_RECORD_REFUSED_S)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield gauges for /metrics, from any thread: name, help, labels, value."""
        for part in (self._rollouts, self._enrolment, self._blobs, self._refresher, self._services):
            if part is not None:
                yield from part.gauges()

    def liveness_problems(self) -> list[str]:
        """Return why it should be restarted; a writer that has not started, or is to end, is no reason."""
        ended = self._writer.ident is not None and not self._writer.is_alive() and not self._closing
        return ["the store's writer thread has died"] if ended else []

    def readiness_problems(self) -> list[str]:
        """Return why it does not collect."""
        reasons = [] if self._client.connected else ["not connected to the broker"]
        if self._failure is not None:
            reasons.append(f"the store does not work: {self._failure}")
        elif not self._store_opened.is_set():
            reasons.append("the store is not open yet")
        if self._rollouts.failure is not None:
            reasons.append(f"rollouts are stalled: {self._rollouts.failure}")
        if self._enrolment is not None and self._enrolment.failure is not None:
            reasons.append(f"no machine can enrol: {self._enrolment.failure}")
        if self._refresher is not None:
            reasons += self._refresher.problems()
        reasons += self._services.problems()
        return reasons + [f"the broker refuses {name}: {reason}" for name, reason in dict(self._client.refused).items()]

    async def _wait_for_any(self, *events: asyncio.Event) -> None:
        waits: list[asyncio.Task[Any]] = [tasks.start(event.wait(), "start of the collector") for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.cancel(*waits)


def collector_link(config: RegionConfig, token: str) -> ClientOptions:
    """Return the options of the collector's connection.

    Args:
        config: the region and its broker.
        token: secret part of its client id.
    Raises: ConfigError: the broker's address is invalid, or its password file cannot be read.
    """
    return link_options(
        config.broker,
        client_id(config.region.name, token, "collector"),
        receive_maximum=config.region.receive_maximum,
        max_payload_bytes=config.region.max_payload_bytes,
        session_file=config.state_folder / "links" / "collector",
    )
