"""A tool's connection to the broker: which one, how to get in, and what it means when that fails."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiomqtt
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from hedgerow import configfile
from hedgerow.bus.backoff import Backoff
from hedgerow.bus.connect import parse_broker_url, tls_context
from hedgerow.bus.packets import encode_connect, encode_disconnect
from hedgerow.cli.base.console import size
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError, ConfigError
from hedgerow.node.link.options import link_options

_LOG: Final = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # what paho would print on stderr is in our errors

T = TypeVar("T")
_GONE: Final = frozenset({mqtt.MQTT_ERR_NO_CONN, mqtt.MQTT_ERR_CONN_LOST, mqtt.MQTT_ERR_KEEPALIVE})
"""paho's codes for a connection that is no more."""

_NOT_FOR_EVER: Final = {
    0x80: "it closed without a word",  # what paho says when there was no DISCONNECT
    0x88: "server unavailable",
    0x89: "server busy",
    0x8B: "server shutting down",
    0x8D: "keep alive timeout",
}
"""The broker's reason codes (MQTT 5 §2.4) after which it is worth trying again."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
SILENT_S: Final = 5.0
"""How long somebody may take to answer a connection before he counts as hung."""


class BrokerAway(BusError):
    """The broker is not there, or went away: it may come back."""

    code = "broker-away"


class Connection(aiomqtt.Client):
    """An aiomqtt client that keeps what the broker says about a message, and notices at once when it hangs up.

    Attributes:
        reasons: how often each reason code came with an acknowledgement (MQTT 5 §3.4.2.1).
        limits: properties of the broker's CONNACK (MQTT 5 §3.2.2.3); None before it came.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reasons: Counter[int] = Counter()
        self.limits: Properties | None = None
        self._given_up = False

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.limits = properties
        super()._on_connect(client, userdata, flags, reason_code, properties)

    # aiomqtt takes a refusal ("not authorized") for an acknowledgement like any other; a tool must not.
    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        self.reasons[reason_code.value] += 1
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def send(self, topic: str, payload: bytes, *, qos: int, properties: Properties) -> None:
        """Publish and, with QoS 1, wait for the acknowledgement.

        Raises:
            MqttError: it does not come, or the broker hangs up meanwhile.
            BusError: the broker takes no message as large.
        """
        limit = getattr(self.limits, "MaximumPacketSize", None)
        if limit is not None and len(payload) > limit:  # it would hang up without saying why to who is still sending
            raise BusError(
                f"A message of {size(len(payload))} is more than the broker takes, {size(limit)}",
                remedy="Send smaller ones, or raise `max_packet_size` in the broker's configuration.",
            )
        publishing = asyncio.ensure_future(self.publish(topic, payload, qos=qos, properties=properties))
        try:
            await asyncio.wait((publishing, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                self.raise_if_lost()
            await publishing
        finally:
            publishing.cancel()

    # aiomqtt would register the socket by its number a moment later, when the broker may have hung up.
    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        def register() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), client.loop_write)

        self._loop.call_soon_threadsafe(register)

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt asks for it
        # aiomqtt's uses asyncio.wait_for, which Python 3.11 lets swallow a cancellation that comes with the result.
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("Operation timed out") from None

    def raise_if_lost(self) -> None:
        """Raises: MqttError: the broker has hung up."""
        if self._disconnected.done():
            error = self._disconnected.exception()
            raise error if isinstance(error, aiomqtt.MqttError) else aiomqtt.MqttError(str(error or "it hung up"))

    async def __aenter__(self) -> Self:
        """Connect. One that fails or is cancelled leaves nothing behind: aiomqtt would leave its socket to the event loop."""
        try:
            return await super().__aenter__()
        except BaseException:
            self._given_up = True
            self._let_go()
            raise

    def _client_connect(self) -> None:  # in a thread, which goes on where the task that waits for it is cancelled
        super()._client_connect()
        if self._given_up:
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
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
            self._disconnected.exception()  # looked at, or asyncio would complain that nobody did


def broker_section(url: str | None, config: Path | None) -> BrokerSection:
    """The broker a tool is to use: the option, else the file, else the environment, else the default.

    Raises: ConfigError: the address or the file is wrong.
    """
    try:
        section = configfile.load(config).broker if config else configfile.parse("", Path("environment")).broker
        return section if url is None else BrokerSection.model_validate({**section.model_dump(), "url": url})
    except ValidationError as error:
        raise ConfigError(
            f"{url!r} is no broker's address", remedy="Write mqtt://HOST:PORT, mqtts://HOST:PORT or unix:///path."
        ) from error


async def hung(broker: BrokerSection) -> bool:
    """Whether somebody accepts connections at a broker's address, and then answers nothing: neither TLS nor MQTT.

    The kernel accepts for a process that hangs, so a connection says little.

    Raises: ConfigError: a certificate or password file cannot be read.
    """
    options = link_options(broker, "")
    host, port = parse_broker_url(options.url)
    tls = tls_context(options) if options.url.startswith("mqtts:") else None
    opening = asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
    try:
        async with asyncio.timeout(SILENT_S):
            reader, writer = await opening
    except (OSError, UnicodeError):  # a timeout among them: nobody is there
        return False
    try:
        async with asyncio.timeout(SILENT_S):
            if tls is not None:
                await writer.start_tls(tls, server_hostname=host)
            connect = encode_connect(
                client_id="",
                clean_start=True,
                keepalive_s=options.keepalive_s,
                username=options.username,
                password=options.password,
            )
            writer.write(connect)
            await reader.read(1)
            writer.write(encode_disconnect())
            await writer.drain()
    except TimeoutError:
        return True
    except OSError:  # it hung up, or TLS does not fit: whoever connects in earnest will say why
        return False
    finally:
        writer.close()
    return False


