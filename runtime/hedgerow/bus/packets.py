"""MQTT 5 control packets: to bytes and back, without input or output.

Rules:
- `encode_*` give a whole packet, or for PUBLISH its head, so that a large payload is never copied.
- `decode_*` take a packet's body (what follows the fixed header) and raise `MalformedPacket` alone.
- An incoming PUBLISH is not decoded here but in `reader.py`: it is the hot path.

The sections named are those of the OASIS standard MQTT 5.0 of 2019.
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
"""Bytes any packet may have: what its length can say, and its fixed header (§2.1.4)."""

PINGREQ_PACKET: Final = b"\xc0\x00"
DUP: Final = 0x08

_NO_NEW_RETAINED: Final = 0x10  # retain handling 1 (§3.8.3.1): a renewed subscription brings no retained messages again

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
"""What reason codes mean (§2.4)."""


def reason_name(code: int) -> str:
    """What a reason code means, in words."""
    return REASONS.get(code, f"reason code {code:#04x}")


class Publication(NamedTuple):
    """A message to publish; used for the will.

    Attributes:
        topic: where to.
        payload: at most 65,535 bytes in a will.
        qos: 0 or 1.
        retain: whether the broker keeps it for later subscribers.
        properties: encoded by `encode_properties`.
    """

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    properties: bytes = b""


class Connack(NamedTuple):
    """The broker's answer to CONNECT (§3.2)."""

    session_present: bool
    reason: int
    properties: dict[Property, Any]


class Acked(NamedTuple):
    """PUBACK, SUBACK or UNSUBACK (§3.4, §3.9, §3.11).

    Attributes:
        packet_id: which packet is answered.
        reasons: a reason code each topic filter; one for a PUBACK.
        text: what the broker adds for people, or "".
    """

    packet_id: int
    reasons: tuple[int, ...]
    text: str = ""


class Disconnected(NamedTuple):
    """The broker's DISCONNECT (§3.14)."""

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
    """CONNECT (§3.1).

    Args:
        properties: session expiry, receive maximum and the like, encoded by `encode_properties`.
    Raises: ValueError: a text is too long or holds NUL.
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
    """All of a PUBLISH (§3.3) before its payload.

    Raises:
        ValueError: the topic is too long or holds NUL.
        OverflowError: the packet is larger than MQTT allows.
    """
    body = _topic(topic)
    if qos:
        body += packet_id.to_bytes(2, "big")
    if properties:
        body += encode_varint(len(properties)) + properties
    else:
        body += b"\x00"
    size = len(body) + payload_size
    if size > MAX_VARINT:
        raise OverflowError(f"{size} bytes do not fit a packet")
    return bytes((PUBLISH | qos << 1 | retain,)) + encode_varint(size) + body


@lru_cache(256)  # a pipeline publishes to one topic, and asks for it with every result
def _topic(topic: str) -> bytes:
    return encode_text(topic)


def encode_puback(packet_id: int) -> bytes:
    """PUBACK that says success (§3.4)."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def encode_subscribe(packet_id: int, filters: Mapping[str, int]) -> bytes:
    """SUBSCRIBE (§3.8); a filter that is subscribed already brings no retained messages again.

    Args:
        filters: maximum QoS by topic filter; at least one.
    """
    body = b"".join(encode_text(name) + bytes((qos | _NO_NEW_RETAINED,)) for name, qos in filters.items())
    return _packet(0x82, packet_id.to_bytes(2, "big") + b"\x00" + body)


def encode_unsubscribe(packet_id: int, filters: Iterable[str]) -> bytes:
    """UNSUBSCRIBE (§3.10)."""
    return _packet(0xA2, packet_id.to_bytes(2, "big") + b"\x00" + b"".join(encode_text(name) for name in filters))


def encode_disconnect(reason: int = 0, properties: bytes = b"") -> bytes:
    """DISCONNECT (§3.14)."""
    if not properties:
        return _packet(DISCONNECT, bytes((reason,)) if reason else b"")
    return _packet(DISCONNECT, bytes((reason,)) + encode_varint(len(properties)) + properties)


def session_expiry(seconds: int) -> bytes:
    """The property that says how long a broker keeps a session after its link has gone."""
    return encode_properties([(Property.SESSION_EXPIRY, seconds)])


def decode_connack(body: bytes) -> Connack:
    """CONNACK (§3.2). Raises: MalformedPacket."""
    if len(body) < 2 or body[0] > 1:
        raise MalformedPacket(f"CONNACK is {body[:8].hex(' ')}")
    return Connack(bool(body[0]), body[1], dict(_tail_properties(body, 2)))


def decode_puback(body: bytes) -> Acked:
    """PUBACK (§3.4). Raises: MalformedPacket."""
    if len(body) < 2:
        raise MalformedPacket("PUBACK is cut short")
    reason = body[2] if len(body) > 2 else 0
    return Acked(_packet_id(body), (reason,), _reason_text(body, 3))


def decode_suback(body: bytes) -> Acked:
    """SUBACK and UNSUBACK (§3.9, §3.11). Raises: MalformedPacket."""
    if len(body) < 3:
        raise MalformedPacket("SUBACK is cut short")
    length, start = decode_varint(body, 2)
    if start + length >= len(body):
        raise MalformedPacket("SUBACK is cut short")
    text = str(dict(decode_properties(body[start : start + length])).get(Property.REASON_STRING, ""))
    return Acked(_packet_id(body), tuple(body[start + length :]), text)


def decode_disconnect(body: bytes) -> Disconnected:
    """DISCONNECT (§3.14). Raises: MalformedPacket."""
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
        raise MalformedPacket("Properties do not end where their packet ends")
    return decode_properties(body[start:])
