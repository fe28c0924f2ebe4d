"""Tests a region's broker for each feature Hedgerow relies on, with a plain MQTT 5 client; for brokers other than Mosquitto.

Everything is published as the desired state of a node and a site that do not exist: the service's certificate may publish
and subscribe there, and no bridge forwards it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from hedgerow.cli.base.client import Connection, payload_of, publish_properties, user_properties
from hedgerow.cli.base.connection import connected
from hedgerow.cli.base.console import size
from hedgerow.cli.diagnose.checks import CheckResult
from hedgerow.config import BrokerSection
from hedgerow.errors import BusError, HedgerowError
from hedgerow.topics import Address, Channel

_WAIT_S: Final = 10.0
_SITE: Final = "doctor"
_USER_PROPERTIES: Final = [("id", "probe"), ("tag", "1"), ("tag", "2")]
_MIN_IN_FLIGHT: Final = 100
"""Fewer QoS 1 messages in flight make a link slow: 100 allow 2,500 per second over 40 ms."""


class NonConformance(BusError):
    """The broker lacks a feature that Hedgerow relies on."""

    code = "broker-lacks"


async def check_conformance(broker: BrokerSection, region: str, packet_bytes: int) -> AsyncIterator[CheckResult]:
    """Test every feature.

    Args:
        broker: the broker, with the certificate of the region's service.
        packet_bytes: size of the largest packet that must pass.
    Raises: HedgerowError: the broker is unreachable, or refuses the connection.
    """
    probe = _Probe(broker, region)
    async with probe.connection() as client:
        yield _tls(client, broker)
        for finding in _limits(client.limits, packet_bytes):
            yield finding
        if getattr(client.limits, "MaximumQoS", 1) == 0:
            return  # all other tests would fail
    checks: list[tuple[str, Callable[[], Any], str]] = [
        ("QoS 1", probe.quality, "Let the service's user publish and subscribe to `desired` at any site of its region."),
        ("wildcards", probe.wildcards, "Let the service's user subscribe with `+` and `#` below its region."),
        ("properties", probe.properties, "Everything between two clients must speak MQTT 5 and forward properties."),
        ("packets", lambda: probe.packet(packet_bytes), f"Allow packets of {packet_bytes:,} bytes, or lower `limits.bridge_packet_bytes`."),
        ("retained", probe.retained, "Store retained messages until they are replaced."),
        ("retain flag", probe.retain_as_published, "Support Retain As Published (MQTT 5 §3.8.3.1): bridges use it."),
        ("no local", probe.no_local, "Support No Local (MQTT 5 §3.8.3.1): without it, bridges send everything back."),
        ("client ids", probe.client_ids, "Accept client ids of 128 characters with `/` in them, as bridges have."),
    ]  # fmt: skip
    for name, check, remedy in checks:
        try:
            yield CheckResult(name, "ok", await check())
        except HedgerowError as error:
            yield CheckResult(name, "failed", str(error), remedy)
    try:
        yield CheckResult("sessions", "ok", await probe.session())
    except HedgerowError as error:
        remedy = (
            "Let the broker keep sessions of absent clients: otherwise results that are not durable are lost while the "
            "service restarts. Durable ones are sent again."
        )
        yield CheckResult("sessions", "warning", str(error), remedy)


class _Probe:
    """The tests; each returns what it found, or raises `NonConformance`."""

    def __init__(self, broker: BrokerSection, region: str) -> None:
        self._broker = broker
        self._region = region
        self._run = uuid.uuid4().hex[:8]
        self._count = 0

    def connection(self, **options: Any) -> Any:
        return connected(self._broker, timeout=_WAIT_S, **options)

    def _topic(self) -> str:
        self._count += 1
        return Address(self._region, _SITE, f"{self._run}-{self._count}").topic(Channel.DESIRED)

    async def quality(self) -> str:
        topic = self._topic()
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, b"1")
            message = await _next(client, b"1")
            if message.qos != 1:
                raise _failure(f"a message published with QoS 1 was delivered with QoS {message.qos}")
        return "messages are acknowledged, and delivered with QoS 1"

    async def wildcards(self) -> str:
        topic = self._topic()
        start = f"{topic.rsplit('/', 3)[0]}/{_SITE}"
        for pattern in (f"{start}/+/{Channel.DESIRED}", f"{topic.rsplit('/', 1)[0]}/#"):
            async with self.connection() as client:
                await _subscribe(client, pattern)
                await _publish(client, topic, b"1")
                with _failing_as(f"no message was delivered for {pattern}"):
                    await _next(client, b"1")
        return "`+` and `#`"

    async def properties(self) -> str:
        topic = self._topic()
        sent: dict[str, Any] = {
            "ContentType": "application/json",
            "CorrelationData": bytes(range(256)),
            "ResponseTopic": f"{topic}/reply",
            "MessageExpiryInterval": 600,
        }
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, b"1", UserProperty=_USER_PROPERTIES, **sent)
            message = await _next(client, b"1")
            lost = [name for name, value in sent.items() if getattr(message.properties, name, None) != value]
            if "MessageExpiryInterval" in lost and 0 < getattr(message.properties, "MessageExpiryInterval", 0) < 600:
                lost.remove("MessageExpiryInterval")  # it counts down while a message waits
            if user_properties(message) != _USER_PROPERTIES:
                lost.append(f"UserProperty (received as {user_properties(message)})")
            if lost:
                raise _failure(f"lost or changed in transit: {', '.join(lost)}")
        return "content type, correlation data, response topic, expiry and user properties, in order and repeated"

    async def packet(self, packet_bytes: int) -> str:
        topic = self._topic()
        # At most 10 more: fixed header of 5, length of the topic, packet id, no properties.
        payload = bytes(packet_bytes - len(topic) - 10)
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, payload)
            await _next(client, payload)
        return f"{size(packet_bytes)} pass"

    async def retained(self) -> str:
        topic = self._topic()
        async with self.connection() as client:
            await _publish(client, topic, b"retained", retain=True)
        async with self.connection() as client:
            await _subscribe(client, topic)
            with _failing_as("a later subscriber receives no retained message"):
                message = await _next(client, b"retained")
            if not message.retain:
                raise _failure("a retained message is delivered without the retain flag")
            await _publish(client, topic, b"", retain=True)
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, b"end")
            if payload_of(await _any(client)) != b"end":
                raise _failure("an empty retained message does not delete the stored one")
        return "delivered to later subscribers, deleted by an empty message"

    async def retain_as_published(self) -> str:
        topic = self._topic()
        async with self.connection() as client:
            await _subscribe(client, topic, retainAsPublished=True)
            await _publish(client, topic, b"retained", retain=True)
            message = await _next(client, b"retained")
            await _publish(client, topic, b"", retain=True)
            if not message.retain:
                raise _failure(
                    "a retained message loses its flag, although the subscription requests Retain As Published"
                )
        return "delivered as published"

    async def no_local(self) -> str:
        topic = self._topic()
        async with self.connection() as client, self.connection() as other:
            await _subscribe(client, topic, noLocal=True)
            await _publish(client, topic, b"own")
            await _publish(other, topic, b"another's")
            if payload_of(await _any(client)) == b"own":
                raise _failure("a client receives its own message, although the subscription requests No Local")
        return "no client receives its own messages"

    async def client_ids(self) -> str:
        name = f"hedgerow-bridge/{self._run}".ljust(128, "x")
        async with self.connection(identifier=name):
            return f"{len(name)} characters accepted"

    async def session(self) -> str:
        topic, name = self._topic(), f"hedgerow/doctor/{self._run}"
        keep, forget = Properties(PacketTypes.CONNECT), Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keep.SessionExpiryInterval, forget.SessionExpiryInterval = 60, 0
        async with self.connection(identifier=name, clean_start=False, properties=keep) as client:
            await _subscribe(client, topic)
        async with self.connection() as other:
            await _publish(other, topic, b"meanwhile")
        async with self.connection(identifier=name, clean_start=False, properties=forget) as client:
            with _failing_as("messages published while a client was disconnected are lost"):
                await _next(client, b"meanwhile")
        return "messages published while a client was disconnected are delivered"


def _tls(client: Connection, broker: BrokerSection) -> CheckResult:
    socket = client._client.socket()
    version = getattr(socket, "version", lambda: None)()
    if version is None:
        remedy = "Between machines, use TLS: `broker: {url: mqtts://…, tls: {…}}`."
        return CheckResult("TLS", "warning", f"{broker.url} is plain text", remedy)
    if version != "TLSv1.3":
        return CheckResult("TLS", "failed", f"{version}", "Enable TLS 1.3: bridges require it.")
    if broker.tls.cert_file is None:
        remedy = "Let the broker require client certificates, and set `broker: {tls: {cert_file, key_file}}`."
        return CheckResult("TLS", "warning", f"{version}, without a client certificate", remedy)
    return CheckResult("TLS", "ok", f"{version}, with a client certificate")


def _limits(limits: Any, packet_bytes: int) -> Iterator[CheckResult]:
    """Check the limits in the broker's CONNACK (MQTT 5 §3.2.2.3)."""
    window = getattr(limits, "ReceiveMaximum", 65_535)
    detail = f"{window:,} QoS 1 messages in flight: {window * 25:,} per second over 40 ms"
    if window < _MIN_IN_FLIGHT:
        yield CheckResult(
            "rate", "warning", detail, "Raise the broker's Receive Maximum, which limits the rate of a bridge."
        )
    else:
        yield CheckResult("rate", "ok", detail)
    largest = getattr(limits, "MaximumPacketSize", None)
    if largest is not None and largest < packet_bytes:
        detail = f"the broker accepts packets of at most {largest:,} bytes"
        yield CheckResult(
            "limits", "failed", detail, f"Allow {packet_bytes:,} bytes, or lower `limits.bridge_packet_bytes`."
        )
    for name, missing in (
        ("MaximumQoS", "QoS 1"), ("RetainAvailable", "retained messages"), ("WildcardSubscriptionAvailable", "wildcards")
    ):  # fmt: skip
        if getattr(limits, name, 1) == 0:
            yield CheckResult(
                "limits",
                "failed",
                f"the broker reports that it has no {missing}",
                "Enable them: Hedgerow requires them.",
            )


