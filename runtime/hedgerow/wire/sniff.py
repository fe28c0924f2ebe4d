"""Names payloads that are not what they should be, by how they begin."""

from __future__ import annotations

from typing import Final

from hedgerow.errors import FrameError
from hedgerow.frame import Buffer

_LONGEST: Final = 16

_PICTURE: Final = "Use `decode` instead of `parse`."
_SOUND: Final = "Use `pcm16` with WAV or raw samples; convert other sound at the sender."
_UNPACKED: Final = "Send it uncompressed."
_SUPPORTED: Final = "Send .npy, JSON, MessagePack, CSV or raw numbers."

_MAGIC: Final = (
    (b"\x1f\x8b", "gzip data", _UNPACKED),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", _UNPACKED),
    (b"\x04\x22\x4d\x18", "LZ4 data", _UNPACKED),
    (b"BZh", "bzip2 data", _UNPACKED),
    (b"\xfd7zXZ\x00", "xz data", _UNPACKED),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy data", _UNPACKED),
    (b"PK\x03\x04", "a ZIP archive", _UNPACKED),
    (b"\x78\x01", "zlib data", _UNPACKED),
    (b"\x78\x9c", "zlib data", _UNPACKED),
    (b"\x78\xda", "zlib data", _UNPACKED),
    (b"\xff\xd8\xff", "a JPEG picture", _PICTURE),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", _PICTURE),
    (b"GIF8", "a GIF picture", "Send JPEG or PNG, and use `decode`."),
    (b"OggS", "Ogg sound", _SOUND),
    (b"fLaC", "FLAC sound", _SOUND),
    (b"ID3\x02", "MP3 sound", _SOUND),
    (b"ID3\x03", "MP3 sound", _SOUND),
    (b"ID3\x04", "MP3 sound", _SOUND),
    (b"RIFX", "big-endian WAV sound", _SOUND),
    (b"caff\x00\x01", "Core Audio sound", _SOUND),
    (b"#!AMR", "AMR sound", _SOUND),
    (b"\x1aE\xdf\xa3", "Matroska or WebM", _SOUND),
    (b".snd", "Sun audio", _SOUND),
    (b"\x93NUMPY", "an .npy array", "Set its content type, `application/x-npy`, or `format: npy`."),
    (b"\x89HDF", "an HDF5 file", _SUPPORTED),
    (b"PAR1\x15", "a Parquet file", _SUPPORTED),
    (b"Obj\x01", "an Avro file", _SUPPORTED),
    (b"\xd9\xd9\xf7", "CBOR", _SUPPORTED),
    (b"%PDF", "a PDF file", _SUPPORTED),
    (b"\xff\xfe", "UTF-16 text", "Send it as UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Send it as UTF-8."),
    (b"<?xml", "XML", _SUPPORTED),
    (b"<!DOCTYPE", "HTML", _SUPPORTED),
    (b"<html", "HTML", _SUPPORTED),
)


def payload_kind(payload: Buffer, topic: str = "") -> tuple[str, str] | None:
    """Return what a payload is, with an article where it needs one, and what to do; None if that is not known."""
    head = bytes(payload[:_LONGEST])
    if _is_sparkplug(head) or (topic.startswith("spBv1.0/") and not head.startswith((b"{", b"["))):
        return (
            "Sparkplug B (protobuf)",
            "Sparkplug B is not read yet: publish plain JSON or MessagePack from the gateway.",
        )
    if head.startswith(b"RIFF"):
        kind = bytes(payload[8:12])
        if kind == b"WEBP":
            return "a WebP picture", "Send JPEG or PNG, and use `decode`."
        return ("WAV sound", "Use `pcm16` instead of `parse`.") if kind == b"WAVE" else ("a RIFF file", _SUPPORTED)
    if head.startswith(b"FORM") and bytes(payload[8:12]) in (b"AIFF", b"AIFC"):
        return "AIFF sound", _SOUND
    return next(((name, remedy) for magic, name, remedy in _MAGIC if head.startswith(magic)), None)


def explained(error: FrameError, payload: Buffer, topic: str = "") -> FrameError | None:
    """Return an error about a payload that could not be read, which also says what the payload is, or how it begins.

    None: it is text, which shows in the dead letter.
    """
    kind = payload_kind(payload, topic)
    head = bytes(payload[:8])
    if kind is not None:
        said = f"{error}: the payload is {kind[0]} (it begins {head.hex(' ')})"
        return FrameError(said, code=error.code, remedy=kind[1])
    if head.isascii() and head.decode().isprintable():
        return None
    return FrameError(f"{error}; the payload begins {head.hex(' ')}", code=error.code, remedy=error.remedy)


def _is_sparkplug(head: bytes) -> bool:
    """Whether it begins as Sparkplug B's protobuf: field 1, a time of six bytes, then field 2, a metric, or field 3."""
    return len(head) > 8 and head[0] == 0x08 and all(byte & 0x80 for byte in head[1:6]) and head[7] in (0x12, 0x18)
