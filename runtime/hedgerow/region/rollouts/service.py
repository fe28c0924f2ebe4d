"""The part of the region's service that conducts its fleet: a thread that decides and writes, and what publishes for it.

Decide, write, publish: a desired document leaves only when it is on the disk. What the broker has is written down later;
what was not written down is published again after a restart, and nodes know it by its generation.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.controller import PendingDocument, RolloutController
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.planning.state import Phase
from hedgerow.region.rollouts.requests import open_requests
from hedgerow.region.store.database.database import RegionStoreError
from hedgerow.region.store.database.open import open_database
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON

log = structlog.get_logger(__name__)

_TURN_S: Final = 0.5
_REST_S: Final = 2.0
"""How often it looks at all nodes while no rollout is under way: with a thousand of them that costs more than a turn else."""
_RETRY_S: Final = (0.5, 10.0)
_AT_ONCE: Final = 100
"""Documents under way to the broker at a time: a thousand nodes are no flood for whoever is behind a thin line."""
_JSON: Final = encode_properties([(Property.CONTENT_TYPE, JSON)])


class DocumentPublisher:
    """Publishes desired documents, some at a time. Lives on the event loop.

    Args:
        client: to the region's broker.
        arrived: is told what the broker has; called on the loop.
    """

    def __init__(self, client: Client, arrived: Callable[[Address, int], None]) -> None:
        self._client = client
        self._arrived = arrived
        self._waiting: deque[PendingDocument] = deque()
        self._under_way = 0

    def take(self, pending: list[PendingDocument]) -> None:
        """Publish these too."""
        self._waiting.extend(pending)
        self._send()

    def _send(self) -> None:
        while self._waiting and self._under_way < _AT_ONCE:
            document = self._waiting.popleft()
            self._under_way += 1
            try:
                self._client.publish(
                    document.node.topic(Channel.DESIRED), document.payload, qos=1, retain=True, properties=_JSON,
                    done=partial(self._done, document),
                )  # fmt: skip
            except BusError as error:
                self._done(document, error)

    def _done(self, document: PendingDocument, error: Exception | None) -> None:
        self._under_way -= 1
        if error is None:
            self._arrived(document.node, document.generation)
        else:  # it is given out again after a while
            log.warning("desired-refused", node=str(document.node), error=str(error))
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._send)


class RolloutService(threading.Thread):
    """Conducts the fleet until it is closed.

    Args:
        config: the region's.
        client: to the region's broker.
        loop: the client's.
    Attributes:
        failure: why nothing is conducted just now; None: all is well.
    """

    def __init__(self, config: RegionConfig, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="region-steward", daemon=True)
        self._config = config
        self._loop = loop
        self._publisher = DocumentPublisher(client, lambda node, generation: self._arrived.put((node, generation)))
        self._arrived: queue.SimpleQueue[tuple[Address, int]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._listening_since: float | None = None
        self._controller: RolloutController | None = None
        self.failure: str | None = None
        self._phases: Counter[Phase] = Counter()
        self._rests_until = 0.0

    def link_changed(self, *, connected: bool) -> None:
        """The link to the broker came up or went down."""
        self._listening_since = time.time() if connected else None
        self._rests_until = 0.0

    def close(self) -> None:
        """End with the turn that is under way."""
        self._closing.set()

    def run(self) -> None:
        """(threading)"""
        retry_s = _RETRY_S[0]
        while not self._closing.wait(_TURN_S):
            try:
                self._turn()
                retry_s = _RETRY_S[0]
                if self.failure is not None:
                    log.info("steward-recovered")
                    self.failure = None
            except RegionStoreError as error:
                if self.failure is None:
                    log.error("steward-failing", code=error.code, error=str(error), remedy=error.remedy)
                self.failure = str(error)
                self._abandon()
                self._closing.wait(retry_s)
                retry_s = min(2 * retry_s, _RETRY_S[1])
            except Exception as error:  # ours to mend; the collector goes on
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
                self._controller = RolloutController(database, self._config)
            except BaseException:
                database.close()
                raise
        now, listening = time.time(), Listening(self._listening_since, self._config.region.silent_after_s)
        if time.monotonic() >= self._rests_until or open_requests(self._controller.fleet.database):
            under_way = self._controller.turn(now, listening)
            self._rests_until = 0.0 if under_way else time.monotonic() + _REST_S
        if listening.since is not None and (pending := self._controller.unpublished(now, listening)):
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._publisher.take, pending)
        self._controller.published(self._what_arrived())
        self._phases = Counter(kept.rollout.phase for kept in self._controller.fleet.rollouts.values())

    def _what_arrived(self) -> dict[Address, int]:
        arrived: dict[Address, int] = {}
        with suppress(queue.Empty):
            while True:
                node, generation = self._arrived.get_nowait()
                arrived[node] = max(generation, arrived.get(node, 0))
        return arrived

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """What /metrics shows of it: name, help, labels, value; for any thread."""
        works = self.failure is None
        yield "hedgerow_region_rollouts_up", "1 while the service can work on rollouts, 0 while it cannot.", {}, works
        yield "hedgerow_region_conducts", "Deprecated: use hedgerow_region_rollouts_up.", {}, works
        for phase in (Phase.RUNNING, Phase.PAUSED, Phase.ROLLING_BACK):
            labels = {"phase": phase.value}
            yield "hedgerow_region_rollouts", "Rollouts under way, by phase.", labels, self._phases[phase]

    def _abandon(self) -> None:
        if self._controller is not None:
            self._controller.close()
            self._controller = None
