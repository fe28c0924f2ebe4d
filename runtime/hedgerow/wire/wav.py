"""Reads WAV: PCM of 8 to 32 bits and floats, also with the header of a stream whose length was not known when it was written.

Sources: IBM and Microsoft, "Multimedia Programming Interface and Data Specifications 1.0", 1991; Microsoft, "Multiple channel
audio data and WAVE files" (WAVE_FORMAT_EXTENSIBLE); EBU Tech 3306 (RF64).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from hedgerow.errors import FrameError
from hedgerow.frame import Array, Buffer

RIFFS: Final = (b"RIFF", b"RF64", b"BW64")
"""How a WAV file begins."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CODECS: Final = {
    2: "ADPCM",
    6: "A-law",
    7: "µ-law",
    0x11: "IMA ADPCM",
    0x31: "GSM 6.10",
    0x50: "MPEG",
    0x55: "MP3",
    0xFF: "AAC",
}
_KSDATAFORMAT: Final = bytes.fromhex("000000001000800000aa00389b71")
_UNKNOWN_SIZE: Final = 0x7FFF_0000
"""Writers to a pipe put 0 for the size of the samples, 2³² - 1 (FFmpeg), or something just below or above 2³¹ (SoX, arecord)."""
_REMEDY: Final = "Send WAV with PCM of 8, 16, 24 or 32 bits or with floats, or raw samples as audio/pcm."


@dataclass(frozen=True, slots=True)
class Wav:
    """A WAV file.

    Attributes:
        rate: samples a second.
        channels: number of channels.
        bits: of a sample: 8 (unsigned), 16, 24 or 32; or 32 or 64 if `floats`.
        floats: whether samples are floats.
        data: the samples, little-endian, channels interleaved: whole frames, at least one.
    """

    rate: int
    channels: int
    bits: int
    floats: bool
    data: memoryview

    def samples(self) -> Array:
        """Return the samples: float32 (frames, channels), full scale is -1..1."""
        if self.floats:
            with np.errstate(over="ignore"):
                samples = np.frombuffer(self.data, f"<f{self.bits // 8}").astype(np.float32)
        elif self.bits == 8:
            samples = (np.frombuffer(self.data, np.uint8).astype(np.float32) - 128) / np.float32(128)
        elif self.bits == 24:
            wide = np.zeros((len(self.data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(self.data, np.uint8).reshape(-1, 3)
            samples = wide.view("<i4")[:, 0] * np.float32(2**-31)
        else:
            samples = np.frombuffer(self.data, f"<i{self.bits // 8}") * np.float32(2.0 ** (1 - self.bits))
        return samples.astype(np.float32, copy=False).reshape(-1, self.channels)

    def file(self, data: Buffer) -> bytes:
        """Return a WAV file of the same format with other samples."""
        width = self.channels * self.bits // 8
        tag = _FLOAT if self.floats else _PCM
        form = struct.pack("<HHIIHH", tag, self.channels, self.rate, self.rate * width, width, self.bits)
        body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + bytes(data)
        body += bytes(len(data) % 2)
        return b"RIFF" + struct.pack("<I", len(body)) + body


def parse_wav(payload: Buffer) -> Wav:
    """Read a WAV file.

    Raises: FrameError: it is not WAV, has another codec or no samples (`bad-wav`), or is cut off (`truncated-samples`).
    """
    view = memoryview(payload)
    if bytes(view[:4]) not in RIFFS or bytes(view[8:12]) != b"WAVE":
        raise _bad(f"it begins {bytes(view[:12]).hex(' ')}")
    form: tuple[int, int, int, int, bool] | None = None
    found: tuple[int, int] | None = None
    size_64: int | None = None
    for name, start, size in _chunks(view):
        if name == b"ds64" and start + 16 <= len(view):
            size_64 = struct.unpack_from("<Q", view, start + 8)[0]
        elif name == b"fmt " and form is None:
            form = _format(bytes(view[start : start + size]))
        elif name == b"data":
            if found is not None:
                raise _bad("it has more than one block of samples")
            found = start, size_64 if size == 0xFFFF_FFFF and size_64 is not None else size
    if form is None or found is None:
        raise _bad("it has no format" if form is None else "it has no samples")
    rate, channels, width, bits, floats = form
    start, size = found
    rest = len(view) - start
    if (size == 0 and not _is_chunks(view, start)) or size >= _UNKNOWN_SIZE:
        size = rest
    if size == 0:
        raise _bad("it has no samples")
    if size > rest or size % width:
        raise FrameError(
            f"The WAV file has {rest} of its {size} bytes of samples"
            if size > rest
            else f"{size} bytes are not a whole number of samples of {width} bytes ({channels} channels of {bits} bits)",
            code="truncated-samples",
            remedy="Check that the sensor sends whole files.",
        )
    return Wav(rate, channels, bits, floats, view[start : start + size])


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and size of each chunk; the last one may be cut off."""
    at = 12
    while at + 8 <= len(view):
        name, size = struct.unpack_from("<4sI", view, at)
        yield name, at + 8, size
        at += 8 + size + size % 2
        if name == b"data" and (size == 0 or size >= _UNKNOWN_SIZE):
            return


def _is_chunks(view: memoryview, at: int) -> bool:
    """Whether nothing but whole chunks, or nothing at all, follows: the samples are then really empty."""
    while at + 8 <= len(view):
        name, size = struct.unpack_from("<4sI", view, at)
        if not (name.isalnum() or name.strip().isalnum()) or not name.isascii():
            return False
        at += 8 + size + size % 2
    return len(view) <= at <= len(view) + 1


def _format(chunk: bytes) -> tuple[int, int, int, int, bool]:
    """Return rate, channels, bytes of one sample of all channels, bits of one sample, and whether these are floats."""
    if len(chunk) < 16:
        raise _bad("its format is cut off")
    tag, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _KSDATAFORMAT:
            raise _bad(f"its samples are of an unknown kind ({chunk[24:40].hex(' ') or 'cut off'})")
        tag = struct.unpack_from("<H", chunk, 24)[0]
    if tag not in (_PCM, _FLOAT):
        raise _bad(f"its samples are {_CODECS.get(tag, 'of an unknown codec')} (format {tag:#x})")
    if bits not in ((32, 64) if tag == _FLOAT else (8, 16, 24, 32)):
        raise _bad(f"its samples are {'floats' if tag == _FLOAT else 'PCM'} of {bits} bits")
    if not channels or width != channels * bits // 8:
        raise _bad(f"{channels} channels of {bits} bits do not fit its {width} bytes a sample")
    return rate, channels, width, bits, tag == _FLOAT


def _bad(why: str) -> FrameError:
    return FrameError(f"Not a WAV file that can be read: {why}", code="bad-wav", remedy=_REMEDY)
