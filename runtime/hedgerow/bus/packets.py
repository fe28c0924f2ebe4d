"""Encodes and decodes MQTT 5 control packets; no I/O.

Rules:
- `encode_*` return a whole packet, or for PUBLISH its head, so that a large payload is never copied.
- `decode_*` take a packet's body (after the fixed header) and raise only `MalformedPacket`.
- An incoming PUBLISH is decoded in `reader.py`: it is the hot path.

Section numbers refer to the OASIS standard MQTT 5.0 (2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from hedgerow.bus.properties import (
    MAX_VARINT,
    MalformedPacket,
    Property,
    decode_properties,
    decode_varint,
    encode_binary,
    encode_properties,
    encode_text,
    encode_varint,
)

CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
SUBACK: Final = 0x90
UNSUBACK: Final = 0xB0
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0

MAX_PACKET_BYTES: Final = MAX_VARINT + 5
"""Largest packet of the protocol, with its fixed header (§2.1.4)."""

PINGREQ_PACKET: Final = b"\xc0\x00"
DUP: Final = 0x08

_NO_NEW_RETAINED: Final = (
    0x10  # retain handling 1 (§3.8.3.1): renewing a subscription does not resend retained messages
)

QOS_NOT_SUPPORTED: Final = 0x9B

REASONS: Final[dict[int, str]] = {
    0x04: "disconnect with will message",
    0x10: "no matching subscribers",
    0x11: "no subscription existed",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorised",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x92: "packet identifier not found",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}
"""Names of reason codes (§2.4)."""


def reason_name(code: int) -> str:
    """Return the name of a reason code."""
    return REASONS.get(code, f"reason code {code:#04x}")


class Publication(NamedTuple):
    """A message to publish; used for the will.

    Attributes:
        topic: where it is published.
        payload: at most 65,535 bytes in a will.
        qos: 0 or 1.
        retain: whether the broker retains it.
        properties: encoded by `encode_properties`.
    """

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    properties: bytes = b""


class Connack(NamedTuple):
    """CONNACK (§3.2)."""

    session_present: bool
    reason: int
    properties: dict[Property, Any]


class Acked(NamedTuple):
    """PUBACK, SUBACK or UNSUBACK (§3.4, §3.9, §3.11).

    Attributes:
        packet_id: of the acknowledged packet.
        reasons: one reason code per topic filter; a single one for PUBACK.
        text: human-readable reason string, or "".
    """

    packet_id: int
    reasons: tuple[int, ...]
    text: str = ""


class Disconnected(NamedTuple):
    """A DISCONNECT from the broker (§3.14)."""

    reason: int
    text: str = ""


def encode_connect(
    *,
    client_id: str,
    clean_start: bool,
    keepalive_s: int,
    properties: bytes = b"",
    will: Publication | None = None,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """Encode CONNECT (§3.1).

    Args:
        properties: session expiry, receive maximum and others, encoded by `encode_properties`.
    Raises: ValueError: a string is too long or contains NUL.
    """
    flags = clean_start << 1
    payload = encode_text(client_id)
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        payload += encode_varint(len(will.properties)) + will.properties
        payload += encode_text(will.topic) + encode_binary(will.payload)
    if username is not None:
        flags |= 0x80
        payload += encode_text(username)
    if password is not None:
        flags |= 0x40
        payload += encode_binary(password.encode())
    head = b"\x00\x04MQTT\x05" + bytes((flags,)) + keepalive_s.to_bytes(2, "big")
    return _packet(0x10, head + encode_varint(len(properties)) + properties + payload)


def encode_publish_head(
    topic: str,
    payload_size: int,
    *,
    qos: int = 0,
    retain: bool = False,
    packet_id: int = 0,
    properties: bytes = b"",
) -> bytes:
    """Encode a PUBLISH (§3.3) up to its payload.

    Raises:
        ValueError: the topic is too long or contains NUL.
        OverflowError: the packet exceeds the protocol's limit.
    """
    named = _topic(topic) + packet_id.to_bytes(2, "big") if qos else _topic(topic)
    length = _length(len(properties))
    size = len(named) + len(length) + len(properties) + payload_size
    if size > MAX_VARINT:
        raise OverflowError(f"{size} bytes do not fit in a packet")
    return b"".join((bytes((PUBLISH | qos << 1 | retain,)), _length(size), named, length, properties))


_length = lru_cache(4096)(encode_varint)  # the results of a pipeline are of similar sizes


@lru_cache(256)  # a pipeline publishes every result to the same topic
def _topic(topic: str) -> bytes:
    return encode_text(topic)


def encode_puback(packet_id: int) -> bytes:
    """Encode a successful PUBACK (§3.4)."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def encode_subscribe(packet_id: int, filters: Mapping[str, int]) -> bytes:
    """Encode SUBSCRIBE (§3.8). Renewing a subscription does not resend retained messages.

    Args:
        filters: maximum QoS by topic filter; at least one.
    """
    body = b"".join(encode_text(name) + bytes((qos | _NO_NEW_RETAINED,)) for name, qos in filters.items())
    return _packet(0x82, packet_id.to_bytes(2, "big") + b"\x00" + body)


