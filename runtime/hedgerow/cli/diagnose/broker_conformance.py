"""What we rely on of a region's broker, tried one by one with a plain MQTT 5 client: for brokers other than Mosquitto.

All is published on a topic for desired state of a node that does not exist, at a site that does not: the service's own
certificate may write there and read it, and no bridge carries it away.
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
_USER: Final = [("id", "probe"), ("tag", "1"), ("tag", "2")]
_FEW: Final = 100
"""Fewer QoS 1 messages under way make a link slow: 100 give 2,500 a second over 40 ms."""


class Lacking(BusError):
    """A broker does not do what we rely on."""

    code = "broker-lacks"


async def check_conformance(broker: BrokerSection, region: str, packet_bytes: int) -> AsyncIterator[CheckResult]:
    """Try everything, on one connection and where needed on a second.

    Args:
        broker: with the certificate of the region's service.
        packet_bytes: the largest packet that must pass.
    Raises: HedgerowError: it cannot be reached, or does not let us in.
    """
    probe = _Probe(broker, region)
    async with probe.connection() as client:
        yield _tls(client, broker)
        for finding in _limits(client.limits, packet_bytes):
            yield finding
        if getattr(client.limits, "MaximumQoS", 1) == 0:
            return  # nothing else could come out right
    checks: list[tuple[str, Callable[[], Any], str]] = [
        ("QoS 1", probe.quality, "Let the service's user write and read there: `desired` below any site of its region."),
        ("wildcards", probe.wildcards, "Let the service's user subscribe with `+` and `#` below its region."),
        ("properties", probe.properties, "Everything between client and client must speak MQTT 5 and hand properties on."),
        ("packets", lambda: probe.packet(packet_bytes), f"Let packets of {packet_bytes:,} bytes pass, or lower `limits.bridge_packet_bytes`."),
        ("retained", probe.retained, "Keep retained messages, for as long as nobody replaces them."),
        ("retain flag", probe.retain_as_published, "Do as MQTT 5 §3.8.3.1 says of Retain As Published: bridges use it."),
        ("no local", probe.no_local, "Do as MQTT 5 §3.8.3.1 says of No Local: without it, bridges send everything back."),
        ("client ids", probe.client_ids, "Take client ids of 64 characters, `/` among them: bridges are called so."),
    ]  # fmt: skip
    for name, check, remedy in checks:
        try:
            yield CheckResult(name, "ok", await check())
        except HedgerowError as error:
            yield CheckResult(name, "failed", str(error), remedy)
    try:
        yield CheckResult("sessions", "ok", await probe.session())
    except HedgerowError as error:
        remedy = "Results that are not durable are lost while the service restarts; the others come again."
        yield CheckResult("sessions", "warning", str(error), remedy)


class _Probe:
    """The tries; each says what it found, or raises `Lacking`."""

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
                raise _lacking(f"a message of QoS 1 came as QoS {message.qos}")
        return "messages are acknowledged and come as QoS 1"

    async def wildcards(self) -> str:
        topic = self._topic()
        start = f"{topic.rsplit('/', 3)[0]}/{_SITE}"
        for pattern in (f"{start}/+/{Channel.DESIRED}", f"{topic.rsplit('/', 1)[0]}/#"):
            async with self.connection() as client:
                await _subscribe(client, pattern)
                await _publish(client, topic, b"1")
                with _said(f"nothing came for {pattern}"):
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
            await _publish(client, topic, b"1", UserProperty=_USER, **sent)
            message = await _next(client, b"1")
            lost = [name for name, value in sent.items() if getattr(message.properties, name, None) != value]
            if "MessageExpiryInterval" in lost and 0 < getattr(message.properties, "MessageExpiryInterval", 0) < 600:
                lost.remove("MessageExpiryInterval")  # it counts down while a message waits
            if user_properties(message) != _USER:
                lost.append(f"UserProperty (came as {user_properties(message)})")
            if lost:
                raise _lacking(f"lost or changed on the way: {', '.join(lost)}")
        return "content type, correlation data, response topic, expiry and user properties, in order and repeated"

    async def packet(self, packet_bytes: int) -> str:
        topic = self._topic()
        payload = bytes(
            packet_bytes - len(topic) - 10
        )  # fixed header of 5 at most, length of topic, packet id, no properties
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, payload)
            await _next(client, payload)
        return f"{size(packet_bytes)} pass"

    async def retained(self) -> str:
        topic = self._topic()
        async with self.connection() as client:
            await _publish(client, topic, b"kept", retain=True)
        async with self.connection() as client:
            await _subscribe(client, topic)
            with _said("who subscribes later gets nothing"):
                message = await _next(client, b"kept")
            if not message.retain:
                raise _lacking("what was retained comes without its flag")
            await _publish(client, topic, b"", retain=True)
        async with self.connection() as client:
            await _subscribe(client, topic)
            await _publish(client, topic, b"end")
            if payload_of(await _any(client)) != b"end":
                raise _lacking("an empty retained message does not remove what is kept")
        return "kept for who comes later, and removed by an empty one"

    async def retain_as_published(self) -> str:
        topic = self._topic()
        async with self.connection() as client:
            await _subscribe(client, topic, retainAsPublished=True)
            await _publish(client, topic, b"kept", retain=True)
            message = await _next(client, b"kept")
            await _publish(client, topic, b"", retain=True)
            if not message.retain:
                raise _lacking("a message that is retained comes without its flag to who asks for it as published")
        return "handed on as published"

    async def no_local(self) -> str:
        topic = self._topic()
        async with self.connection() as client, self.connection() as other:
            await _subscribe(client, topic, noLocal=True)
            await _publish(client, topic, b"own")
            await _publish(other, topic, b"another's")
            if payload_of(await _any(client)) == b"own":
                raise _lacking("what a client publishes comes back to it though it asked that it does not")
        return "nothing comes back to who sent it"

    async def client_ids(self) -> str:
        name = f"hedgerow-bridge/{self._run}".ljust(64, "x")
        async with self.connection(identifier=name):
            return f"one of {len(name)} characters"

    async def session(self) -> str:
        topic, name = self._topic(), f"hedgerow/doctor/{self._run}"
        keep, forget = Properties(PacketTypes.CONNECT), Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keep.SessionExpiryInterval, forget.SessionExpiryInterval = 60, 0
        async with self.connection(identifier=name, clean_start=False, properties=keep) as client:
            await _subscribe(client, topic)
        async with self.connection() as other:
            await _publish(other, topic, b"meanwhile")
        async with self.connection(identifier=name, clean_start=False, properties=forget) as client:
            with _said("what came while a client was away is lost to it"):
                await _next(client, b"meanwhile")
        return "what comes while the service restarts waits for it"


def _tls(client: Connection, broker: BrokerSection) -> CheckResult:
    socket = client._client.socket()
    version = getattr(socket, "version", lambda: None)()
    if version is None:
        remedy = "Between machines there is only TLS; `broker: {url: mqtts://…, tls: {…}}`."
        return CheckResult("TLS", "warning", f"{broker.url} is plain text", remedy)
    if version != "TLSv1.3":
        return CheckResult("TLS", "failed", f"{version}", "Bridges speak TLS 1.3 alone: let the broker speak it.")
    if broker.tls.cert_file is None:
        remedy = (
            "Who is who rests on certificates: let the broker ask for them (`broker: {tls: {cert_file, key_file}}`)."
        )
        return CheckResult("TLS", "warning", f"{version}, without a certificate of ours", remedy)
    return CheckResult("TLS", "ok", f"{version}, with our certificate")


def _limits(limits: Any, packet_bytes: int) -> Iterator[CheckResult]:
    """What the broker says of itself (MQTT 5 §3.2.2.3)."""
    window = getattr(limits, "ReceiveMaximum", 65_535)
    told = f"{window:,} QoS 1 messages under way to it: {window * 25:,} a second over 40 ms"
    if window < _FEW:
        yield CheckResult(
            "rate", "warning", told, "Raise the broker's Receive Maximum: it limits what a bridge can send."
        )
    else:
        yield CheckResult("rate", "ok", told)
    largest = getattr(limits, "MaximumPacketSize", None)
    if largest is not None and largest < packet_bytes:
        detail = f"it takes packets of {largest:,} bytes and no larger"
        yield CheckResult(
            "limits", "failed", detail, f"Let {packet_bytes:,} bytes pass, or lower `limits.bridge_packet_bytes`."
        )
    for name, missing in (
        ("MaximumQoS", "QoS 1"), ("RetainAvailable", "retained messages"), ("WildcardSubscriptionAvailable", "wildcards")
    ):  # fmt: skip
        if getattr(limits, name, 1) == 0:
            yield CheckResult(
                "limits", "failed", f"it says that it has no {missing}", "Turn them on; all of Hedgerow needs them."
            )


async def _subscribe(client: Connection, pattern: str, **options: bool) -> None:
    granted = await client.subscribe(pattern, options=SubscribeOptions(qos=1, **options))
    codes = [getattr(code, "value", code) for code in granted]
    if any(code >= 0x80 for code in codes):
        raise _lacking(f"it refuses the subscription to {pattern}: {', '.join(map(str, granted))}")


async def _publish(client: Connection, topic: str, payload: bytes, *, retain: bool = False, **properties: Any) -> None:
    before = client.reasons.copy()
    await client.publish(topic, payload, qos=1, retain=retain, properties=publish_properties(**properties))
    refused = [reason for reason in client.reasons - before if reason >= 0x80]
    if refused:
        raise _lacking(f"it refuses a message to {topic}: reason 0x{refused[0]:02x}")


async def _next(client: Connection, payload: bytes) -> aiomqtt.Message:
    """The next message with this payload."""
    while True:
        message = await _any(client)
        if payload_of(message) == payload:
            return message


async def _any(client: Connection) -> aiomqtt.Message:
    with suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_S):
            async for message in client.messages:
                return message
    raise _lacking("what was published did not come")


@contextmanager
def _said(meaning: str) -> Iterator[None]:
    """Says what it means if something does not come."""
    try:
        yield
    except Lacking as error:
        raise _lacking(meaning) from error


def _lacking(what: str) -> Lacking:
    return Lacking(what, remedy="See docs/operator/topology.md, “Regions that outgrow Mosquitto”.")
