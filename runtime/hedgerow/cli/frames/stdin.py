"""Reads stdin as frames: pictures, arrays or lines of JSON one after another, a recording, or anything else as one frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import numpy as np
import orjson

from hedgerow.errors import ConfigError
from hedgerow.wire.codec import NPY
from hedgerow.wire.messages import JSON

Payload = tuple[bytes, str]
"""A frame's payload and its content type."""

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_NPY: Final = b"\x93NUMPY"
_START: Final = 0xD8
_END: Final = 0xD9
_START_OF_SCAN: Final = 0xDA
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length: TEM, RST0 to RST7, SOI."""
_IN_SCAN: Final = frozenset({0x00, *range(0xD0, 0xD8)})
"""Bytes that may follow 0xFF within a scan: a stuffed zero, RST0 to RST7."""
_LARGEST: Final = 256 << 20
"""An MQTT payload holds no more, so neither does a frame."""
_READ_BYTES: Final = 1 << 16
_REMEDY: Final = "Give the files by name, or set --content-type to send all of stdin unchanged, as one frame."


class Stdin:
    """A stream of bytes that can be looked at before they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting = bytearray()
        self._at = 0

    @property
    def is_recording(self) -> bool:
        """Whether it begins like a WAV file."""
        begin = self.peek(12)
        return begin[:4] == b"RIFF" and begin[8:] == b"WAVE"

    def peek(self, size: int) -> bytes:
        """Return the next bytes without reading them; fewer only at the end."""
        while len(self._waiting) - self._at < size and self._more():
            pass
        return bytes(self._waiting[self._at : self._at + size])

    def read(self, size: int = -1) -> bytes:
        """Read bytes, all that are left by default; fewer than `size` only at the end."""
        content = self.peek(_LARGEST + 1 if size < 0 else size)
        self._at += len(content)
        return content

    def read_up_to(self, byte: int) -> bytes:
        """Read all bytes before the next one of this value, or to the end."""
        start = self._at
        while (found := self._waiting.find(byte, start)) < 0:
            start = len(self._waiting) - self._at
            if not self._more():
                return self.read()
        return self.read(found - self._at)

    def _more(self) -> bool:
        del self._waiting[: self._at]
        self._at = 0
        read1: Callable[[int], bytes] = getattr(self._stream, "read1", self._stream.read)
        content = read1(_READ_BYTES)
        self._waiting += content
        return bool(content)


def read_payloads(stdin: Stdin) -> Iterator[Payload]:
    """Yield the payloads in stdin, each as soon as it is complete.

    Raises: ConfigError: a picture or an array ends early, or is followed by something else.
    """
    begin = stdin.peek(8)
    if _reader(begin) is not None:
        yield from _repeated(stdin)
    elif begin:
        yield from _text(stdin)


def _reader(begin: bytes) -> Callable[[Stdin], Payload] | None:
    if begin.startswith(_JPEG):
        return _jpeg
    if begin.startswith(_PNG):
        return _png
    if begin.startswith(_NPY):
        return _array
    return None


def _repeated(stdin: Stdin) -> Iterator[Payload]:
    count = 0
    while begin := stdin.peek(8):
        read = _reader(begin)
        if read is None:
            raise ConfigError(f"Frame {count} in stdin is followed by something else: {begin!r}", remedy=_REMEDY)
        count += 1
        try:
            yield read(stdin)
        except (EOFError, ValueError) as error:
            raise ConfigError(f"Frame {count} in stdin is damaged: {error}", remedy=_REMEDY) from error
        while stdin.peek(1) in (b"\r", b"\n"):  # programs separate pictures by a line break
            stdin.read(1)


def _exactly(stdin: Stdin, size: int) -> bytes:
    if size > _LARGEST:
        raise ValueError(f"it has a part of {size:,} bytes")
    if len(content := stdin.read(size)) < size:
        raise EOFError("it ends early")
    return content


def _jpeg(stdin: Stdin) -> Payload:
    """Read a JPEG file (ITU-T T.81, §B.1): segments, which have a length, and scans, which end at the next marker.

    A file without its last marker is yielded as it is: whether that is a picture is for the node to decide.
    """
    content = bytearray(_exactly(stdin, 2))
    while len(content) <= _LARGEST:
        if (first := _exactly(stdin, 1)[0]) != 0xFF:
            raise ValueError(f"it has 0x{first:02x} in place of a JPEG marker")
        while (kind := _exactly(stdin, 1)[0]) == 0xFF:  # fill bytes
            pass
        content += bytes((0xFF, kind))
        if kind == _END:
            return bytes(content), "image/jpeg"
        if kind in _WITHOUT_LENGTH:
            continue
        length = _exactly(stdin, 2)
        content += length + _exactly(stdin, max(0, int.from_bytes(length) - 2))
        if kind == _START_OF_SCAN and not _scan(stdin, content):
            return bytes(content), "image/jpeg"
    raise ValueError(f"it is larger than {_LARGEST:,} bytes")


def _scan(stdin: Stdin, content: bytearray) -> bool:
    """Append the data of a scan. Returns: whether a marker of the same file follows."""
    while len(content) <= _LARGEST:
        content += stdin.read_up_to(0xFF)
        pair = stdin.peek(2)
        if len(pair) < 2:
            content += stdin.read()
            return False
        if pair[1] not in _IN_SCAN:
            return pair[1] != _START
        content += stdin.read(2)
    return True


def _png(stdin: Stdin) -> Payload:
    """Read a PNG file (ISO/IEC 15948, §5): a signature and chunks, the last of which is IEND."""
    content = bytearray(_exactly(stdin, len(_PNG)))
    while len(content) <= _LARGEST:
        header = _exactly(stdin, 8)
        content += header + _exactly(stdin, int.from_bytes(header[:4]) + 4)
        if header[4:] == b"IEND":
            return bytes(content), "image/png"
    raise ValueError(f"it is larger than {_LARGEST:,} bytes")


def _array(stdin: Stdin) -> Payload:
    copy = _Copy(stdin)
    np.lib.format.read_array(copy, allow_pickle=False)  # raises ValueError if it ends early
    return bytes(copy.content), NPY


class _Copy(io.RawIOBase):
    """Keeps what is read."""

    def __init__(self, stdin: Stdin) -> None:
        self._stdin = stdin
        self.content = bytearray()

    def read(self, size: int = -1) -> bytes:
        content = self._stdin.read(size)
        self.content += content
        return content


def _text(stdin: Stdin) -> Iterator[Payload]:
    """Yield lines of JSON, or everything as one payload."""
    first = stdin.read_up_to(0x0A)
    if not _is_json(first):
        content = first + stdin.read()
        yield content, JSON if _is_json(content) else "application/octet-stream"
        return
    number, line = 1, first
    while True:
        if line.strip():
            if not _is_json(line):
                raise ConfigError(f"Line {number} in stdin is not JSON, as line 1 is", remedy=_REMEDY)
            yield line.strip(), JSON
        if not stdin.read(1):
            return
        number, line = number + 1, stdin.read_up_to(0x0A)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
