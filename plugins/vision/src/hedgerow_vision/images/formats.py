"""File formats of pictures: recognises them, and reads what must be known before decoding. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Final

from hedgerow import FrameError
from hedgerow.frame import Buffer
from hedgerow.wire.document import decode_json, field
from hedgerow.wire.values import MissingValue

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"

_KNOWN: Final = (
    (rb"GIF8", "GIF"),
    (rb"BM", "BMP"),
    (rb"II\*\0|MM\0\*", "TIFF"),
    (rb"....ftyp(heic|heix|mif1|msf1|avif|avis)", "HEIF or AVIF"),
    (rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL", "JPEG XL"),
    (rb"\0\0\0?\x01", "raw H.264 or H.265 video"),
    (rb"....ftyp", "MP4 video"),
    (rb"\x1f\x8b", "gzip"),
    (rb"\s*[{\[]", "JSON"),
    (rb"\s*(/9j/|iVBORw0KGgo|UklGR|data:image)", "a picture in base64"),
    (rb"--", "a part of a multipart stream (MJPEG over HTTP)"),
    (rb"\s*<", "HTML or XML"),
)
_MOST_SEGMENTS: Final = 1000
_APP1: Final = 0xE1
_START_OF_SCAN: Final = 0xDA
_SEQUENTIAL: Final = (0xC0, 0xC1)


def describe(payload: Buffer) -> str:
    """Return the name of a format that is no picture here; empty: not known."""
    head = bytes(payload[:32])
    return next((name for pattern, name in _KNOWN if re.match(pattern, head, re.DOTALL)), "")


def jpeg_exif(payload: Buffer) -> bytes:
    """Return the EXIF data of a JPEG; empty: it has none."""
    for marker, start, end in _segments(payload):
        if marker == _APP1 and bytes(payload[start : start + 6]) == b"Exif\0\0":
            return bytes(payload[start:end])
    return b""


def jpeg_is_single_scan(payload: Buffer) -> bool:
    """Whether one scan holds all of a JPEG, so that none can be missing at its end: baseline, colours interleaved."""
    components = 0
    for marker, start, end in _segments(payload):
        if marker in _SEQUENTIAL and end - start > 5:
            components = payload[start + 5]
        if marker == _START_OF_SCAN and end > start:
            return components > 0 and payload[start] == components
    return False


def webp_size(payload: Buffer) -> tuple[int, int] | None:
    """Return a WebP's width and height; None: it is no WebP, or its header is damaged."""
    head = bytes(payload[:30])
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", head[26:30])
    return (width & 0x3FFF, height & 0x3FFF) if head[12:16] == b"VP8 " else None


def base64_field(payload: Buffer, name: str) -> bytes:
    """Return the bytes in a field of a JSON object, by name or path, in base64 or as a data URL.

    Raises: FrameError: bad-image: there are none; or as `decode_json`.
    """
    try:
        text = field(decode_json(payload, [json.dumps(part).encode() for part in (name, *name.split("."))]), name)
        _, comma, encoded = text.partition(",") if text.startswith("data:") else ("", ",", text)
        if comma:
            return base64.b64decode("".join(encoded.split()), validate=True)
        reason = "its data URL has no comma"
    except MissingValue as error:
        if error.code == "duplicate-field":
            raise
        reason = str(error)
    except (TypeError, AttributeError):
        reason = "it is no text"
    except (FrameError, binascii.Error, ValueError) as error:
        reason = str(error)
    raise FrameError(
        f"There is no picture in base64 in field {name!r} of a JSON object ({len(payload)} bytes): {reason}",
        code="bad-image",
        remedy="Correct `json_field` of `decode`, or check what the sensor sends.",
    )


def _segments(payload: Buffer) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the segments of a JPEG before its first scan, which is the last."""
    return islice(_all_segments(payload), _MOST_SEGMENTS)


def _all_segments(payload: Buffer) -> Iterator[tuple[int, int, int]]:
    at = 2
    while at + 4 <= len(payload) and payload[at] == 0xFF:
        marker = payload[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        end = at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        yield marker, at + 4, end
        if marker == _START_OF_SCAN:
            return
        at = end
