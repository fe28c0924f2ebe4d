"""Enrolment service: a thread that answers requests, so that signatures and the store hold up nothing else.

Requests are bounded before they are read: by site and second, and in number. What is dropped comes again, since machines repeat
their requests until they are answered.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.enrolment.answer import Answer
from hedgerow.enrolment.request import CLIENT, MAX_REQUEST_BYTES, EnrolmentRefused
from hedgerow.errors import BusError
from hedgerow.region.config import RegionConfig
from hedgerow.region.enrolment.registrar import Registrar
from hedgerow.region.store.database.database import Database, LeaseLost, RegionStoreError
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import Term
from hedgerow.topics import EVERY_NODE, Address, Channel, parse
from hedgerow.wire.messages import JSON

log = structlog.get_logger(__name__)

REASON: Final = "enrolment"
_MOST_WAITING: Final = 1000
_MOST_OF_SITE: Final = 200
_MOST_SITES: Final = 1000
_BURST_S: Final = 2.0
_RETRY_S: Final = 2.0
_REFUSED_PAUSE_S: Final = 60.0
_JSON: Final = encode_properties([(Property.CONTENT_TYPE, JSON)])


class _Asked(NamedTuple):
    site: str
    client: str
    payload: bytes


class EnrolmentService(threading.Thread):
    """Answers machines that enrol until it is closed.

    Args:
        config: the region's configuration.
        client: connection to the region's broker.
        loop: the client's event loop.
        term: the term for which this service leads.
    Attributes:
        failure: why no machine is answered; None: they are.
        counts: requests, by outcome: the answer's state, the reason of a refusal, or `dropped`.
    """

    def __init__(self, config: RegionConfig, client: Client, loop: asyncio.AbstractEventLoop, term: Term) -> None:
        super().__init__(name="region-enrolment", daemon=True)
        self._config = config
        self._client = client
        self._loop = loop
        self._term = term
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(_MOST_WAITING)
        self._of_site: Counter[str] = Counter()
        self._allowances: dict[str, tuple[float, float]] = {}
        self._refused: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._database: Database | None = None
        self.failure: str | None = None
        self.counts: Counter[str] = Counter()

    @property
    def filters(self) -> dict[str, int]:
        """What to subscribe to, with the QoS."""
        return {Address(self._config.region.name, "+", EVERY_NODE).topic(Channel.ENROL, "+"): 0}

    def take(self, message: Message) -> bool:
        """Take a message if it is a request. On the event loop. Returns: whether it was one."""
        if f"/{EVERY_NODE}/{Channel.ENROL}/" not in message.topic:
            return False
        parsed = parse(message.topic)
        if parsed is None or parsed.channel is not Channel.ENROL or parsed.address.region != self._config.region.name:
            return False
        site, client = parsed.address.site, parsed.tail
        too_large = message.oversized is not None or len(message.payload) > MAX_REQUEST_BYTES
        if message.malformed is not None or message.retain or not CLIENT.fullmatch(client) or too_large:
            self._refuse(site, "bad-request")
        elif not self._admits(site, time.monotonic()) or self._of_site[site] >= _MOST_OF_SITE:
            self._refuse(site, "too-many-requests")
        else:
            try:
                self._waiting.put_nowait(_Asked(site, client, bytes(message.payload)))
            except queue.Full:
                self._refuse(site, "too-many-requests")
            else:
                with self._lock:
                    self._of_site[site] += 1
        return True

    def take_refused(self) -> Counter[tuple[str, str]]:
        """Return how many requests were refused since the last call, by site and reason."""
        with self._lock:
            refused, self._refused = self._refused, Counter()
        return refused

    def close(self) -> None:
        """Stop after the current request."""
        self._closing.set()
        with suppress(queue.Full):
            self._waiting.put_nowait(None)

    def run(self) -> None:
        """See `threading.Thread.run`."""
        registrar: Registrar | None = None
        while not self._closing.is_set():
            asked = self._waiting.get()
            if asked is None:
                continue
            try:
                if registrar is None:
                    self._database = open_database(self._config.store.url, write=False, alongside=True)
                    self._database.lead(self._term.fence)
                    registrar = Registrar(self._database, self._config.region.name, self._config.enrolment)
                self._answer(registrar, asked)
                self.failure = None
            except RegionStoreError as error:  # the machine asks again
                if self.failure is None and not isinstance(error, LeaseLost):
                    log.error("enrolment-failing", code=error.code, error=str(error), remedy=error.remedy)
                self.failure = str(error)
                self._abandon()
                registrar = None
                self._closing.wait(_RETRY_S)
            except Exception:  # a bug: must not stop the others, nor the service
                log.exception("enrolment-failed", site=asked.site)
                self._refuse(asked.site, "internal")
                self._abandon()
                registrar = None
            finally:
                with self._lock:
                    self._of_site[asked.site] -= 1
                    if self._of_site[asked.site] <= 0:
                        del self._of_site[asked.site]
        self._abandon()

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield gauges for /metrics, from any thread: name, help, labels, value."""
        for outcome, count in self.counts.copy().items():
            yield (
                "hedgerow_region_enrolment_requests",
                "Requests of machines that enrol, by outcome.",
                {"outcome": outcome},
                count,
            )

    def _answer(self, registrar: Registrar, asked: _Asked) -> None:
        try:
            answer = registrar.answer(asked.site, asked.client, asked.payload, time.time())
        except EnrolmentRefused as error:
            self._refuse(asked.site, error.code)
            answer = Answer(state="refused", code=error.code, detail=str(error)[:500], again_s=_REFUSED_PAUSE_S)
        else:
            self.counts[answer.state] += 1
        topic = Address(self._config.region.name, asked.site, EVERY_NODE).topic(Channel.ENROLLED, asked.client)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._publish, topic, answer.encode())

    def _publish(self, topic: str, payload: bytes) -> None:
        with suppress(BusError):
            self._client.publish(topic, payload, properties=_JSON, done=_noted)

    def _refuse(self, site: str, reason: str) -> None:
        self.counts[reason] += 1
        with self._lock:
            if (site, reason) in self._refused or len(self._refused) < _MOST_SITES:
                self._refused[site, reason] += 1

    def _admits(self, site: str, now: float) -> bool:
        """Count a request against the rate of its site."""
        per_s = self._config.enrolment.requests_per_s
        if site not in self._allowances and len(self._allowances) >= _MOST_SITES:
            site = ""  # invented sites share one rate
        left, at = self._allowances.get(site, (max(1.0, _BURST_S * per_s), now))
        left = min(max(1.0, _BURST_S * per_s), left + (now - at) * per_s)
        self._allowances[site] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _abandon(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _noted(error: Exception | None) -> None:
    """Without a link the answer is lost; the machine asks again."""
    if error is not None:
        log.debug("enrolment-answer-lost", error=str(error))
