"""The region's service: one process, which leads or stands by.

Of the services that share a store one leads: its collector stores and acknowledges, and its rollouts, pings, retention and refreshes
of metadata run. The others wait for the store's lease, unconnected, so that they disturb neither the leader's session at the broker
nor its client id. One that has lost the lease steps down, and stands by again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.identity.client_ids import FILE, client_token, former_client_id
from hedgerow.bus.identity.moving_client import FormerSession
from hedgerow.node.link.options import is_plain_text_on_network
from hedgerow.region.collector.collector import Collector, collector_link
from hedgerow.region.collector.lease_keeper import LeaseKeeper
from hedgerow.region.collector.metrics import CollectorCounts, RegionMetrics
from hedgerow.region.config import RegionConfig, on_postgres
from hedgerow.region.store.database.database import RegionStoreError
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import ServiceRun, Term
from hedgerow.telemetry import logs, systemd
from hedgerow.telemetry.metrics import ProbeServer
from hedgerow.topics import Address, Channel

log = structlog.get_logger(__name__)

_BEAT_EVERY_S: Final = 1.0
_HUNG_AFTER_S: Final = 30.0


class RegionService:
    """Runs a region's service until `stop` is called.

    Args:
        config: the region, its broker and its store.
    Attributes:
        counts: the collector's counters.
        collector: the collector, while this service leads.
    Raises: ConfigError: the broker's address is invalid, or its password file cannot be read.
    """

    def __init__(self, config: RegionConfig) -> None:
        self.config = config
        self.counts = CollectorCounts()
        self.collector: Collector | None = None
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._changed = asyncio.Event()
        self._last_beat = time.monotonic()
        self._fatal: RegionStoreError | None = None
        self._last_fence = 0
        self._probes: ProbeServer | None = None
        store = config.store
        store_exists = on_postgres(store.url) or Path(store.url).exists()
        self._without_token = store_exists and not (config.state_folder / FILE).exists()
        self._token = token = client_token(config.state_folder)
        collector_link(config, token)  # better an error now than when this service takes over
        self._keeper = LeaseKeeper(
            lambda: open_database(store.url, write=True, group=store.group_access),
            ServiceRun(secrets.token_hex(4), f"{socket.gethostname()} (pid {os.getpid()})"),
            token,
            lambda term: self._from_keeper(self._lease_changed, term),
            lambda error: self._from_keeper(self._lease_failed, error),
        )

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Lead or stand by until `stop` is called or a signal arrives.

        Args:
            started: called each time this service leads, when the store is open.
        Raises:
            RegionStoreError: the store cannot be used at all.
            ConfigError: the probes' address is in use.
        """
        config = self.config
        if is_plain_text_on_network(config.broker.url):
            log.warning("plain-text-broker", url=config.broker.url, remedy="Use mqtts:// with certificates.")
        if config.metrics.enabled:
            self._probes = ProbeServer(
                config.metrics.host,
                config.metrics.port,
                RegionMetrics(self.counts, self._gauges),
                self._liveness_problems,
                self._readiness_problems,
                lambda: {"role": self.role},
            )
            log.info("probes", url=f"{self._probes.url}/metrics")
        self._keeper.start()
        beat = tasks.supervise(self._beat, "heartbeat")
        try:
            while (term := await self._next_term()) is not None:
                await self._lead(term, started)
        finally:
            await tasks.run_to_end(self._close(beat), "end of the service")
        if self._fatal is not None:
            raise self._fatal

    @property
    def role(self) -> str:
        """`leader`, `standby`, or `starting`."""
        if self.collector is not None:
            return "leader"
        return "standby" if self._keeper.standing_by else "starting"

    def stop(self) -> None:
        """Store what was received, then stop."""
        self._stopping = True
        self._changed.set()
        if self.collector is not None:
            systemd.stopping()
            self.collector.stop()

    def handle_signals(self) -> None:
        """Stop on SIGTERM and Ctrl-C; a second signal exits at once, which loses nothing either."""

        def interrupt(number: signal.Signals) -> None:
            if self._stopping:
                log.warning("stopping-at-once", signal=number.name)
                os._exit(128 + number)
            self.stop()
            log.info("stopping", signal=number.name, stop_s=self.config.region.stop_s)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, interrupt, number)

    async def _next_term(self) -> Term | None:
        """Wait for the lease. Returns: the term; None if the service is to stop."""
        while not self._stopping:
            self._changed.clear()
            term = self._keeper.term
            if term is not None and term.fence > self._last_fence:
                self._last_fence = term.fence
                return term
            await self._changed.wait()
        return None

    async def _lead(self, term: Term, started: Callable[[], None]) -> None:
        def leading() -> None:
            started()
            systemd.ready()

        former = former_session(self.config)
        if self._without_token and term.client_token == self._token:  # nobody has led this store with a token before
            ClientOptions(
                url=self.config.broker.url, client_id=former.client_id, session_file=former.mark
            ).mark_session()
        self.collector = Collector(self.config, self.counts, term, self._keeper.leads, former)
        if self._keeper.term != term:
            self.collector.step_down()
        try:
            await self.collector.run(leading)
        finally:
            self.collector = None
            self.counts.connected = False

    def _from_keeper(self, function: Callable[[Any], None], argument: Any) -> None:
        """(called in the keeper's thread)"""
        with suppress(RuntimeError):  # the loop is closed: stopping took too long
            self._loop.call_soon_threadsafe(function, argument)

    def _lease_changed(self, term: Term | None) -> None:
        self._changed.set()
        if term is None and self.collector is not None:
            self.collector.step_down()

    def _lease_failed(self, error: RegionStoreError) -> None:
        log.error("store-failing", code=error.code, error=str(error), remedy=error.remedy)
        self._fatal = error
        self.stop()

    async def _close(self, beat: asyncio.Task[None]) -> None:
        """End all parts, each whatever becomes of the others, last first."""
        async with AsyncExitStack() as parts:
            if self._probes is not None:
                parts.callback(self._probes.close)
            parts.push_async_callback(asyncio.to_thread, self._keeper.join, self.config.region.stop_s)
            parts.callback(self._keeper.close)
            parts.push_async_callback(tasks.cancel, beat)

    async def _beat(self) -> None:
        ready = False
        while True:
            self._last_beat = time.monotonic()
            systemd.alive()
            if self._keeper.standing_by and not ready:  # a standby has started too
                systemd.ready()
                ready = True
            logs.report_repeats()
            await asyncio.sleep(_BEAT_EVERY_S)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        collector = self.collector
        yield "hedgerow_region_leader", "1 while this service leads, 0 while it stands by.", {}, collector is not None
        yield "hedgerow_region_lease_term", "Number of the last term in which this service led.", {}, self._last_fence
        yield from tasks.gauges()
        if collector is not None:
            yield from collector.gauges()

    def _liveness_problems(self) -> list[str]:
        silent_s = time.monotonic() - self._last_beat
        reasons = [f"the event loop has been blocked for {silent_s:.0f} s"] if silent_s > _HUNG_AFTER_S else []
        if not self._keeper.is_alive():
            reasons.append("the thread that keeps the lease has died")
        collector = self.collector
        return reasons + (collector.liveness_problems() if collector is not None else [])

    def _readiness_problems(self) -> list[str]:
        collector, failure = self.collector, self._keeper.failure
        reasons = [f"the lease cannot be renewed: {failure}"] if failure is not None else []
        if collector is not None:
            return reasons + collector.readiness_problems()
        return reasons if self._keeper.standing_by or reasons else ["not leading yet"]


def former_session(config: RegionConfig) -> FormerSession:
    """Return the session that a version before tokens may have left at the broker."""
    name = config.region.name
    # The service may publish and receive there, and no bridge forwards it: no site has this name.
    topic = Address(name, "collector-move", "collector").topic(Channel.DESIRED)
    return FormerSession(former_client_id(name, "collector"), config.state_folder / "sessions" / "collector", topic)
