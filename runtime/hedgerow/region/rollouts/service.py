"""Rollout service: a thread that plans and stores steps, and a publisher of desired documents.

A desired document is published only once it is on disk. What the broker has is recorded later; a document not recorded is
published again after a restart, and nodes recognise it by its generation.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeAlias

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.controller import PendingClear, PendingDocument, RolloutController
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.planning.state import Phase
from hedgerow.region.rollouts.requests import open_requests
from hedgerow.region.store.database.database import LeaseLost, RegionStoreError
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import Term
from hedgerow.topics import Address
from hedgerow.wire.messages import JSON

log = structlog.get_logger(__name__)

Pending: TypeAlias = PendingDocument | PendingClear
"""What is to be published."""

_TURN_S: Final = 0.5
_REST_S: Final = 2.0
"""Interval between turns while no rollout is in progress; with a thousand nodes, reading them all is the main cost."""
_RETRY_S: Final = (0.5, 10.0)
_MAX_IN_FLIGHT: Final = 100
"""Most documents in flight to the broker, so that a thousand of them do not flood a slow link."""
_JSON: Final = encode_properties([(Property.CONTENT_TYPE, JSON)])


class DocumentPublisher:
    """Publishes desired documents with limited concurrency. Runs on the event loop.

    Args:
        client: connection to the region's broker.
        published: called on the loop with what the broker has accepted.
        leads: whether this service may publish.
    """

    def __init__(self, client: Client, published: Callable[[Pending], None], leads: Callable[[], bool]) -> None:
        self._client = client
        self._published = published
        self._leads = leads
        self._waiting: deque[Pending] = deque()
        self._in_flight = 0

    def publish(self, pending: Sequence[Pending]) -> None:
        """Publish documents, and clear topics, in order."""
        self._waiting.extend(pending)
        self._send()

    def _send(self) -> None:
        if not self._leads():  # what the broker then lacks is published again later, by whoever leads
            self._waiting.clear()
        while self._waiting and self._in_flight < _MAX_IN_FLIGHT:
            document = self._waiting.popleft()
            self._in_flight += 1
            try:
                self._client.publish(
                    document.topic,
                    document.payload,
                    qos=1,
                    retain=True,
                    properties=_JSON if document.payload else b"",
                    done=partial(self._done, document),
                )
            except BusError as error:
                self._done(document, error)

    def _done(self, document: Pending, error: Exception | None) -> None:
        self._in_flight -= 1
        if error is None:
            self._published(document)
        elif document.payload:  # published again later
            log.warning("desired-refused", topic=document.topic, error=str(error))
        else:
            remedy = "Render the topology, and give the region's broker its new access list: the service clears what nodes left there."
            log.warning("clear-refused", topic=document.topic, error=str(error), remedy=remedy)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._send)


class RolloutService(threading.Thread):
    """Runs the rollouts until it is closed.

    Args:
        config: the region's configuration.
        client: connection to the region's broker.
        loop: the client's event loop.
        term: the term for which this service leads.
        leads: whether it leads for certain.
    Attributes:
        failure: why rollouts are stalled; None: they are not.
    """

    def __init__(
        self,
        config: RegionConfig,
        client: Client,
        loop: asyncio.AbstractEventLoop,
        term: Term,
        leads: Callable[[], bool],
    ) -> None:
        super().__init__(name="region-rollouts", daemon=True)
        self._config = config
        self._loop = loop
        self._term = term
        self._accepted: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        self._publisher = DocumentPublisher(client, self._accepted.put, leads)
        self._closing = threading.Event()
        self._listening_since: float | None = None
        self._controller: RolloutController | None = None
        self.failure: str | None = None
        self._phases: Counter[Phase] = Counter()
        self._rests_until = 0.0

    def link_changed(self, *, connected: bool) -> None:
        """Note that the connection to the broker was established or lost."""
        self._listening_since = time.time() if connected else None
        self._rests_until = 0.0

    def close(self) -> None:
        """Stop after the current turn."""
        self._closing.set()

    def run(self) -> None:
        """See `threading.Thread.run`."""
        retry_s = _RETRY_S[0]
        while not self._closing.wait(_TURN_S):
            try:
                self._turn()
                retry_s = _RETRY_S[0]
                if self.failure is not None:
                    log.info("steward-recovered")
                    self.failure = None
            except RegionStoreError as error:
                if self.failure is None and not isinstance(error, LeaseLost):
                    log.error("steward-failing", code=error.code, error=str(error), remedy=error.remedy)
                self.failure = str(error)
                self._abandon()
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _RETRY_S[1])
            except Exception as error:  # a bug: must not stop the collector
                log.exception("steward-failed")
                self.failure = f"{type(error).__name__}: {error}"
                self._abandon()
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _RETRY_S[1])
        self._abandon()

    def _turn(self) -> None:
        if self._controller is None:
            database = open_database(self._config.store.url, write=False, alongside=True)
            try:
                database.lead(self._term.fence)
                self._controller = RolloutController(database, self._config)
            except BaseException:
                database.close()
                raise
        now, listening = time.time(), Listening(self._listening_since, self._config.region.silent_after_s)
        if time.monotonic() >= self._rests_until or open_requests(self._controller.fleet.database):
            in_progress = self._controller.turn(now, listening)
            self._rests_until = 0.0 if in_progress else time.monotonic() + _REST_S
        if listening.since is not None:
            pending: list[Pending] = [*self._controller.unpublished(now, listening), *self._controller.uncleared(now)]
            if pending:
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._publisher.publish, pending)
        documents, topics = self._take_accepted()
        self._controller.published(documents)
        self._controller.cleared(topics)
        self._phases = Counter(stored.rollout.phase for stored in self._controller.fleet.rollouts.values())

    def _take_accepted(self) -> tuple[dict[Address, int], set[str]]:
        """Return the generations that the broker has, and the topics that it has cleared."""
        published: dict[Address, int] = {}
        cleared = set()
        with suppress(queue.Empty):
            while True:
                accepted = self._accepted.get_nowait()
                if isinstance(accepted, PendingClear):
                    cleared.add(accepted.topic)
                else:
                    published[accepted.node] = max(accepted.generation, published.get(accepted.node, 0))
        return published, cleared

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield gauges for /metrics, from any thread: name, help, labels, value."""
        works = self.failure is None
        yield "hedgerow_region_rollouts_up", "1 while the service can work on rollouts, 0 while it cannot.", {}, works
        yield "hedgerow_region_conducts", "Deprecated: use hedgerow_region_rollouts_up.", {}, works
        for phase in (Phase.RUNNING, Phase.PAUSED, Phase.ROLLING_BACK):
            labels = {"phase": phase.value}
            yield "hedgerow_region_rollouts", "Rollouts in progress, by phase.", labels, self._phases[phase]

    def _abandon(self) -> None:
        if self._controller is not None:
            self._controller.close()
            self._controller = None
