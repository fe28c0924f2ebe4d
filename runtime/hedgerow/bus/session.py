"""MQTT session that outlives its links, and the task that reconnects.

Rules:
- Pending acknowledgements, publishes and subscriptions belong to the session; a `Link` only transports them.
- Connecting is retried indefinitely with backoff. A failure is logged once, not at every attempt.
- Session state changes in the call that handles CONNACK or the end of a link, never later in a task: messages may follow
  in the same read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from hedgerow import tasks
from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.backoff import Backoff
from hedgerow.bus.causes import (
    ConnectionFailure,
    disconnected,
    ended_by_peer,
    malformed,
    no_qos,
    publish_refused,
    qos_lowered,
    refused,
    session_lost,
    unreachable,
)
from hedgerow.bus.connect import ClientOptions, connect_packet, open_transport
from hedgerow.bus.diagnosis import diagnose
from hedgerow.bus.link import Link
from hedgerow.bus.message import Message
from hedgerow.bus.outgoing import Outbound, Outgoing
from hedgerow.bus.packets import (
    CONNACK,
    DISCONNECT,
    MAX_PACKET_BYTES,
    PINGREQ_PACKET,
    PINGRESP,
    PUBACK,
    SUBACK,
    UNSUBACK,
    Connack,
    decode_connack,
    decode_disconnect,
    decode_puback,
    decode_suback,
    encode_disconnect,
    encode_puback,
    reason_name,
)
from hedgerow.bus.properties import MalformedPacket, Property
from hedgerow.bus.set_aside import restarts
from hedgerow.bus.set_aside.messages import MessageSetAside, keep
from hedgerow.bus.subscriptions import Refused, Subscriptions
from hedgerow.errors import BusError, HedgerowError
from hedgerow.text import visible

log: Final = structlog.get_logger(__name__)

_SETTLE_S: Final = 5.0
"""Longest wait for the broker's acknowledgements before a link is renewed."""

_REFUSAL_LOG_INTERVAL_S: Final = 60.0
"""Shortest interval between log entries about refused publishes; all of them are counted."""

_WRITE_BYTES: Final = 256 * 1024  # in one iteration of the event loop