async def _subscribe(client: Connection, pattern: str, **options: bool) -> None:
    granted = await client.subscribe(pattern, options=SubscribeOptions(qos=1, **options))
    codes = [getattr(code, "value", code) for code in granted]
    if any(code >= 0x80 for code in codes):
        raise _failure(f"the broker refuses the subscription to {pattern}: {', '.join(map(str, granted))}")


async def _publish(client: Connection, topic: str, payload: bytes, *, retain: bool = False, **properties: Any) -> None:
    before = client.reasons.copy()
    await client.publish(topic, payload, qos=1, retain=retain, properties=publish_properties(**properties))
    refused = [reason for reason in client.reasons - before if reason >= 0x80]
    if refused:
        raise _failure(f"the broker refuses a message to {topic}: reason 0x{refused[0]:02x}")


async def _next(client: Connection, payload: bytes) -> aiomqtt.Message:
    """Return the next message with this payload."""
    while True:
        message = await _any(client)
        if payload_of(message) == payload:
            return message


async def _any(client: Connection) -> aiomqtt.Message:
    with suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_S):
            async for message in client.messages:
                return message
    raise _failure("a published message was not delivered")


@contextmanager
def _failing_as(meaning: str) -> Iterator[None]:
    """Replace the message of a `NonConformance` by what the failure means."""
    try:
        yield
    except NonConformance as error:
        raise _failure(meaning) from error


def _failure(message: str) -> NonConformance:
    return NonConformance(message, remedy="See docs/operator/topology.md, “Regions that outgrow Mosquitto”.")
