"""A session with a broker, kept up over one link after the other.

Rules:
- The session survives its links: acknowledgements owed, publishes and subscriptions live here, a `Link` only carries.
- Connecting is tried for ever, at growing intervals. A cause of failure is said once, not once a try.
- What belongs to the session happens in the very call that brings CONNACK or the end of a link, never later in a task:
  messages may follow in the same read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.backoff import Backoff
from hedgerow.bus.causes import publish_refused, refused, unreachable
from hedgerow.bus.connect import ClientOptions, open_transport
from hedgerow.bus.link import Link
from hedgerow.bus.message import Message
from hedgerow.bus.outgoing import Outbound, Outgoing
from hedgerow.bus.packets import (
    CONNACK,
    DISCONNECT,
    MAX_PACKET_BYTES,
    PINGRESP,
    PUBACK,
    SUBACK,
    UNSUBACK,
    Connack,
    decode_connack,
    decode_disconnect,
    decode_puback,
    decode_suback,
    encode_connect,
    encode_disconnect,
    encode_puback,
    reason_name,
)
from hedgerow.bus.properties import MalformedPacket, Property, encode_properties
from hedgerow.bus.subscriptions import Refused, Subscriptions
from hedgerow.errors import BusError, HedgerowError

log: Final = structlog.get_logger(__name__)

_SETTLE_S: Final = 5.0
"""How long a link that is renewed waits for the broker's acknowledgements."""

_TELL_REFUSALS_S: Final = 60.0
"""A publish that is refused is logged no more often than this; all are counted."""

_WRITE_BYTES: Final = 256 * 1024  # in one turn of the loop