class MqttSession:
    """State and connection task of one session; owns its links (`LinkOwner`).

    Args:
        on_messages, on_state, on_event: as for `Client`.
    Attributes:
        link: the link, once the broker has accepted it.
        connected: set while the link is up and the subscriptions are in place.
        last_error: why the last connection failed or ended.
        links: connections the broker accepted so far.
        received, sent: messages, on all links.
        bytes_received, bytes_sent: on all links that have ended.
        handler_errors: times `on_messages` raised.
        refused: QoS 1 publishes that the broker refused.
        password: that the last attempt to connect used.
        set_aside: QoS 1 publishes that ended the link each time, and are not sent any more.
        lost: times the broker had forgotten the session, and with it the QoS 1 messages that waited there.
    """

    def __init__(
        self,
        options: ClientOptions,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[bool, str], None] | None,
        on_event: Callable[[str, dict[str, Any]], None] | None,
    ) -> None:
        self.options = options
        self.on_messages = on_messages
        self.on_state = on_state
        self.on_event = on_event
        self.acknowledgements = Acknowledgements()
        self.outbound = Outbound(self.finish)
        self.subscriptions = Subscriptions(refuse_lower_qos=options.refuse_lower_qos)
        self.link: Link | None = None
        self.connected = asyncio.Event()
        self.last_error: HedgerowError | None = None
        self.links = 0
        self.received = 0
        self.sent = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.handler_errors = 0
        self.refused = 0
        self.set_aside = 0
        self.lost = 0
        self.password: str | None = None
        self._link_lost_at = 0.0
        self._ended_over: HedgerowError | None = None  # why the broker ended the last link
        self._lowered: set[str] = set()
        self._refusal_logged_at = -_REFUSAL_LOG_INTERVAL_S
        self._client_id = options.client_id
        self._backoff = Backoff(options.url, options.min_backoff_s, options.max_backoff_s)
        self._accepted: asyncio.Future[None] | None = None
        self._resubscriptions: list[asyncio.Future[Refused]] = []
        self._drained: asyncio.Future[None] | None = None
        self._reported_state: tuple[bool, str] = (False, "")
        self._task: asyncio.Task[None] | None = None
        self._renewing: Link | None = None
        self._was_accepted = False  # the last link, by the broker
        self._examined: tuple[str, HedgerowError] | None = None  # a failure, and its explanation
        self._settled = asyncio.Event()

    def start(self) -> None:
        """Connect and stay connected."""
        if self._task is None:
            self._task = tasks.supervise(self._run, "link")

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is resolved when no publish is outstanding."""
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            if not self.outbound:
                self._drained.set_result(None)
        return self._drained

    async def leave(self, last: bytes, reason: str) -> None:
        """Close the link, with `last` as its final packet, and stop reconnecting."""
        task, self._task = self._task, None
        if task is None:
            return
        link = self.link
        try:
            if link is not None:
                link.close(last)
                await link.closed.wait()
        finally:
            self._report_state(False, reason, "")
            await tasks.cancel(task)  # aborts a link that is still up or being opened
            restarts.session_left(self.options.url, id(self))

    async def renew(self) -> None:
        """Replace the link without losing or repeating messages.

        New publishes wait until the broker has acknowledged those in flight, at most `_SETTLE_S`. Acknowledgements are sent
        before the disconnect, and redeliveries of messages still being processed are discarded.
        """
        link = self.link
        if link is None or self._renewing is link:
            return  # the next link reads the files anyway
        self._renewing, self._settled = link, asyncio.Event()
        try:
            if self.outbound.in_flight:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLE_S):
                        await self._settled.wait()
        finally:
            link.close(encode_disconnect())  # even if cancelled: nothing more is published on it
        await link.closed.wait()

    async def _run(self) -> None:
        while True:
            try:
                again = await self._run_link()
            except HedgerowError as error:
                restarts.connection_failed(self.options.url, error.__cause__, time.monotonic())
                self._failed(await self._explained(error))
            except Exception as error:  # whatever happens, reconnect
                log.exception("bus-failed")
                self._failed(BusError(f"Unexpected error: {error!r}", remedy="Report this with the log."))
            else:
                if again:
                    continue
                return
            await self._backoff.pause()

    def _failed(self, error: HedgerowError) -> None:
        self.last_error = error
        self._report_state(False, str(error), error.remedy)

    async def _explained(self, error: HedgerowError) -> HedgerowError:
        """Return a better explanation of a failure, if there is one; repeated failures are examined once."""
        self.last_error = error
        if not isinstance(error, ConnectionFailure) or not error.unclear or self._was_accepted:
            return error
        if self._examined is None or self._examined[0] != str(error):
            self._examined = str(error), await diagnose(self.options) or error
        return self._examined[1]

    async def _run_link(self) -> bool:
        """Open a link and wait until it ends.

        Returns: whether to reconnect at once (renewal); False after `leave`.
        Raises: HedgerowError: why the link failed.
        """
        options = self.options
        accepted = self._accepted = asyncio.get_running_loop().create_future()
        link: Link | None = None
        self._was_accepted = False
        try:
            try:
                async with asyncio.timeout(options.connect_timeout_s):
                    link = await open_transport(
                        options, lambda: Link(self.acknowledgements, options.max_payload_bytes, self)
                    )
                    self.password = options.read_password()
                    if options.may_connect is not None and not options.may_connect():
                        raise BusError(
                            f"Not connecting to {options.url}: another process uses this session now",
                            remedy="None: it connects again when this process may use the session.",
                        )
                    link.send(connect_packet(options, self._client_id, options.clean_start and not self.links))
                    await accepted
            except TimeoutError as error:
                raise unreachable(options.url, error) from error
            self._backoff.link_up()
            for reply in self._resubscriptions:
                for name, reason in (await reply).items():
                    log.error("subscription-refused", filter=name, reason=reason_name(reason))
            if link.usable:
                self.connected.set()
                self._report_state(True, "connected", "")
            await link.closed.wait()
            if asyncio.current_task() is not self._task:  # `leave` was called
                return False
            if link is self._renewing and link.error is None:
                return True
            raise self._cause(link)
        finally:
            accepted.cancel()
            self._backoff.link_down()
            if link is not None:
                link.abort(ConnectionAbortedError("closed by this client"))

    def link_messages(self, messages: list[Message]) -> None:
        """(LinkOwner) Deliver messages."""
        self.received += len(messages)
        try:
            self.on_messages(messages)
        except Exception:
            self.handler_errors += 1
            log.exception("message-handler-failed", messages=len(messages))
        link = self.link
        if link is not None and self._exceeds_receive_maximum() and not self.outbound.unacknowledged:
            # The broker exceeds Receive Maximum (Mosquitto 2.0.11 does after messages have queued up there). Let TCP hold it
            # back, unless it owes us acknowledgements: messages being processed may be waiting for them.
            link.set_reading(False)

    def link_packet(self, link: Link, kind: int, body: bytes) -> None:
        """(LinkOwner) Handle a packet other than PUBLISH. Raises: MalformedPacket."""
        if kind == PUBACK:
            acked = decode_puback(body)
            publish = self.outbound.acked(acked.packet_id)
            if publish is not None:
                reason = acked.reasons[0]
                if reason >= 0x80:
                    self._count_refusal(publish, reason)
                self.finish(publish, None if reason < 0x80 else publish_refused(reason, acked.text))
                link.flush_soon()
            if link is self._renewing and not self.outbound.in_flight:
                self._settled.set()
        elif kind in (SUBACK, UNSUBACK):
            if refused_qos := self.subscriptions.on_ack(decode_suback(body)):
                link.send(self.subscriptions.unsubscribe(refused_qos)[0])
            self._report_lowered()
        elif kind == CONNACK:
            self._accept(link, decode_connack(body))
        elif kind == DISCONNECT:
            reason, text = decode_disconnect(body)
            link.abort(disconnected(self.options.url, reason, text))
        elif kind == PINGRESP:
            self.outbound.answered = True
            if self.outbound.in_doubt:
                link.flush_soon()
        else:
            raise MalformedPacket(f"Unexpected packet of type {kind >> 4} from a broker")

    def link_write(self, link: Link) -> bool:
        """(LinkOwner) Write pending acknowledgements and publishes."""
        if link is not self.link:
            return False
        if ready := self.acknowledgements.take_ready():
            link.put(b"".join(map(encode_puback, ready)))
        if not link.reading and (self.outbound.unacknowledged or not self._exceeds_receive_maximum()):
            link.set_reading(True)
        if link is self._renewing:
            return False
        size = 0
        written: list[Outgoing] = []
        more = True
        while size < _WRITE_BYTES and not link.paused:
            taken = self.outbound.take()
            if taken is None:
                more = False
                break
            head, payload, finished = taken
            link.put(head)
            if payload:
                link.put(payload)
            if finished is not None and finished.done is not None:
                written.append(finished)
            self.sent += 1 if finished is None else finished.messages
            size += len(head) + len(payload)
        if written or self._drained is not None:  # one call for all: an iteration of the event loop each costs more
            asyncio.get_running_loop().call_soon(self._finish_written, written)
        return more and not link.paused  # a paused link flushes again when it resumes

    def link_lost(self, link: Link) -> None:
        """(LinkOwner) Keep the session's state for the next link; QoS 0 publishes fail."""
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_exception(self._cause(link))
        self.bytes_received += link.bytes_received
        self.bytes_sent += link.bytes_sent
        if link is not self.link:
            return
        self._settled.set()
        self.link = None
        self._link_lost_at = time.monotonic()
        restarts.link_ended(self.options.url, id(self), self._link_lost_at)
        self.connected.clear()
        self.acknowledgements.link_lost()
        self.subscriptions.link_lost()
        if ended_by_peer(link.error) and self._task is not None and link is not self._renewing:
            self._ended_over = self._cause(link)
            self.outbound.peer_ended()
        for publish in self.outbound.link_lost():
            self.finish(
                publish,
                BusError(
                    "The link was lost before the message was written", remedy="Wait until connected, or use QoS 1."
                ),
            )

    def _blame(self, cause: HedgerowError, *, session_lost: bool) -> None:
        """Set aside the message over which the broker ended the last link, once that is certain."""
        restarted = session_lost or restarts.restarted(self.options.url, id(self), self._link_lost_at)
        guilty = self.outbound.take_guilty(restarted=restarted)
        if guilty is None:
            return
        self.set_aside += 1
        kept = keep(self.options.set_aside_folder, guilty, cause)
        error = MessageSetAside(cause, kept)
        detail = {"topic": visible(guilty.topic), "error": str(error), "remedy": error.remedy}
        self._report("publish-set-aside", {**detail, "kept_as": None if kept is None else str(kept)})
        self.finish(guilty, error)

    def _accept(self, link: Link, connack: Connack) -> None:
        # Not in the task: messages of the session may follow in the same read.
        if self._accepted is None or self._accepted.done():
            raise MalformedPacket("Second CONNACK")
        if connack.reason >= 0x80:
            text = connack.properties.get(Property.REASON_STRING, "")
            options = self.options
            link.abort(refused(options.url, connack.reason, text, options.username, self._client_id))
            return
        if connack.reason:
            raise MalformedPacket(f"CONNACK with return code {connack.reason} of MQTT 3.1.1")
        properties = connack.properties
        if properties.get(Property.MAXIMUM_QOS) == 0 and not self.options.qos_0_is_enough:
            link.abort(no_qos(self.options.url))
            return
        if not connack.session_present:
            self._session_lost(properties.get(Property.SESSION_EXPIRY, self.options.session_expiry_s))
        if not self.links:
            self.options.mark_session()
        cause, self._ended_over = self._ended_over, None
        if cause is not None:
            lost = not connack.session_present and self.options.session_expiry_s > 0
            self._blame(cause, session_lost=lost)
        self.outbound.link_up(
            session_present=connack.session_present,
            receive_maximum=properties.get(Property.RECEIVE_MAXIMUM, 65_535),
            max_packet_bytes=properties.get(Property.MAXIMUM_PACKET_SIZE, MAX_PACKET_BYTES),
        )
        self._client_id = properties.get(Property.ASSIGNED_CLIENT_ID, self._client_id)
        self.link = link
        self.links += 1
        restarts.link_up(self.options.url, id(self), time.monotonic())
        requests = (
            self.subscriptions.reconcile()
        )  # before anything is published: this client may subscribe to its own messages
        self._resubscriptions = [reply for _, reply in requests]
        for packet, _ in requests:
            link.send(packet)
        if self.outbound.in_doubt:
            link.send(PINGREQ_PACKET)
        link.keep_alive(properties.get(Property.SERVER_KEEPALIVE, self.options.keepalive_s))
        link.flush_soon()
        self._was_accepted, self._examined = True, None
        self._accepted.set_result(None)

    def _session_lost(self, kept_s: int) -> None:
        """Start without the earlier session, and report it if there should be one."""
        self.acknowledgements.session_lost()
        filters = self.subscriptions.session_lost()
        away_s = time.monotonic() - self._link_lost_at if self.links else None
        if away_s is None and self.options.session_marked():
            filters = [name for name, qos in self.subscriptions.requested.items() if qos]
        if not filters or not self.options.session_expiry_s:  # nothing waited at the broker
            return
        self.lost += 1
        error = session_lost(self.options.url, away_s, kept_s)
        self._report("session-lost", {"filters": filters, "error": str(error), "remedy": error.remedy})

    def _report_lowered(self) -> None:
        lowered = self.subscriptions.lowered
        if new := lowered.keys() - self._lowered:
            error = qos_lowered({name: lowered[name] for name in sorted(new)})
            self._report("qos-lowered", {"filters": sorted(new), "error": str(error), "remedy": error.remedy})
        self._lowered = set(lowered)

    def _report(self, kind: str, detail: dict[str, Any]) -> None:
        if self.on_event is None:
            log.warning(kind, url=self.options.url, **detail)
            return
        try:
            self.on_event(kind, detail)
        except Exception:
            log.exception("event-handler-failed")

    def _count_refusal(self, publish: Outgoing, reason: int) -> None:
        self.refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._refusal_logged_at >= _REFUSAL_LOG_INTERVAL_S:
            self._refusal_logged_at = now
            log.warning("publish-refused", topic=publish.topic, reason=reason_name(reason), refused=self.refused)

    def _exceeds_receive_maximum(self) -> bool:
        return self.acknowledgements.on_link > self.options.receive_maximum

    def _cause(self, link: Link) -> HedgerowError:
        """Return why a link ended; a transport may end without an error."""
        error = link.error or ConnectionResetError("the broker closed the connection")
        if isinstance(error, MalformedPacket):
            return malformed(self.options.url, error)
        return error if isinstance(error, HedgerowError) else unreachable(self.options.url, error)

    def _report_state(self, connected: bool, reason: str, remedy: str) -> None:
        if (connected, reason) == self._reported_state:
            return
        self._reported_state = (connected, reason)
        if connected:
            log.info("broker-connected", url=self.options.url)
        elif remedy:
            log.warning("broker-disconnected", url=self.options.url, reason=reason, remedy=remedy)
        else:
            log.info("broker-left", url=self.options.url, reason=reason)
        if self.on_state is not None:
            try:
                self.on_state(connected, reason)
            except Exception:
                log.exception("state-handler-failed")

    def finish_soon(self, publish: Outgoing, error: Exception | None) -> None:
        """Call a publish's callback in the next iteration of the event loop."""
        asyncio.get_running_loop().call_soon(self.finish, publish, error)

    def _finish_written(self, written: list[Outgoing]) -> None:
        for publish in written:
            self.finish(publish, None)
        self._resolve_drained()

    def finish(self, publish: Outgoing, error: Exception | None) -> None:
        """Call a publish's callback with its outcome."""
        if publish.done is not None:
            try:
                publish.done(error)
            except Exception:
                log.exception("publish-callback-failed")
        self._resolve_drained()

    def _resolve_drained(self) -> None:
        if self._drained is not None and not self.outbound:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
