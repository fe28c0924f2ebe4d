"""The MQTT 5 client of the data path: batches in, coalesced writes out, acknowledgement in the hands of the caller.

    async with Client(options, on_messages) as client:
        await client.subscribe({"plant/+/image": 1})

Rules:
- The client lives as long as its `async with`. It connects by itself, also when the broker is not there yet, and comes
  back for ever; subscriptions and QoS 1 publishes survive that.
- Everything is called on the event loop's thread. `on_messages` gets all that came with one read; it must not block.
- A QoS 1 message is acknowledged by `ack`, when its result is safe. QoS 2 is never asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from hedgerow.bus.causes import bad_topic, packet_too_large, subscription_refused, unreachable
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.outgoing import Done, Outgoing
from hedgerow.bus.packets import MAX_PACKET_BYTES, encode_disconnect, encode_publish_head, reason_name, session_expiry
from hedgerow.bus.session import MqttSession
from hedgerow.errors import BusError
from hedgerow.topics import check_filter


class Client:
    """A connection to one broker that keeps itself up.

    Args:
        options: where and how to connect.
        on_messages: gets the messages of one read, in order, at least one.
        on_state: is told when the link comes up or goes down, and why.
    """

    def __init__(
        self,
        options: ClientOptions,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[bool, str], None] | None = None,
    ) -> None:
        self.options = options
        self._session = MqttSession(options, on_messages, on_state)

    async def __aenter__(self) -> Self:
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the link is up and the subscriptions are made."""
        return self._session.connected.is_set()

    @property
    def refused(self) -> Mapping[str, str]:
        """Subscriptions that are wanted and that the broker refused when last asked: the reason, by topic filter.

        They are asked for again with every new link.
        """
        return {name: reason_name(reason) for name, reason in self._session.subscriptions.refused.items()}

    @property
    def refused_publishes(self) -> int:
        """QoS 1 messages that the broker did not take; of QoS 0 it does not say."""
        return self._session.refused

    @property
    def outstanding(self) -> int:
        """Publishes not yet acknowledged (QoS 1) or written (QoS 0)."""
        return len(self._session.outbound)

    @property
    def outstanding_bytes(self) -> int:
        """Payload bytes of those."""
        return self._session.outbound.payload_bytes

    @property
    def max_packet_bytes(self) -> int:
        """Bytes a packet to this broker may have."""
        return self._session.outbound.max_packet_bytes

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages handed over and not yet acknowledged."""
        return len(self._session.acknowledgements)

    @property
    def received(self) -> int:
        """Messages handed over so far."""
        return self._session.received

    @property
    def sent(self) -> int:
        """Messages written so far; one that was sent again counts again."""
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
        """Links that came up after the first one."""
        return max(0, self._session.links - 1)

    @property
    def redelivered(self) -> int:
        """Messages that came again while still with us, and were swallowed."""
        return self._session.acknowledgements.redelivered

    @property
    def handler_errors(self) -> int:
        """Times `on_messages` raised."""
        return self._session.handler_errors

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the link is up and the subscriptions are made.

        Raises: BusError: it took longer than `timeout_s`; the message says what stood in the way last.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._session.connected.wait()
        except TimeoutError as error:
            if self._session.last_error is not None:
                raise self._session.last_error from error
            raise unreachable(self.options.url, error) from error

    async def subscribe(self, filters: Mapping[str, int]) -> None:
        """Subscribe, for as long as the client lives. While there is no link it is remembered and done later.

        Args:
            filters: maximum QoS (0 or 1) by topic filter.
        Raises:
            ConfigError: a filter is not one.
            BusError: the broker refuses; refused filters are forgotten.
        """
        for name in filters:
            check_filter(name)
        self._session.subscriptions.wanted.update(filters)
        if self._session.link is None or not filters:
            return
        packet, answer = self._session.subscriptions.subscribe(dict(filters))
        self._session.link.send(packet)
        refused = await answer
        for name in refused:
            self._session.subscriptions.forget(name)
        if refused:
            raise subscription_refused(refused)

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """End subscriptions. While there is no link it is remembered and done later."""
        names = list(filters)
        for name in names:
            self._session.subscriptions.forget(name)
        if self._session.link is not None and names:
            packet, answer = self._session.subscriptions.unsubscribe(names)
            self._session.link.send(packet)
            await answer

    def ack(self, message: Message) -> None:
        """Acknowledge a message: its result is safe. Does nothing for QoS 0, and nothing the second time.

        The acknowledgement leaves when those of all earlier messages may leave. For a message of an earlier link it
        leaves when the broker has sent the message again; if the session was lost meanwhile, never.
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
        """Publish, without waiting.

        QoS 1 is kept until the broker has acknowledged it, over lost links and sessions. QoS 0 fails while there is
        no link.

        Args:
            payload: not to be changed until `done`.
            qos: 0 or 1.
            properties: encoded by `encode_properties`.
            done: called once, later: with None when the broker has acknowledged it (QoS 1) or it was written (QoS 0),
                else with the error.
        Raises: BusError: the topic cannot be published to, or the message is larger than any packet.
        """
        if not topic or "+" in topic or "#" in topic:
            raise bad_topic(topic, "it is empty or holds a wildcard")
        if isinstance(payload, memoryview):
            payload = payload.cast("B")  # its length shall be in bytes, whatever it is a view of
        try:
            head = encode_publish_head(topic, len(payload), qos=qos, retain=retain, properties=properties)
        except ValueError as error:
            raise bad_topic(topic, str(error)) from error
        except OverflowError as error:
            raise packet_too_large(len(payload), MAX_PACKET_BYTES) from error
        publish = Outgoing(head, payload, done)
        link = self._session.link
        if not qos and link is None:
            self._session.later(
                publish, BusError(f"Not connected to {self.options.url}", remedy="Wait for the link, or use QoS 1.")
            )
        else:
            self._session.outbound.add(publish)
            if link is not None:
                link.flush_soon()

    async def publish_and_wait(
        self, topic: str, payload: bytes | memoryview, *, qos: int = 1, retain: bool = False, properties: bytes = b""
    ) -> None:
        """Publish and wait until the broker has it (QoS 1) or it is written (QoS 0).

        Raises: BusError: it cannot be published, or the broker refuses it.
        """
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: Exception | None) -> None:
            if waiting.done():
                return
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)

        self.publish(topic, payload, qos=qos, retain=retain, properties=properties, done=done)
        await waiting

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is outstanding.

        Raises: BusError: it took longer than `timeout_s`.
        """
        if not self.outstanding:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._session.drained())
        except TimeoutError as error:
            raise BusError(
                f"{self.outstanding} messages are not acknowledged by {self.options.url} after {timeout_s} s",
                remedy="Check that the broker is up and keeps pace.",
            ) from error

    async def pause(self) -> None:
        """Leave the broker but keep the session: QoS 1 messages wait there until `resume`."""
        await self._session.leave(encode_disconnect(), "paused")

    async def renew(self) -> None:
        """Make a new connection in the place of the present one, with certificate files as they are now.

        The session goes on. Does nothing while there is no connection.
        """
        await self._session.renew()

    def resume(self) -> None:
        """Come back after `pause`."""
        self._session.start()

    async def close(self, *, send_will: bool = False, forget_session: bool = False, timeout_s: float = 5.0) -> None:
        """Leave for good: pending acknowledgements and publishes go out first, as far as the time allows.

        Args:
            send_will: have the broker publish the will all the same.
            forget_session: have the broker drop subscriptions and queued messages.
            timeout_s: longest time for what is outstanding.
        """
        if self._session.link is not None:
            with contextlib.suppress(BusError):
                await self.flush(timeout_s)
        last = encode_disconnect(0x04 if send_will else 0, session_expiry(0) if forget_session else b"")
        await self._session.leave(last, "closed")
        for publish in self._session.outbound.clear():
            self._session.tell(
                publish, BusError("The client was closed first", remedy="Publish it again when connected.")
            )
