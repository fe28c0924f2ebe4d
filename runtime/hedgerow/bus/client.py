"""MQTT 5 client with batched delivery, coalesced writes and manual acknowledgement.

    async with Client(options, on_messages) as client:
        await client.subscribe({"plant/+/image": 1})

Rules:
- `async with` starts and closes the client. It connects in the background and reconnects indefinitely, whether or not the
  broker is up at the start; subscriptions and QoS 1 publishes survive reconnects.
- Call everything on the event loop's thread. `on_messages` gets all messages of one read; it must not block.
- Call `ack` on a QoS 1 message when its result is safe. QoS 2 is never requested.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from hedgerow.bus.causes import bad_topic, packet_too_large, subscription_refused, unreachable
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.outgoing import Done, Outgoing, joined
from hedgerow.bus.packets import MAX_PACKET_BYTES, encode_disconnect, encode_publish_head, reason_name, session_expiry
from hedgerow.bus.session import MqttSession
from hedgerow.bus.subscriptions import Refused
from hedgerow.errors import BusError
from hedgerow.topics import check_filter

_JOINED_BYTES: Final = 16 * 1024
"""Bytes of a packet above which it is not joined to others, which copies it."""
_ANSWER_S: Final = 10.0
"""Longest wait for the answer to a subscription. Keep-alive notices a silent broker, but later than a node may take to stop."""


class Client:
    """A connection to one broker that reconnects by itself.

    Args:
        options: where and how to connect.
        on_messages: called with the messages of one read, in order, at least one.
        on_state: called when the link comes up or goes down, with the reason.
        on_event: called with what may have cost messages, kind and detail: `session-lost`, `qos-lowered`, `publish-set-aside`;
            None: logged.
    """

    def __init__(
        self,
        options: ClientOptions,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[bool, str], None] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.options = options
        self._session = MqttSession(options, on_messages, on_state, on_event)

    async def __aenter__(self) -> Self:
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the link is up and the subscriptions are in place."""
        return self._session.connected.is_set()

    @property
    def refused(self) -> Mapping[str, str]:
        """Requested subscriptions that the broker refused last time: reason by topic filter.

        They are requested again on every new link.
        """
        return {name: reason_name(reason) for name, reason in self._session.subscriptions.refused.items()}

    @property
    def local_address(self) -> str:
        """The IP address of this machine on the link; "" without a link, or if it has none."""
        return "" if self._session.link is None else self._session.link.local_address

    @property
    def lowered(self) -> Mapping[str, int]:
        """Subscriptions that the broker granted with a lower QoS than requested: that QoS by topic filter."""
        return self._session.subscriptions.lowered

    @property
    def sessions_lost(self) -> int:
        """Times the broker had forgotten the session, and with it the QoS 1 messages that waited there."""
        return self._session.lost

    @property
    def refused_publishes(self) -> int:
        """QoS 1 publishes that the broker refused; for QoS 0 it does not report refusals."""
        return self._session.refused

    @property
    def set_aside(self) -> int:
        """QoS 1 publishes that are not sent any more, because the broker ended the link over each of them."""
        return self._session.set_aside

    @property
    def outstanding(self) -> int:
        """Publishes not yet acknowledged (QoS 1) or written (QoS 0)."""
        return len(self._session.outbound)

    @property
    def outstanding_bytes(self) -> int:
        """Payload bytes of outstanding publishes."""
        return self._session.outbound.payload_bytes

    @property
    def max_packet_bytes(self) -> int:
        """The broker's Maximum Packet Size, in bytes."""
        return self._session.outbound.max_packet_bytes

    @property
    def password_changed(self) -> bool:
        """Whether the password file has another password than the one this client used.

        Raises: ConfigError: the file cannot be read.
        """
        return self.options.password_file is not None and self.options.read_password() != self._session.password

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages received and not yet acknowledged."""
        return len(self._session.acknowledgements)

    @property
    def received(self) -> int:
        """Messages received so far."""
        return self._session.received

    @property
    def sent(self) -> int:
        """Messages written so far; retransmissions count too."""
        return self._session.sent

    @property
    def bytes_received(self) -> int:
        """Bytes received on all links so far."""
        link = self._session.link
        return self._session.bytes_received + (link.bytes_received if link else 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes sent on all links so far."""
        link = self._session.link
        return self._session.bytes_sent + (link.bytes_sent if link else 0)

    @property
    def reconnects(self) -> int:
        """Connections made after the first one."""
        return max(0, self._session.links - 1)

    @property
    def redelivered(self) -> int:
        """Redeliveries discarded because the message was still being processed."""
        return self._session.acknowledgements.redelivered

    @property
    def handler_errors(self) -> int:
        """Times `on_messages` raised."""
        return self._session.handler_errors

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the link is up and the subscriptions are in place.

        Raises: BusError: it took longer than `timeout_s`; the error is that of the last attempt.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._session.connected.wait()
        except TimeoutError as error:
            if self._session.last_error is not None:
                raise self._session.last_error from error
            raise unreachable(self.options.url, error) from error

    async def subscribe(self, filters: Mapping[str, int]) -> None:
        """Subscribe for the lifetime of the client. Without a link, the subscription is made on the next one.

        A broker that does not answer is waited for some seconds only: keep-alive will end the link, and the next one subscribes
        again.

        Args:
            filters: maximum QoS (0 or 1) by topic filter.
        Raises:
            ConfigError: a topic filter is invalid.
            BusError: the broker refuses; refused filters are dropped.
        """
        for name in filters:
            check_filter(name)
        self._session.subscriptions.requested.update(filters)
        if self._session.link is None or not filters:
            return
        packet, reply = self._session.subscriptions.subscribe(dict(filters))
        self._session.link.send(packet)
        refused = await _answer(reply)
        for name in refused:
            self._session.subscriptions.remove(name)
        if refused:
            raise subscription_refused(refused)

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe. Without a link, it is done on the next one."""
        names = list(filters)
        for name in names:
            self._session.subscriptions.remove(name)
        if self._session.link is not None and names:
            packet, reply = self._session.subscriptions.unsubscribe(names)
            self._session.link.send(packet)
            await _answer(reply)

    def ack(self, message: Message) -> None:
        """Acknowledge a message. Idempotent; does nothing for QoS 0.

        The acknowledgement is sent after those of all earlier messages. For a message of an earlier link it is sent once
        the broker has redelivered the message; if the session was lost meanwhile, never.
        """
        unacked = message.unacked
        if unacked is None or unacked.done:
            return
        unacked.done = True
        if self._session.link is not None and self._session.acknowledgements.ready:
            self._session.link.flush_soon()

    def publish(
        self,
        topic: str,
        payload: bytes | memoryview,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: bytes = b"",
        done: Done | None = None,
    ) -> None:
        """Publish without published.

        A QoS 1 message is retained until the broker acknowledges it, across lost links and sessions. A QoS 0 message
        fails if there is no link.

        Args:
            payload: must not change until `done` is called.
            qos: 0 or 1.
            properties: encoded by `encode_properties`.
            done: called once, after this call returns: with None when the broker has acknowledged the message (QoS 1) or
                it was written (QoS 0), else with the error.
        Raises: BusError: the topic is invalid, or the message exceeds MQTT's largest packet.
        """
        if isinstance(payload, memoryview):
            payload = payload.cast("B")  # so that len() counts bytes
        publish = Outgoing(_head(topic, payload, qos=qos, retain=retain, properties=properties), payload, done)
        link = self._session.link
        if not qos and link is None:
            self._session.finish_soon(
                publish, BusError(f"Not connected to {self.options.url}", remedy="Wait until connected, or use QoS 1.")
            )
        else:
            self._session.outbound.add(publish)
            if link is not None:
                link.flush_soon()

    def publish_all(self, topic: str, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Publish QoS 0 messages to one topic, in order and in one write. Without a link they are lost.

        Args:
            messages: payload and encoded properties of each.
        Raises: BusError: the topic is invalid, or a message exceeds MQTT's largest packet; none is published.
        """
        heads = [_head(topic, payload, qos=0, retain=False, properties=properties) for payload, properties in messages]
        link, outbound = self._session.link, self._session.outbound
        if link is None:
            return
        payloads = [payload for payload, _ in messages]
        # On a link that is up each fits as far as the broker's limit goes, and what is not written by its end is lost with it.
        if self.connected and max(map(len, heads)) + max(map(len, payloads)) <= min(
            outbound.max_packet_bytes, _JOINED_BYTES
        ):
            outbound.add(joined(heads, payloads))
        else:
            for head, payload in zip(heads, payloads, strict=True):
                outbound.add(Outgoing(head, payload, None))
        link.flush_soon()

    async def publish_and_wait(
        self, topic: str, payload: bytes | memoryview, *, qos: int = 1, retain: bool = False, properties: bytes = b""
    ) -> None:
        """Publish and wait until the broker has acknowledged it (QoS 1) or it is written (QoS 0).

        Raises: BusError: it cannot be published, or the broker refuses it.
        """
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: Exception | None) -> None:
            if published.done():
                return
            if error is None:
                published.set_result(None)
            else:
                published.set_exception(error)

        self.publish(topic, payload, qos=qos, retain=retain, properties=properties, done=done)
        await published

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until no publish is outstanding.

        Raises: BusError: it took longer than `timeout_s`.
        """
        if not self.outstanding:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._session.drained())
        except TimeoutError as error:
            raise BusError(
                f"{self.options.url} has not acknowledged {self.outstanding} messages after {timeout_s} s",
                remedy="Check that the broker is up and keeps up.",
            ) from error

    async def pause(self) -> None:
        """Disconnect but keep the session: QoS 1 messages wait at the broker until `resume`."""
        await self._session.leave(encode_disconnect(0, self._kept()), "paused")

    async def renew(self) -> None:
        """Reconnect with the certificate and password files as they are now, keeping the session. Does nothing without a connection."""
        await self._session.renew()

    async def keep_session_after_crash(self) -> None:
        """From now on, let the broker keep the session for `session_expiry_s` after a crash too. Reconnects, losing nothing."""
        self.options = self._session.options = replace(self.options, crash_expiry_s=None)
        await self.renew()

    def resume(self) -> None:
        """Connect, or reconnect after `pause`."""
        self._session.start()

    async def close(self, *, send_will: bool = False, forget_session: bool = False, timeout_s: float = 5.0) -> None:
        """Disconnect for good, after sending pending acknowledgements and publishes.

        Args:
            send_will: let the broker publish the will.
            forget_session: let the broker drop subscriptions and queued messages.
            timeout_s: longest wait for outstanding publishes.
        """
        last = encode_disconnect(0x04 if send_will else 0, session_expiry(0) if forget_session else self._kept())
        try:
            if self._session.link is not None:
                with contextlib.suppress(BusError):
                    await self.flush(timeout_s)
        finally:  # even if cancelled
            if forget_session:
                self.options.unmark_session()
            try:
                await self._session.leave(last, "closed")
            finally:
                self._fail_outstanding()

    def _kept(self) -> bytes:
        return b"" if self.options.crash_expiry_s is None else session_expiry(self.options.session_expiry_s)

    def _fail_outstanding(self) -> None:
        for publish in self._session.outbound.clear():
            self._session.finish(
                publish,
                BusError(
                    "The client was closed before the broker acknowledged the message",
                    remedy="Publish it again when connected.",
                ),
            )


def _head(topic: str, payload: bytes | memoryview, *, qos: int, retain: bool, properties: bytes) -> bytes:
    if not topic or "+" in topic or "#" in topic:
        raise bad_topic(topic, "it is empty or contains a wildcard")
    try:
        return encode_publish_head(topic, len(payload), qos=qos, retain=retain, properties=properties)
    except ValueError as error:
        raise bad_topic(topic, str(error)) from error
    except OverflowError as error:
        raise packet_too_large(len(payload), MAX_PACKET_BYTES) from error


async def _answer(reply: asyncio.Future[Refused]) -> Refused:
    """Return what the broker refuses; nothing if it does not answer in time."""
    answered, _ = await asyncio.wait({reply}, timeout=_ANSWER_S)
    return reply.result() if answered else {}
