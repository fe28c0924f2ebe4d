"""What a node tells of itself over its own link: birth and death, events, health."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from hedgerow import __version__
from hedgerow.bus.client import Client
from hedgerow.bus.packets import Publication
from hedgerow.bus.properties import Property, Value, encode_properties
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.topics import Address, Channel
from hedgerow.wire import messages as wire

log = structlog.get_logger(__name__)

HEALTH_EVERY_S = 10.0
FIRST_HEALTH_S = 1.0

_JSON = encode_properties([(Property.CONTENT_TYPE, wire.JSON)])


class Announcer:
    """Publishes a node's status, events and health.

    Args:
        address: of the node.
    Attributes:
        session: names this run of the node; birth and death carry it, so a late will cannot bury a newer birth.
        client: the link to speak over; set once it is made, since the link needs the will first.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.session = uuid.uuid4().hex
        self.client: Client
        self._loop = asyncio.get_running_loop()

    def will(self) -> Publication:
        """What the broker is to say if the node falls silent."""
        status = self._status("offline", "the link broke", None)
        return Publication(self.address.topic(Channel.STATUS), status.encode(), qos=1, retain=True)

    def status(self, state: str, reason: str | None = None) -> None:
        """Publish birth (`online`) or death (`offline`)."""
        payload = self._status(state, reason, time.time()).encode()
        self.client.publish(self.address.topic(Channel.STATUS), payload, qos=1, retain=True, properties=_JSON)

    def event(self, kind: str, detail: dict[str, Any], pipeline: str | None = None) -> None:
        """Publish something that happened."""
        at = time.time()
        event = wire.Event(
            kind=kind, node=str(self.address), session=self.session, at=at, pipeline=pipeline, detail=detail
        )
        user = {
            "specversion": "1.0",
            "id": uuid.uuid4().hex,
            "source": f"/hedgerow/{self.address}",
            "type": f"hedgerow.event.{kind}",
            "time": wire.rfc3339(at),
        }
        pairs: list[tuple[Property, Value]] = [(Property.USER, pair) for pair in user.items()]
        properties = _JSON + encode_properties(pairs)
        self.client.publish(self.address.topic(Channel.EVENT, kind), event.encode(), qos=1, properties=properties)

    def events_of(self, pipeline: str) -> EventSink:
        """Where a pipeline's events go; for any thread."""

        def sink(kind: str, detail: dict[str, Any]) -> None:
            log.warning(kind, pipeline=pipeline, **detail)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.event, kind, detail, pipeline)

        return sink

    async def keep_reporting(self, report: Callable[[], wire.Health], begin_period: Callable[[], None]) -> None:
        """Publish health for ever.

        Args:
            report: makes a report of now.
            begin_period: called after each, since rates are those of the time between two.
        """
        await asyncio.sleep(FIRST_HEALTH_S)
        while True:
            health = report()
            if health.state != "ok":
                log.warning("health", state=health.state, reasons=health.reasons)
            if self.client.connected:
                self.client.publish(self.address.topic(Channel.HEALTH), health.encode(), properties=_JSON)
            begin_period()
            await asyncio.sleep(HEALTH_EVERY_S)

    def _status(self, state: str, reason: str | None, at: float | None) -> wire.Status:
        return wire.Status.model_validate(
            {
                "state": state,
                "session": self.session,
                "node": str(self.address),
                "version": __version__,
                "at": at,
                "reason": reason,
            }
        )
