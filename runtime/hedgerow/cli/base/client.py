"""MQTT client of the command-line tools: aiomqtt, with what it leaves out, and the properties of its messages."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.bus.connect import WEBSOCKET_PATH, parse_broker_url, tls_context
from hedgerow.cli.base.console import size
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError
from hedgerow.node.link.options import link_options

_LOG: Final = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # paho would print on stderr what our errors say

T = TypeVar("T")


class Connection(aiomqtt.Client):
    """An aiomqtt client that counts reason codes and notices at once when the broker closes the connection.

    Attributes:
        reasons: acknowledgements received, by reason code (MQTT 5 §3.4.2.1).
        limits: properties of the broker's CONNACK (MQTT 5 §3.2.2.3); None before it arrived.
        session_present: whether the broker had a session of this client.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reasons: Counter[int] = Counter()
        self.limits: Properties | None = None
        self.session_present = False
        self._abandoned = False
        for future in (self._connected, self._disconnected):  # asyncio reports errors that nobody looked at
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.limits = properties
        self.session_present = bool(getattr(flags, "session_present", False))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    # aiomqtt treats a refusal ("not authorized") as an acknowledgement like any other; a tool must not.
    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        self.reasons[reason_code.value] += 1
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def send(self, topic: str, payload: bytes, *, qos: int, properties: Properties) -> None:
        """Publish and, with QoS 1, wait for the acknowledgement.

        Raises:
            MqttError: no acknowledgement arrives, or the broker closes the connection.
            BusError: the message exceeds the broker's packet size.
        """
        limit = getattr(self.limits, "MaximumPacketSize", None)
        if limit is not None and len(payload) > limit:  # the broker would close the connection without a reason
            raise BusError(
                f"A message of {size(len(payload))} exceeds the broker's limit of {size(limit)}",
                remedy="Send smaller messages, or raise `max_packet_size` in the broker's configuration.",
            )
        publishing = asyncio.ensure_future(self.publish(topic, payload, qos=qos, properties=properties))
        try:
            await asyncio.wait((publishing, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                self.raise_if_lost()
            await publishing
        finally:
            publishing.cancel()

    # aiomqtt would register the socket's number later, when the broker may have closed the connection.
    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        def register() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), client.loop_write)

        self._loop.call_soon_threadsafe(register)

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        # aiomqtt uses asyncio.wait_for, which in Python 3.11 swallows a cancellation that coincides with the result.
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("Operation timed out") from None

    def raise_if_lost(self) -> None:
        """Raises: MqttError: the connection is closed."""
        if self._disconnected.done():
            error = self._disconnected.exception()
            raise (
                error if isinstance(error, aiomqtt.MqttError) else aiomqtt.MqttError(str(error or "connection closed"))
            )

    async def __aenter__(self) -> Self:
        """Connect. On failure or cancellation, close the socket, which aiomqtt would leave registered."""
        try:
            return await super().__aenter__()
        except BaseException:
            self._abandoned = True
            self._release()
            raise

    def _client_connect(self) -> None:  # runs in a thread, and continues when the awaiting task is cancelled
        super()._client_connect()
        if self._abandoned:
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        client = self._client
        client.on_disconnect = client.on_socket_close = client.on_socket_unregister_write = None
        client.on_socket_register_write = None
        if self._misc_task is not None:
            self._misc_task.cancel()
        if (sock := client.socket()) is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    async def __aexit__(self, *exception: Any) -> None:
        """Disconnect."""
        await super().__aexit__(*exception)
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # retrieved, or asyncio would log that it never was


def new_client(broker: BrokerSection, **options: Any) -> Connection:
    """Return a client for a broker, not connected yet.

    Args:
        options: further arguments of `aiomqtt.Client`.
    Raises: ConfigError: a certificate or password file cannot be read.
    """
    link = link_options(broker, "")
    host, port = parse_broker_url(link.url)
    websocket = link.url.startswith("ws")
    client = Connection(
        host,
        port or 1,  # paho requires a port for a Unix socket too
        transport="unix" if not port else "websockets" if websocket else "tcp",
        websocket_path=(urlsplit(link.url).path or WEBSOCKET_PATH) if websocket else None,
        protocol=aiomqtt.ProtocolVersion.V5,
        username=link.username,
        password=link.read_password(),
        keepalive=link.keepalive_s,
        logger=_LOG,
        tls_context=tls_context(link) if link.secure else None,
        **options,
    )
    client.pending_calls_threshold = 1000  # publishing has more than ten calls pending, where aiomqtt would warn
    return client


def publish_properties(**fields: Any) -> Properties:
    """Return the MQTT 5 properties of a message, by paho's names (`ContentType`, `UserProperty`…), without those that are None."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in fields.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def content_type(message: aiomqtt.Message) -> str:
    """Return the content type of a message, "" if it has none."""
    return str(getattr(message.properties, "ContentType", ""))


def user_properties(message: aiomqtt.Message) -> list[tuple[str, str]]:
    """Return the MQTT 5 user properties of a message."""
    return list(getattr(message.properties, "UserProperty", ()))


def payload_of(message: aiomqtt.Message) -> bytes:
    """Return the payload of a message as bytes."""
    return bytes(message.payload) if isinstance(message.payload, (bytes, bytearray)) else b""