class MqttSession:
    """What outlives a link, and the task that keeps links coming. It is the owner of its links (`link.Owner`).

    Args:
        on_messages, on_state: as for `Client`.
    Attributes:
        link: the link, once the broker has accepted us on it.
        connected: set while the link is up and the subscriptions are made.
        last_error: why there was no link the last time there was none.
        links: links that came up so far.
        received, sent, bytes_received, bytes_sent: over all links that have ended; messages also of this one.
        handler_errors: times `on_messages` raised.
        refused: publishes that the broker refused.
    """

    def __init__(
        self,
        options: ClientOptions,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[bool, str], None] | None,
    ) -> None:
        self.options = options
        self.on_messages = on_messages
        self.on_state = on_state
        self.acknowledgements = Acknowledgements()
        self.outbound = Outbound(self.tell)
        self.subscriptions = Subscriptions()
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
        self._refusal_told_at = -_TELL_REFUSALS_S
        self._client_id = options.client_id
        self._backoff = Backoff(options.url, options.min_backoff_s, options.max_backoff_s)
        self._accepted: asyncio.Future[None] | None = None
        self._renewals: list[asyncio.Future[Refused]] = []
        self._drained: asyncio.Future[None] | None = None
        self._said: tuple[bool, str] = (False, "")
        self._task: asyncio.Task[None] | None = None
        self._renewing: Link | None = None
        self._settled = asyncio.Event()

    def start(self) -> None:
        """Connect and stay connected."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"bus {self.options.url}")

    def drained(self) -> asyncio.Future[None]:
        """Done when no publish is outstanding any more."""
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            if not self.outbound:
                self._drained.set_result(None)
        return self._drained

    async def leave(self, last: bytes, why: str) -> None:
        """End the link, with `last` as its last bytes, and make no new one."""
        task, self._task = self._task, None
        if task is None:
            return
        link = self.link
        if link is not None:
            link.close(last)
            await link.closed.wait()
        task.cancel()  # it aborts a link that is still there, or still being made
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._say(False, why, "")

    async def renew(self) -> None:
        """Make a new link in the place of the present one, in good order.

        No publish is begun until the broker has acknowledged those under way, as far as that takes no longer than
        `_SETTLE_S`; what we acknowledge goes out before we leave; and frames still with us are known when they come again.
        """
        link = self.link
        if link is None or self._renewing is link:
            return  # the next one is made with the files of then
        self._renewing, self._settled = link, asyncio.Event()
        if self.outbound.under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), _SETTLE_S)
        link.close(encode_disconnect())
        await link.closed.wait()

    async def _run(self) -> None:
        while True:
            try:
                again = await self._live()
            except HedgerowError as error:
                self._failed(error)
            except Exception as error:  # the link must come back whatever happens
                log.exception("bus-failed")
                self._failed(BusError(f"Unexpected: {error!r}", remedy="Report this with the log around it."))
            else:
                if again:
                    continue
                return
            await self._backoff.pause()

    def _failed(self, error: HedgerowError) -> None:
        self.last_error = error
        self._say(False, str(error), error.remedy)

    async def _live(self) -> bool:
        """Open a link and stay until it ends.

        Returns: whether to make another at once; not if we left.
        Raises: HedgerowError: it failed, and why.
        """
        options = self.options
        accepted = self._accepted = asyncio.get_running_loop().create_future()
        link: Link | None = None
        try:
            try:
                async with asyncio.timeout(options.connect_timeout_s):
                    link = await open_transport(
                        options, lambda: Link(self.acknowledgements, options.max_payload_bytes, self)
                    )
                    link.send(self._connect_packet())
                    await accepted
            except TimeoutError as error:
                raise unreachable(options.url, error) from error
            self._backoff.link_up()
            for renewal in self._renewals:
                for name, reason in (await renewal).items():
                    log.error("subscription-refused", filter=name, reason=reason_name(reason))
            if link.usable:
                self.connected.set()
                self._say(True, "connected", "")
            await link.closed.wait()
            if asyncio.current_task() is not self._task:  # somebody has called `leave`
                return False
            if link is self._renewing and link.error is None:
                return True
            raise self._cause(link)
        finally:
            accepted.cancel()
            self._backoff.link_down()
            if link is not None:
                link.abort(ConnectionAbortedError("we left"))

    def _connect_packet(self) -> bytes:
        options = self.options
        properties: dict[Property, int] = {Property.RECEIVE_MAXIMUM: options.receive_maximum}
        if options.session_expiry_s:
            properties[Property.SESSION_EXPIRY] = options.session_expiry_s
        return encode_connect(
            client_id=self._client_id,
            clean_start=options.clean_start and not self.links,
            keepalive_s=options.keepalive_s,
            properties=encode_properties(properties),
            will=options.will,
            username=options.username,
            password=options.password,
        )

    def link_messages(self, messages: list[Message]) -> None:
        """(link.Owner) Hand messages over."""
        self.received += len(messages)
        try:
            self.on_messages(messages)
        except Exception:
            self.handler_errors += 1
            log.exception("message-handler-failed", messages=len(messages))
        link = self.link
        if link is not None and self._too_many() and not self.outbound.unacknowledged:
            # The broker sends more than was agreed (Mosquitto 2.0.11 does, once messages have queued up there).
            # Let TCP hold it back, unless it owes us acknowledgements, for which messages here may be waiting.
            link.read(False)

    def link_packet(self, link: Link, kind: int, body: bytes) -> None:
        """(link.Owner) Another packet came. Raises: MalformedPacket."""
        if kind == PUBACK:
            acked = decode_puback(body)
            publish = self.outbound.acked(acked.packet_id)
            if publish is not None:
                reason = acked.reasons[0]
                if reason >= 0x80:
                    self._note_refusal(publish, reason)
                self.tell(publish, None if reason < 0x80 else publish_refused(reason, acked.text))
                link.flush_soon()
            if link is self._renewing and not self.outbound.under_way:
                self._settled.set()
        elif kind in (SUBACK, UNSUBACK):
            self.subscriptions.answered(decode_suback(body))
        elif kind == CONNACK:
            self._accept(link, decode_connack(body))
        elif kind == DISCONNECT:
            reason, text = decode_disconnect(body)
            link.abort(refused(self.options.url, reason, text))
        elif kind != PINGRESP:
            raise MalformedPacket(f"A broker may not send a packet of type {kind >> 4}")

    def link_write(self, link: Link) -> bool:
        """(link.Owner) Put what waits into this turn's write."""
        if link is not self.link:
            return False
        if ready := self.acknowledgements.take_ready():
            link.put(b"".join(map(encode_puback, ready)))
        if not link.reading and (self.outbound.unacknowledged or not self._too_many()):
            link.read(True)
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
            self.sent += 1
            size += len(head) + len(payload)
        if (
            written or self._drained is not None
        ):  # one call for all of them: a turn of the loop each costs more than the telling
            asyncio.get_running_loop().call_soon(self._tell_written, written)
        return more and not link.paused  # if it is, it asks again when it takes more

    def link_lost(self, link: Link) -> None:
        """(link.Owner) The link has ended."""
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_exception(self._cause(link))
        self.bytes_received += link.bytes_received
        self.bytes_sent += link.bytes_sent
        if link is not self.link:
            return
        self._settled.set()
        self.link = None
        self.connected.clear()
        self.acknowledgements.link_lost()
        self.subscriptions.link_lost()
        for publish in self.outbound.link_lost():
            self.tell(publish, BusError("The link was lost first", remedy="Wait for the link, or use QoS 1."))

    def _accept(self, link: Link, connack: Connack) -> None:
        # At once, not in the task: messages of the session may follow in the same read.
        if self._accepted is None or self._accepted.done():
            raise MalformedPacket("A second CONNACK came")
        if connack.reason >= 0x80:
            text = connack.properties.get(Property.REASON_STRING, "")
            link.abort(refused(self.options.url, connack.reason, text))
            return
        properties = connack.properties
        if not connack.session_present:
            self.acknowledgements.session_lost()
            self.subscriptions.session_lost()
        self.outbound.link_up(
            session_present=connack.session_present,
            receive_maximum=properties.get(Property.RECEIVE_MAXIMUM, 65_535),
            max_packet_bytes=properties.get(Property.MAXIMUM_PACKET_SIZE, MAX_PACKET_BYTES),
        )
        self._client_id = properties.get(Property.ASSIGNED_CLIENT_ID, self._client_id)
        self.link = link
        self.links += 1
        renewals = self.subscriptions.renew()  # before anything is published: it may be for ourselves
        self._renewals = [answer for _, answer in renewals]
        for packet, _ in renewals:
            link.send(packet)
        link.keep_alive(properties.get(Property.SERVER_KEEPALIVE, self.options.keepalive_s))
        link.flush_soon()
        self._accepted.set_result(None)

    def _note_refusal(self, publish: Outgoing, reason: int) -> None:
        self.refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._refusal_told_at >= _TELL_REFUSALS_S:
            self._refusal_told_at = now
            log.warning("publish-refused", topic=publish.topic, reason=reason_name(reason), refused=self.refused)

    def _too_many(self) -> bool:
        return self.acknowledgements.on_link > self.options.receive_maximum

    def _cause(self, link: Link) -> HedgerowError:
        """Why a link ended that we did not leave; a transport may end without a reason."""
        error = link.error or ConnectionResetError("the broker closed the connection")
        return error if isinstance(error, HedgerowError) else unreachable(self.options.url, error)

    def _say(self, connected: bool, reason: str, remedy: str) -> None:
        if (connected, reason) == self._said:
            return
        self._said = (connected, reason)
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

    def later(self, publish: Outgoing, error: Exception | None) -> None:
        """Tell who published, but not in this call."""
        asyncio.get_running_loop().call_soon(self.tell, publish, error)

    def _tell_written(self, written: list[Outgoing]) -> None:
        for publish in written:
            self.tell(publish, None)
        self._tell_drained()

    def tell(self, publish: Outgoing, error: Exception | None) -> None:
        """Tell who published what came of it."""
        if publish.done is not None:
            try:
                publish.done(error)
            except Exception:
                log.exception("publish-callback-failed")
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._drained is not None and not self.outbound:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