def encode_unsubscribe(packet_id: int, filters: Iterable[str]) -> bytes:
    """Encode UNSUBSCRIBE (§3.10)."""
    return _packet(0xA2, packet_id.to_bytes(2, "big") + b"\x00" + b"".join(encode_text(name) for name in filters))


def encode_disconnect(reason: int = 0, properties: bytes = b"") -> bytes:
    """Encode DISCONNECT (§3.14)."""
    if not properties:
        return _packet(DISCONNECT, bytes((reason,)) if reason else b"")
    return _packet(DISCONNECT, bytes((reason,)) + encode_varint(len(properties)) + properties)


def session_expiry(seconds: int) -> bytes:
    """Encode the property for how long a broker keeps a session after a disconnect."""
    return encode_properties([(Property.SESSION_EXPIRY, seconds)])


def decode_connack(body: bytes) -> Connack:
    """Decode CONNACK (§3.2). Raises: MalformedPacket."""
    if len(body) < 2 or body[0] > 1:
        raise MalformedPacket(f"Malformed CONNACK: {body[:8].hex(' ')}")
    return Connack(bool(body[0]), body[1], dict(_tail_properties(body, 2)))


def decode_puback(body: bytes) -> Acked:
    """Decode PUBACK (§3.4). Raises: MalformedPacket."""
    if len(body) < 2:
        raise MalformedPacket("PUBACK is truncated")
    reason = body[2] if len(body) > 2 else 0
    return Acked(_packet_id(body), (reason,), _reason_text(body, 3))


def decode_suback(body: bytes) -> Acked:
    """Decode SUBACK or UNSUBACK (§3.9, §3.11). Raises: MalformedPacket."""
    if len(body) < 3:
        raise MalformedPacket("SUBACK is truncated")
    length, start = decode_varint(body, 2)
    if start + length >= len(body):
        raise MalformedPacket("SUBACK is truncated")
    text = str(dict(decode_properties(body[start : start + length])).get(Property.REASON_STRING, ""))
    return Acked(_packet_id(body), tuple(body[start + length :]), text)


def decode_disconnect(body: bytes) -> Disconnected:
    """Decode DISCONNECT (§3.14). Raises: MalformedPacket."""
    return Disconnected(body[0] if body else 0, _reason_text(body, 1))


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_varint(len(body)) + body


def _packet_id(body: bytes) -> int:
    packet_id = body[0] << 8 | body[1]
    if not packet_id:
        raise MalformedPacket("Packet identifier 0 is not allowed")
    return packet_id


def _reason_text(body: bytes, position: int) -> str:
    return str(dict(_tail_properties(body, position)).get(Property.REASON_STRING, ""))


def _tail_properties(body: bytes, position: int) -> list[tuple[Property, Any]]:
    if len(body) <= position:
        return []
    length, start = decode_varint(body, position)
    if start + length != len(body):
        raise MalformedPacket("Property length does not match the packet length")
    return decode_properties(body[start:])
