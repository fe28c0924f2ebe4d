"""Connects a tool to its broker: chooses the broker, waits out outages, and explains failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiomqtt
import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from hedgerow import configfile
from hedgerow.bus.backoff import Backoff
from hedgerow.bus.connect import parse_broker_url, tls_context
from hedgerow.bus.packets import encode_connect, encode_disconnect
from hedgerow.cli.base.client import Connection, new_client
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError, ConfigError
from hedgerow.node.link.options import link_options

_DISCONNECTED: Final = frozenset({mqtt.MQTT_ERR_NO_CONN, mqtt.MQTT_ERR_CONN_LOST, mqtt.MQTT_ERR_KEEPALIVE})
"""paho's codes for a connection that was closed."""

_TRANSIENT: Final = {
    0x80: "connection closed without a reason code",  # paho's code where the broker sent no DISCONNECT
    0x88: "server unavailable",
    0x89: "server busy",
    0x8B: "server shutting down",
    0x8D: "keep alive timeout",
}
"""The broker's reason codes (MQTT 5 §2.4) after which to connect again."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
HUNG_AFTER_S: Final = 5.0
"""How long a broker may leave a connection unanswered before it counts as hung."""


class BrokerUnavailable(BusError):
    """The broker is unreachable, or was lost: worth retrying."""

    code = "broker-away"


def broker_section(url: str | None, config: Path | None) -> BrokerSection:
    """Return the broker to use: from the option, else the file, else the environment, else the default.

    Raises: ConfigError: the address or the file is invalid.
    """
    try:
        section = configfile.load(config).broker if config else configfile.parse("", Path("environment")).broker
        return section if url is None else BrokerSection.model_validate({**section.model_dump(), "url": url})
    except ValidationError as error:
        raise ConfigError(
            f"{url!r} is not a broker address", remedy="Write mqtt://HOST:PORT, mqtts://HOST:PORT or unix:///path."
        ) from error


async def is_hung(broker: BrokerSection) -> bool:
    """Return whether a broker accepts a connection and then answers neither TLS nor MQTT.

    The kernel accepts connections for a hung process, so connecting alone proves little.

    Raises: ConfigError: a certificate or password file cannot be read.
    """
    options = link_options(broker, "")
    host, port = parse_broker_url(options.url)
    tls = tls_context(options) if options.url.startswith("mqtts:") else None
    opening = asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
    try:
        async with asyncio.timeout(HUNG_AFTER_S):
            reader, writer = await opening
    except (OSError, UnicodeError):  # includes a timeout: unreachable, not hung
        return False
    try:
        async with asyncio.timeout(HUNG_AFTER_S):
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
    except OSError:  # closed, or a TLS mismatch: a real connection will report why
        return False
    finally:
        writer.close()
    return False


@asynccontextmanager
async def connected(broker: BrokerSection, **options: Any) -> AsyncIterator[Connection]:
    """Connect to a broker, and disconnect at the end.

    Args:
        options: further arguments of `aiomqtt.Client`.
    Raises:
        BrokerUnavailable: the broker cannot be reached, or the connection is lost.
        BusError: the broker refuses the connection or a message.
        ConfigError: a certificate or password file cannot be read.
    """
    entered = False
    try:
        async with new_client(broker, **options) as client:
            entered = True
            yield client
    except aiomqtt.MqttError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # a failed disconnect must not hide the cancellation
            raise asyncio.CancelledError from error
        raise (_lost if entered else _not_reached)(broker.url, error) from error


async def receive_messages(
    broker: BrokerSection, filters: Sequence[str], on_link_change: Callable[[str], None]
) -> AsyncGenerator[aiomqtt.Message, None]:
    """Subscribe, and yield messages without end; after an outage, reconnect and subscribe again.

    Args:
        on_link_change: called with the reason when the connection is lost, and with "" when it is back.
    Raises:
        BrokerUnavailable: the broker cannot be reached the first time.
        BusError: the broker refuses the connection.
        ConfigError: a certificate or password file cannot be read.
    """
    backoff = Backoff(broker.url, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    connected_before = lost = False
    while True:
        try:
            async with connected(broker) as client:
                await client.subscribe([(pattern, 1) for pattern in filters])
                backoff.link_up()
                if lost:
                    on_link_change("")
                connected_before, lost = True, False
                async for message in client.messages:
                    yield message
        except BrokerUnavailable as error:
            if not connected_before:
                raise
            if not lost:
                on_link_change(str(error))
            lost = True
        finally:
            backoff.link_down()
        await backoff.pause()


def _lost(url: str, error: aiomqtt.MqttError) -> BusError:
    cause = error.__cause__ if isinstance(error.__cause__, aiomqtt.MqttCodeError) else error
    if (reason := _transient_reason(cause)) is not None:
        return BrokerUnavailable(
            f"The connection to the broker at {url} was lost: {reason}",
            remedy="Check that the broker is running, and read its log.",
        )
    return BusError(
        f"The broker at {url} closed the connection: {_reason(cause)}",
        remedy="Read the broker's log. Usual causes: the message is too large, or another client has the same client id.",
    )


def _not_reached(url: str, error: aiomqtt.MqttError) -> BusError:
    if "CERTIFICATE" in str(error):
        return BusError(
            f"The certificate of {url} is not trusted: {error}",
            remedy="Set `broker.tls.ca_file` or HEDGEROW_BROKER__TLS__CA_FILE to the CA that signed it.",
        )
    if (reason := _transient_reason(error)) is not None:
        return BrokerUnavailable(
            f"The broker at {url} cannot be reached: {reason}",
            remedy="Check that it is running, or name another with --broker mqtt://HOST:PORT. `hedgerow doctor` shows details.",
        )
    return BusError(
        f"The broker at {url} refused the connection: {_reason(error)}",
        remedy="Set the user name and password in the --config file, or in HEDGEROW_BROKER__USERNAME and "
        "HEDGEROW_BROKER__PASSWORD. For details: the broker's log.",
    )


def _transient_reason(error: BaseException) -> str | None:
    """Return why the broker is unavailable; None if it is available and refuses."""
    if not isinstance(error, aiomqtt.MqttCodeError):
        return str(error)
    if isinstance(error.rc, ReasonCode):
        return _TRANSIENT.get(error.rc.value)
    return _reason(error) if error.rc in _DISCONNECTED else None


def _reason(error: BaseException) -> str:
    return str(error).partition("] ")[2] or str(error)
