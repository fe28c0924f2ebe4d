"""Tells other services of the region that this one runs, and learns of them: on stores of their own, each has half of the results.

Each service that leads publishes who it is on a topic that only collectors may use, every few seconds. It reads the topic too,
and counts its own messages with those of others: `Contest` decides whether two are alive at once. So the messages of a service
that has ended, a restart, and a standby that took over are no reason to warn.
"""

from __future__ import annotations

import asyncio
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.region.store.records import OtherService
from hedgerow.region.store.twins.contest import PERIOD_S, Contest
from hedgerow.text import visible
from hedgerow.topics import EVERY_NODE, Address, Channel
from hedgerow.wire.messages import JSON, RunningService, clean

log = structlog.get_logger(__name__)

REMEDY: Final = "Stop one of them. To have one take over from the other, give both one store (PostgreSQL, or an SQLite file on one machine)"
_TICK_S: Final = 0.5
_KEPT_S: Final = 60
"""How long the broker keeps the last message of a service, and how long a service counts as there after its last one."""
_MOST_SERVICES: Final = 8
_PROPERTIES: Final = encode_properties([(Property.EXPIRY, _KEPT_S), (Property.CONTENT_TYPE, JSON)])


class OtherServices:
    """The services of a region that lead at the same time as this one.

    Args:
        region: name of the region.
        client: connection to the region's broker.
        report: called with all other services, whenever one is added or seen again, and when they are gone.
        clock: a monotonic clock, in seconds.
    Attributes:
        store: id of this service's store; "": not known yet, so nothing is published.
    """

    def __init__(
        self,
        region: str,
        client: Client,
        report: Callable[[Sequence[OtherService]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = ""
        self._region = region
        self._client = client
        self._report = report
        self._clock = clock
        self._instance = uuid.uuid4().hex
        self._started = clock()
        self._address = Address(region, EVERY_NODE, EVERY_NODE)
        self._prefix = self._address.topic(Channel.SERVICE, "x")[:-1]
        self._contest = Contest()
        self._heard: dict[str, OtherService] = {}
        self._due = 0.0
        self._link_is_new = True
        self._is_refused = False
        self.filter = f"{self._prefix}+"

    async def run(self) -> None:
        """Publish and read until cancelled."""
        while True:
            if self._client.connected:
                if self._link_is_new:
                    self._link_is_new = False
                    await self._read()
                if self.store and self._clock() >= self._due:
                    self._due = self._clock() + PERIOD_S
                    self.publish()
            await asyncio.sleep(_TICK_S)

    def link_changed(self) -> None:
        """Read what the broker has retained, and publish, as soon as there is a link.

        A service on a copy of this store has the same client id, so each ends the other's link: neither hears what the other one
        publishes, except what is retained.
        """
        self._link_is_new, self._due = True, 0.0

    async def _read(self) -> None:
        """Subscribe, on each link anew: only to a new subscription does the broker send what it has retained."""
        if self._is_refused:
            return
        try:
            await self._client.unsubscribe([self.filter])
            await self._client.subscribe({self.filter: 0})
        except BusError as error:  # access lists of an earlier version; some brokers refuse what they forbid
            self._is_refused = True
            await self._client.unsubscribe([self.filter])
            log.info("other-services-not-watched", error=str(error), remedy="Render the region's access lists anew.")

    def publish(self) -> None:
        """Tell the others that this one runs, and count that as heard of it."""
        uptime_s = round(self._clock() - self._started, 3)
        notice = RunningService(
            region=self._region,
            instance=self._instance,
            store=self.store,
            host=visible(platform.node()[:253]),
            address=self._client.local_address,
            uptime_s=uptime_s,
        )
        with suppress(BusError):
            self._client.publish(self._topic, notice.encode(), retain=True, properties=_PROPERTIES)
        self._count(self._instance, uptime_s)

    def leave(self) -> None:
        """Tell the others that this one stops."""
        if self.store and self._client.connected:
            with suppress(BusError):
                self._client.publish(self._topic, b"", retain=True)

    def take(self, message: Message) -> bool:
        """Handle a message if it is that of a service. Returns: whether it is."""
        if not message.topic.startswith(self._prefix):
            return False
        try:
            notice = RunningService.model_validate_json(bytes(message.payload))
        except ValueError:
            return True
        if notice.instance != self._instance and notice.region == self._region:
            self._hear(notice)
        return True

    def problems(self) -> list[str]:
        """Return why there must be one service less."""
        return [f"{_describe(one, self.store)}. {REMEDY}" for one in self._others()]

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """(any thread) Yield metrics: name, help, labels, value."""
        text = "Other services of this region that collect at the same time, each into its own store."
        yield "hedgerow_region_other_services", text, {}, len(self._others())

    @property
    def _topic(self) -> str:
        return self._address.topic(Channel.SERVICE, self.store)

    def _hear(self, notice: RunningService) -> None:
        now = time.time()
        instance, known = clean(notice.instance, 64), self._heard.get(notice.instance)
        if known is None and len(self._heard) >= _MOST_SERVICES:
            self._forget(now)
            if len(self._heard) >= _MOST_SERVICES:
                return
        since = now if known is None else known.since
        self._heard[notice.instance] = OtherService(
            instance, clean(notice.store, 64), clean(notice.host), clean(notice.address), since, now
        )
        self._count(notice.instance, notice.uptime_s)

    def _count(self, instance: str, uptime_s: float) -> None:
        change = self._contest.report(instance, uptime_s, self._clock())
        if change == "began":
            for one in self._others():
                log.error("another-service", detail=_describe(one, self.store), remedy=REMEDY)
        elif change == "ended":
            log.info("another-service-gone")
            self._heard.clear()
        if change is not None or self._contest.rivals is not None:
            self._report(self._others())

    def _others(self) -> list[OtherService]:
        if self._contest.rivals is None:
            return []
        now = time.time()
        return [one for one in list(self._heard.values()) if 0 <= now - one.last_at <= _KEPT_S or one.instance in self._contest.rivals]  # fmt: skip

    def _forget(self, now: float) -> None:
        self._heard = {key: one for key, one in self._heard.items() if 0 <= now - one.last_at <= _KEPT_S}


def _describe(one: OtherService, store: str) -> str:
    where = f"host {one.host or 'not known'}, address {one.address or 'not known'}, instance {one.instance[:8]}"
    whose = "with a copy of this store" if one.store == store else f"with a store of its own ({one.store[:8]})"
    return f"another service of this region collects too, {whose}: {where}"
