"""Publishes the node's status, events and reports over its own link."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from hedgerow import __version__
from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.bus.packets import Publication
from hedgerow.bus.properties import Property, Value, encode_properties
from hedgerow.errors import HedgerowError, published, without_secrets
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.telemetry.throttle import Throttle, kind_of
from hedgerow.topics import Address, Channel
from hedgerow.wire import messages as wire

log = structlog.get_logger(__name__)

_JSON = encode_properties([(Property.CONTENT_TYPE, wire.JSON)])


class Announcer:
    """Publishes a node's status, events and reports.

    Args:
        address: the node's address.
        session: ID of this run of the node. Every status has it, so that a late will does not override a newer birth.
        client: the node's own link.
    Attributes:
        warned: number of warnings by kind and pipeline ("" if none).
    """

    def __init__(self, address: Address, session: str, client: Client) -> None:
        self.address = address
        self.session = session
        self._client = client
        self.warned: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()
        self._repeats: Throttle[tuple[str, dict[str, Any], str | None]] = Throttle()
        self._loop = asyncio.get_running_loop()

    @property
    def connected(self) -> bool:
        """Whether the link is up."""
        return self._client.connected

    def status(self, state: str, reason: str | None = None) -> None:
        """Publish the node's status: `online` (birth) or `offline` (death)."""
        status = _status(self.address, self.session, state, reason, time.time())
        self.publish(Channel.STATUS, status.encode(), qos=1, retain=True)

    def check_name(self, message: Message, *, state_is_new: bool) -> None:
        """Warn of what a status of this node tells that comes from another run.

        Args:
            message: the status.
            state_is_new: whether this run began with an empty state folder.
        """
        try:
            status = wire.Status.model_validate_json(bytes(message.payload))
        except ValueError:
            return
        if status.session == self.session:
            return
        if message.retain and state_is_new:
            error = "This node ran before, but its state folder is empty: what waits at the broker for its former client ids is lost"
            remedy = "Keep `node: {state_dir}` on a disk that outlives the container or the installation."
            self.warn("session-lost", {"filters": [], "error": error, "remedy": remedy})
        elif not message.retain and status.state == "online":  # their client ids differ, so the broker keeps both
            remedy = "Give each node its own name (`node: {region, site, name}`). Until then, both process all frames."
            self.warn("name-in-use", {"error": f"Another node runs as {self.address}", "remedy": remedy})

    def publish(self, channel: Channel, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Publish JSON on one of the node's topics."""
        self._client.publish(self.address.topic(channel), payload, qos=qos, retain=retain, properties=_JSON)

    def event(self, kind: str, detail: dict[str, Any], pipeline: str | None = None) -> None:
        """Publish an event; of an error under `error`, what may leave the node."""
        at = time.time()
        event = wire.Event(
            kind=kind,
            node=str(self.address),
            session=self.session,
            at=at,
            pipeline=pipeline,
            detail=_published_detail(detail),
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
        self._client.publish(self.address.topic(Channel.EVENT, kind), event.encode(), qos=1, properties=properties)

    def warn(self, kind: str, detail: dict[str, Any], pipeline: str | None = None) -> None:
        """(any thread) Log a warning and publish it as an event.

        What repeats is counted: the first of a kind passes at once, then the last of each minute; `times` is how many it
        stands for.
        """
        with self._counting:
            self.warned[kind, pipeline or ""] += 1
        named = detail if pipeline is None else {"pipeline": pipeline, **detail}
        times = self._repeats.admit(kind_of(kind, named), (kind, detail, pipeline), time.monotonic())
        if times is not None:
            self._warn(kind, detail, pipeline, times)

    def report_repeats(self, *, final: bool = False) -> None:
        """Log and publish what was held back for a minute; call it every few seconds, and with `final` at the end."""
        for (kind, detail, pipeline), times in self._repeats.due(time.monotonic(), final=final):
            self._warn(kind, detail, pipeline, times)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        for (kind, pipeline), count in dict(self.warned).items():
            yield (
                "hedgerow_warnings",
                "Warnings, also those not published.",
                {"kind": kind, "pipeline": pipeline},
                count,
            )

    def _warn(self, kind: str, detail: dict[str, Any], pipeline: str | None, times: int) -> None:
        if times > 1:
            detail = {**detail, "times": times}
        logged = {key: str(value) if isinstance(value, HedgerowError) else value for key, value in detail.items()}
        log.warning(kind, **logged if pipeline is None else {"pipeline": pipeline, **logged})
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.event, kind, detail, pipeline)

    def event_sink(self, pipeline: str) -> EventSink:
        """Return a function that logs and publishes a pipeline's events; it may be called from any thread."""
        return partial(self.warn, pipeline=pipeline)


def _published_detail(detail: dict[str, Any]) -> dict[str, Any]:
    error = detail.get("error")
    if isinstance(error, HedgerowError):
        message, remedy = published(error)
        detail = {**detail, "error": message} | ({"remedy": remedy} if "remedy" in detail else {})
    return {key: without_secrets(value) if isinstance(value, str) else value for key, value in detail.items()}


def last_will(address: Address, session: str) -> Publication:
    """Return the will, which the broker publishes if the connection is lost without a DISCONNECT."""
    status = _status(address, session, "offline", "connection lost", None)
    return Publication(address.topic(Channel.STATUS), status.encode(), qos=1, retain=True)


def _status(address: Address, session: str, state: str, reason: str | None, at: float | None) -> wire.Status:
    return wire.Status.model_validate(
        {
            "state": state,
            "session": session,
            "node": str(address),
            "version": __version__,
            "at": at,
            "reason": reason,
        }
    )
