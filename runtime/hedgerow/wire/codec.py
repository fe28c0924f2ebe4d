"""Decodes message payloads into frames and arrays. Pure, with limits on everything.

A frame's identity and time come from the MessagePack envelope, otherwise from user properties (`id`, `time`, `traceparent`,
as in the CloudEvents MQTT binding), otherwise from the message itself.
"""

from __future__ import annotations

import io
import math
import re
import struct
from datetime import datetime
from tokenize import TokenError
from typing import Final

import msgpack
import numpy as np
import xxhash
from numpy.lib import format as npy

from hedgerow.errors import FrameError
from hedgerow.frame import Array, Buffer, Frame
from hedgerow.text import refusal
from hedgerow.wire.document import decode_msgpack

ENVELOPE: Final = "application/vnd.hedgerow.frame+msgpack"
"""Content type of a frame with its own id, stream and time: a MessagePack map, see `pack_envelope`."""

NPY: Final = "application/x-npy"
COMPACT_DATE: Final = re.compile(r"(19|20)\d\d[01]\d[0-3]\d([0-2]\d[0-5]\d[0-5]\d)?")
"""A date that is also a number: as Unix seconds or milliseconds it would be another time."""

LONGEST_NAME: Final = 1024
"""Longest id, stream or content type of a sender, in bytes; results repeat them."""

_META_PARAMETERS: Final = ("rate", "channels")
_DTYPES: Final = frozenset("biufc")
_ENVELOPE_KEYS: Final = frozenset({"id", "stream", "captured_at", "sequence", "content_type", "payload", "traceparent"})


def frame_id(topic: str, packet_id: int, payload: Buffer) -> str:
    """Return an id for a frame without one: the same for every delivery of the same message.

    A broker redelivers a QoS 1 message with the same packet identifier and the same bytes (MQTT 5 §4.4), so their hash
    survives a restart of the node. XXH3 (Y. Collet) hashes 10 GB a second.
    """
    digest = xxhash.xxh3_128(payload)
    digest.update(f"\0{topic}\0{packet_id}".encode())
    return digest.hexdigest()


def accepted(what: str, text: str, *, if_long: str) -> str:
    """Return a text that a sender picked: it may become an MQTT string, a name, and a line of a log or terminal.

    All ids, streams and content types of senders come in through here.

    Args:
        what: what it is to be, for the message.
        if_long: code of the error if it is too long.
    Raises: FrameError: it is too long, or has a character that brokers or terminals act upon (`bad-text`).
    """
    if len(text) > LONGEST_NAME // 4 and (size := len(text.encode(errors="replace"))) > LONGEST_NAME:
        raise FrameError(f"The {what} has {size} bytes; the limit is {LONGEST_NAME}", code=if_long)
    if (why := refusal(text)) is not None:
        raise FrameError(
            f"The {what} {text[:40]!a} is not accepted: {why}",
            code="bad-text",
            remedy="Let the sender use printable characters only: no control characters, line breaks or bidirectional overrides.",
        )
    return text


def mime(content_type: str) -> str:
    """Return a content type without parameters, in lower case: `Audio/L16; rate=8000` → `audio/l16`."""
    if ";" in content_type:
        content_type = content_type.split(";", 1)[0]
    return content_type.strip().lower()


def mime_parameters(content_type: str) -> dict[str, str]:
    """Return the parameters of a content type: `audio/l16; rate=8000` → `{"rate": "8000"}`."""
    parameters = {}
    for part in content_type.split(";")[1:]:
        name, _, value = part.partition("=")
        parameters[name.strip().lower()] = value.strip().strip('"')
    return parameters


def stated_meta(content_type: str) -> dict[str, str]:
    """Return the parameters of a content type that become a frame's meta: a sampling rate, and a number of channels."""
    parameters = mime_parameters(content_type) if ";" in content_type else {}
    return {name: parameters[name] for name in _META_PARAMETERS if name in parameters}


def is_plain(text: str) -> bool:
    """Whether a text may be a number to all: Python also reads 1_000 and digits of other scripts."""
    return text.isascii() and "_" not in text


def timestamp(text: str) -> float:
    """Parse RFC 3339 (`2026-05-04T12:00:00Z`), or a number of Unix seconds, into Unix seconds.

    Raises: FrameError: it is neither; or it is 0, which is the time of a clock that is not set.
    """
    if COMPACT_DATE.fullmatch(text):
        raise FrameError(f"{text!r} is a date without an offset from UTC", code="bad-time", remedy=_TIME_REMEDY)
    if not is_plain(text):
        raise FrameError(f"{text[:40]!r} is not a time", code="bad-time", remedy=_TIME_REMEDY)
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
            value = moment.timestamp()
        except (ValueError, OverflowError, OSError) as error:
            raise FrameError(f"{text[:40]!r} is not a time", code="bad-time", remedy=_TIME_REMEDY) from error
        if moment.tzinfo is None:  # Python would take this machine's time zone
            raise FrameError(
                f"{text[:40]!r} is a time without an offset from UTC", code="bad-time", remedy=_TIME_REMEDY
            ) from None
    if abs(value) < _UNSET_S:  # 0 stands for no time in a frame
        raise FrameError(
            f"{text[:40]!r} is the beginning of 1970: the sender's clock is not set",
            code="bad-time",
            remedy="Set the sensor's clock; or let it send no time, and the node takes that of the frame's arrival.",
        )
    if abs(value) < _SECONDS_END:
        return value
    unit, divisor = next(((unit, size) for unit, size in _FINER if abs(value) < _SECONDS_END * size), ("", 0.0))
    if not unit:  # NaN and infinity too
        raise FrameError(f"{text[:40]!r} is not a time", code="bad-time", remedy=_TIME_REMEDY)
    raise FrameError(
        f"{text[:40]!r} is a time in {unit}, not in seconds",
        code="bad-time",
        remedy=f"Send Unix seconds, {value / divisor:.3f}; or RFC 3339 with an offset.",
    )