@asynccontextmanager
async def connected(broker: BrokerSection, **options: Any) -> AsyncIterator[Connection]:
    """A connection to the broker, closed at the end.

    Args:
        options: more of what `aiomqtt.Client` takes.
    Raises:
        BrokerAway: the broker cannot be reached, or goes away meanwhile.
        BusError: it refuses us, or a message.
        ConfigError: a certificate or password file cannot be read.
    """
    entered = False
    try:
        async with _client(broker, options) as client:
            entered = True
            yield client
    except aiomqtt.MqttError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # a disconnect that fails must not hide that we were stopped
            raise asyncio.CancelledError from error
        raise (_lost if entered else _not_reached)(broker.url, error) from error


async def messages(
    broker: BrokerSection, filters: Sequence[str], link: Callable[[str], None]
) -> AsyncGenerator[aiomqtt.Message, None]:
    """Messages on topics, for as long as they are asked for. A broker that goes away is waited for, and subscribed to again.

    Args:
        link: told why the connection was lost, and "" when it is back.
    Raises:
        BrokerAway: the broker cannot be reached to begin with.
        BusError: it refuses us.
        ConfigError: a certificate or password file cannot be read.
    """
    backoff = Backoff(broker.url, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    was_there = away = False
    while True:
        try:
            async with connected(broker) as client:
                await client.subscribe([(pattern, 1) for pattern in filters])
                backoff.link_up()
                if away:
                    link("")
                was_there, away = True, False
                async for message in client.messages:
                    yield message
        except BrokerAway as error:
            if not was_there:
                raise
            if not away:
                link(str(error))
            away = True
        finally:
            backoff.link_down()
        await backoff.pause()


def _lost(url: str, error: aiomqtt.MqttError) -> BusError:
    cause = error.__cause__ if isinstance(error.__cause__, aiomqtt.MqttCodeError) else error  # why it was not connected
    if (reason := _may_come_back(cause)) is not None:
        return BrokerAway(
            f"The connection to the broker at {url} was lost: {reason}",
            remedy="Look whether the broker still runs, and at its log.",
        )
    return BusError(
        f"The broker at {url} closed the connection: {_reason(cause)}",
        remedy="Look at its log; too large a message and a second client of the same name are usual causes.",
    )


def _not_reached(url: str, error: aiomqtt.MqttError) -> BusError:
    if "CERTIFICATE" in str(error):
        return BusError(
            f"The certificate of {url} is not trusted: {error}",
            remedy="Name the authority that signed it: `broker.tls.ca_file`, or HEDGEROW_BROKER__TLS__CA_FILE.",
        )
    if (reason := _may_come_back(error)) is not None:
        return BrokerAway(
            f"The broker at {url} cannot be reached: {reason}",
            remedy="Is it running there? Another address goes in --broker mqtt://HOST:PORT; `hedgerow doctor` looks closer.",
        )
    return BusError(
        f"The broker at {url} refuses us: {_reason(error)}",
        remedy="Give user name and password in the file of --config, or as HEDGEROW_BROKER__USERNAME and "
        "HEDGEROW_BROKER__PASSWORD; the broker's log says more.",
    )


def _may_come_back(error: BaseException) -> str | None:
    """Why the broker is away; None if it is there and does not want us."""
    if not isinstance(error, aiomqtt.MqttCodeError):
        return str(error)
    if isinstance(error.rc, ReasonCode):
        return _NOT_FOR_EVER.get(error.rc.value)
    return _reason(error) if error.rc in _GONE else None


def _reason(error: BaseException) -> str:
    return str(error).partition("] ")[2] or str(error)


def _client(broker: BrokerSection, options: dict[str, Any]) -> Connection:
    link = link_options(broker, "")
    host, port = parse_broker_url(link.url)
    client = Connection(
        host,
        port or 1,  # paho wants one for a Unix socket too
        transport="tcp" if port else "unix",
        protocol=aiomqtt.ProtocolVersion.V5,
        username=link.username,
        password=link.password,
        keepalive=link.keepalive_s,
        logger=_LOG,
        tls_context=tls_context(link) if link.url.startswith("mqtts:") else None,
        **options,
    )
    client.pending_calls_threshold = 1000  # it would warn at ten, and many at once is how frames are published
    return client


def publish_properties(**fields: Any) -> Properties:
    """MQTT 5 properties of a message, in paho's names: `ContentType`, `UserProperty`, `ResponseTopic`…; None is left out."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in fields.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def content_type(message: aiomqtt.Message) -> str:
    """The content type of a message, "" if its sender does not say."""
    return str(getattr(message.properties, "ContentType", ""))


def user_properties(message: aiomqtt.Message) -> list[tuple[str, str]]:
    """The MQTT 5 user properties of a message."""
    return list(getattr(message.properties, "UserProperty", ()))


def payload_of(message: aiomqtt.Message) -> bytes:
    """The payload of a message as bytes."""
    return bytes(message.payload) if isinstance(message.payload, (bytes, bytearray)) else b""
