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
from hedgerow.bus.causes import ConnectionFailure, NothingListens
from hedgerow.bus.diagnosis import diagnose
from hedgerow.cli.base.client import Connection, new_client
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError, ConfigError, HedgerowError, without_secrets
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
            f"{without_secrets(url or '')!r} is not a broker address",
            remedy="Write mqtt://HOST:PORT, mqtts://HOST:PORT, wss://HOST:PORT/PATH or unix:///path. The user name and password go "
            "into the --config file, or HEDGEROW_BROKER__USERNAME and HEDGEROW_BROKER__PASSWORD.",
        ) from error


async def explain(broker: BrokerSection) -> HedgerowError | None:
    """Return why a broker cannot be used; None if it accepts the connection.

    Raises: ConfigError: a password file cannot be read.
    """
    error = await diagnose(link_options(broker, ""))
    if isinstance(error, NothingListens):
        error.remedy += " Name another with --broker mqtt://HOST:PORT."
    elif error is not None and "`" in error.remedy:
        error.remedy += (
            " Tools read these settings from `broker:` in the --config file, or HEDGEROW_BROKER__… variables."
        )
    return error


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
        if entered:
            raise _lost(broker.url, error) from error
        raise await _not_reached(broker, error) from error


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


async def _not_reached(broker: BrokerSection, error: aiomqtt.MqttError) -> HedgerowError:
    explained = await explain(broker)
    if isinstance(explained, ConnectionFailure) and explained.transient:
        return BrokerUnavailable(str(explained), remedy=explained.remedy)
    if explained is not None:
        return explained
    if (reason := _transient_reason(error)) is not None:
        return BrokerUnavailable(
            f"The broker at {broker.url} could not be reached: {reason}",
            remedy="It accepts connections now: try again. `hedgerow doctor` shows details.",
        )
    return BusError(
        f"The broker at {broker.url} refused the connection: {_reason(error)}", remedy="For details: the broker's log."
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
