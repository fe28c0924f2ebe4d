"""Publishes the node's status, events and reports over its own link."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from hedgerow import __version__
from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.bus.packets import Publication
from hedgerow.bus.properties import Property, Value, encode_properties
from hedgerow.errors import FrameError, HedgerowError, published, without_secrets
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.telemetry.throttle import Throttle, kind_of
from hedgerow.topics import Address, Channel
from hedgerow.wire import messages as wire

if TYPE_CHECKING:
    from hedgerow.node.link.instance import ThisInstance

log = structlog.get_logger(__name__)

_JSON = encode_properties([(Property.CONTENT_TYPE, wire.JSON)])
_MOST_TWINS: Final = 8
_SEEN_S: Final = 60.0
_REMEDY: Final = (
    "Stop one of them, or give each its own name (`node: {region, site, name}`) and certificate. Is it a copied disk? Run "
    "`hedgerow node new-identity` on the copy"
)


class Announcer:
    """Publishes a node's status, events and reports.

    Args:
        address: the node's address.
        session: ID of this run of the node. Every status has it, so that a late will does not override a newer birth.
        client: the node's own link.
        place: where this run takes place; None: not told.
    Attributes:
        warned: number of warnings by kind and pipeline ("" if none).
    """

    def __init__(self, address: Address, session: str, client: Client, place: ThisInstance | None = None) -> None:
        self.address = address
        self.session = session
        self._client = client
        self._place = place
        self._twins: dict[str, _Twin] = {}
        self._elsewhere: dict[str, _Twin] = {}  # as the region told last
        self._births = 0
        self._left: str | None = None
        self._ending = False
        self.warned: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()
        self._repeats: Throttle[tuple[str, dict[str, Any], str | None]] = Throttle()
        self._loop = asyncio.get_running_loop()

    @property
    def connected(self) -> bool:
        """Whether the link is up."""
        return self._client.connected

    async def wait_connected(self) -> None:
        """Wait until the link is up."""
        await self._client.wait_connected()

    @property
    def instance(self) -> wire.Instance | None:
        """Where this run takes place."""
        return None if self._place is None else self._place.now

    def online(self) -> None:
        """Publish the node's birth on a new link: the will of the last one may have said that it is offline."""
        if self._place is not None:
            self._place.refresh(self._client.local_address)
        self._births += 1
        self._publish_status("online")

    def link_lost(self) -> None:
        """Forget other nodes of this name: who is still there answers on the next link."""
        self._twins.clear()

    def offline(self, reason: str) -> None:
        """Publish the node's death."""
        self._ending = True
        self._publish_status("offline", reason=reason)

    def _publish_status(self, state: str, *, reason: str | None = None, answers: str | None = None) -> None:
        status = _status(self.address, self.session, state, reason, time.time(), self.instance, answers)
        self.publish(Channel.STATUS, status.encode(), qos=1, retain=True)

    def check_name(self, message: Message, *, state_is_new: bool) -> None:
        """Notice what a status of this node tells that comes from another run: that another machine has its name.

        Nodes of one name at one broker receive each other's status. Who comes online is answered, since it does not
        receive what was published before; answers are not answered.

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
        elif self._ending:
            return
        elif message.retain:
            self._check_retained(status)
        elif status.state == "online":  # their client ids differ, so the broker keeps both
            self._notice_twin(status)
        else:
            self._twins.pop(status.session, None)
            self._publish_status("online")  # the retained status is the other's, or that of an earlier run of this one

    def take_notice(self, message: Message) -> bool:
        """Notice another run of this name, at whatever broker, of which the region tells. Returns: whether it is a notice."""
        try:
            texts = [text for name, text in message.properties.user_properties if name == wire.NAME_NOTICE]
            runs = [] if not texts else wire.NameNotice.model_validate_json(texts[0]).runs
        except (FrameError, ValueError):
            return False
        if any(
            run.session == self.session for run in runs
        ):  # else it tells of an earlier run of this node, or of a third one
            others = [run for run in runs if run.session != self.session] or runs  # or of a copy of this very process
            known, until = self._present(), time.monotonic() + _SEEN_S
            self._elsewhere = {run.session: _Twin(run.instance, time.time(), until) for run in others}
            for session, twin in self._elsewhere.items():
                if session not in known:
                    self._warn_of(session, twin)
        return bool(texts)

    def _check_retained(self, status: wire.Status) -> None:
        """Notice that another run's status came after that of this one: nodes with equal client ids end each other's link.

        A will of the run before this one may be late, but only once.
        """
        if not self._births:
            return
        if status.state == "online" or status.session == self._left:
            self._warn_of_twin(status, time.monotonic() + _SEEN_S)
        self._left = status.session

    def _notice_twin(self, status: wire.Status) -> None:
        if status.answers is None:
            self._publish_status("online", answers=status.session)
        elif status.answers != self.session:
            self._keep_twin(status, None)
            return  # meant for a third one
        self._warn_of_twin(status, None)

    def _keep_twin(self, status: wire.Status, until: float | None) -> _Twin:
        twin = _Twin(status.instance or wire.Instance(), time.time(), until)
        if len(self._twins) < _MOST_TWINS or status.session in self._twins:
            self._twins[status.session] = twin
        return twin

    def _warn_of_twin(self, status: wire.Status, until: float | None) -> None:
        self._warn_of(status.session, self._keep_twin(status, until))

    def _warn_of(self, session: str, twin: _Twin) -> None:
        detail = {"error": f"Another node runs as {self.address}: {twin.where()}", "remedy": _REMEDY}
        self.warn("name-in-use", {**detail, "session": session, **twin.known()})

    def _present(self) -> dict[str, _Twin]:
        """Return the other nodes of this name by session. The region knows the address, which a will has not."""
        now = time.monotonic()
        known = {**self._twins, **self._elsewhere}
        return {session: twin for session, twin in known.items() if twin.until is None or now < twin.until}

    def twins(self) -> Iterator[str]:
        """Yield a reason for each other node of this name that is online, at this broker or as the region tells."""
        for twin in self._present().values():
            yield (
                f"another node runs as {self.address}: {twin.where()}, seen here at {wire.rfc3339(twin.seen_at)}; both process "
                f"all frames. {_REMEDY}"
            )

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
        labels = {"node": str(self.address)}
        yield (
            "hedgerow_name_in_use",
            "Other nodes of this name, at this broker or elsewhere.",
            labels,
            len(self._present()),
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


@dataclass(frozen=True, slots=True)
class _Twin:
    """Another node of this name.

    Attributes:
        seen_at: when its status arrived, in Unix seconds.
        until: how long it counts as there, on the monotonic clock; None: until it goes offline.
    """

    instance: wire.Instance
    seen_at: float
    until: float | None

    def where(self) -> str:
        host, address = (wire.clean(text, 100) for text in (self.instance.host, self.instance.address))
        return f"host {host or 'not known'}, address {address or 'not known'}"

    def known(self) -> dict[str, str]:
        return {name: wire.clean(text, 100) for name in ("host", "address") if (text := getattr(self.instance, name))}


def last_will(address: Address, session: str, instance: wire.Instance | None = None) -> Publication:
    """Return the will, which the broker publishes if the connection is lost without a DISCONNECT."""
    status = _status(address, session, "offline", "connection lost", None, instance)
    return Publication(address.topic(Channel.STATUS), status.encode(), qos=1, retain=True)


def _status(
    address: Address,
    session: str,
    state: str,
    reason: str | None,
    at: float | None,
    instance: wire.Instance | None = None,
    answers: str | None = None,
) -> wire.Status:
    return wire.Status.model_validate(
        {
            "state": state,
            "session": session,
            "node": str(address),
            "version": __version__,
            "at": at,
            "reason": reason,
            "instance": instance,
            "answers": answers,
        }
    )