_TIME_REMEDY: Final = "Use RFC 3339 with an offset, or Unix seconds."
_UNSET_S: Final = 0.001
_SECONDS_END: Final = 1e11
"""Seconds up to here reach the year 5138; milliseconds from here on begin in 1973."""
_FINER: Final = (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))


def pack_envelope(
    payload: Buffer,
    *,
    content_type: str,
    id: str | None = None,
    stream: str | None = None,
    captured_at: float | None = None,
    sequence: int | None = None,
) -> bytes:
    """Pack a frame into an envelope, for senders without MQTT 5 properties."""
    fields = {
        "id": id,
        "stream": stream,
        "captured_at": captured_at,
        "sequence": sequence,
        "content_type": content_type,
        "payload": bytes(payload),
    }
    packed: bytes = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    return packed


def open_envelope(frame: Frame) -> Frame:
    """Unpack a frame from its envelope; its stream stays as it is, since `StreamKey` has read it.

    Raises: FrameError: it is not an envelope, or a field has the wrong type or is not accepted.
    """
    body = decode_msgpack(frame.payload)
    if not isinstance(body, dict) or not isinstance(body.get("payload"), bytes):
        raise FrameError(
            "The envelope is not a map with a binary `payload`", code="bad-envelope", remedy=_ENVELOPE_REMEDY
        )
    unknown = body.keys() - _ENVELOPE_KEYS
    if unknown:
        raise FrameError(
            f"The envelope has unknown fields {sorted(map(str, unknown))[:5]}",
            code="bad-envelope",
            remedy=_ENVELOPE_REMEDY,
        )
    for key, kinds in (
        ("id", str),
        ("stream", str),
        ("content_type", str),
        ("traceparent", str),
        ("captured_at", (int, float)),
        ("sequence", int),
    ):
        if key in body and (not isinstance(body[key], kinds) or isinstance(body[key], bool)):
            raise FrameError(
                f"The envelope's {key} is a {type(body[key]).__name__}", code="bad-envelope", remedy=_ENVELOPE_REMEDY
            )
    stated = accepted("envelope's content type", body.get("content_type", ""), if_long="bad-envelope")
    opened = frame.with_payload(body["payload"], mime(stated))
    opened.meta = stated_meta(stated)
    opened.id = accepted("envelope's id", body.get("id") or frame.id, if_long="bad-envelope")
    opened.captured_at = timestamp(str(body["captured_at"])) if "captured_at" in body else frame.captured_at
    opened.sequence = body.get("sequence", frame.sequence)
    opened.traceparent = body.get("traceparent", frame.traceparent)
    return opened


_ENVELOPE_REMEDY: Final = f"An envelope is a MessagePack map of {', '.join(sorted(_ENVELOPE_KEYS))}."


def parse_npy(payload: Buffer, max_bytes: int) -> Array:
    """Decode numpy's .npy format (NEP 1): numbers only, never pickled objects.

    Args:
        payload: the bytes; the array is a view of them, unless their byte order is another.
        max_bytes: largest array accepted.
    Raises: FrameError: it is not .npy, contains objects, is truncated or too large.
    """
    stream = io.BytesIO(memoryview(payload)[:16_384])
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=10_000)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        EOFError,
        RecursionError,
        MemoryError,
        TokenError,
        struct.error,
    ) as error:
        raise FrameError(f"Not an .npy array: {error}", code="bad-npy") from error
    if dtype.kind not in _DTYPES or dtype.hasobject or any(type(side) is not int or side < 0 for side in shape):
        raise FrameError(
            f"An .npy array of {dtype} is not accepted", code="bad-npy", remedy="Send numbers or booleans."
        )
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size > max_bytes:
        raise FrameError(f"The array has {size} bytes, more than {max_bytes}", code="array-too-large")
    start = stream.tell()
    if len(payload) - start != size:
        raise FrameError(
            f"The array needs {size} bytes, the payload has {len(payload) - start}", code="truncated-array"
        )
    try:
        flat = np.frombuffer(payload, dtype=dtype, count=count, offset=start)
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
    except (ValueError, OverflowError) as error:  # with a side of 0, the others may have any length
        raise FrameError(f"Not an .npy array: {error}", code="bad-npy") from error
