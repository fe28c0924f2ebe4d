"""How files are cut into chunks: the one place that decides it.

Rules:
- A cut depends on the bytes around it and on nothing else, so that two versions of a file share their chunks again
  behind a place where they differ, also where one has gained or lost some bytes there. Measured on ten ONNX models of 0.6
  to 11 MB whose exporter's name, which stands in front, got longer: cuts at fixed places share nothing, these 50 to 98 %,
  the more the larger the file. Where nothing moves, both share the same.
- A chunk fits into one MQTT message with room for its head.
- Who receives a file needs none of this: its manifest says where the cuts are.

Where to cut is decided by a gear hash with two masks, as FastCDC does (Xia et al., USENIX ATC 2016): cuts are rare before
the usual size and frequent behind it, which keeps most chunks near it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hedgerow.frame import Buffer
from hedgerow.models.bundle.manifest import Chunk, File, digest_of

CHUNK_BYTES: Final = 256 * 1024
"""Most bytes of a chunk."""

_LEAST: Final = CHUNK_BYTES // 4
_USUAL: Final = CHUNK_BYTES // 2
_STRIDE: Final = 16 * 1024
"""Bytes looked at together; what is made of them fits into a processor's cache."""
# The high bits of a gear hash depend on the most bytes, so the masks look at those.
_RARE: Final = np.uint32(0xFFFFC000)  # once in 256 KiB
_FREQUENT: Final = np.uint32(0xFFFC0000)  # once in 16 KiB
_REACH: Final = 32
"""Bytes that a hash of 32 bits depends on."""

_GEAR: Final = np.frombuffer(hashlib.shake_128(b"hedgerow.chunks/1").digest(1024), "<u4").astype(np.uint32)


def chunk_file(path: Path) -> tuple[Chunk, ...]:
    """The chunks of a file, in order; together they are the file."""
    return tuple(Chunk(digest=digest_of(piece), size=len(piece)) for piece in pieces(path))


def describe_file(path: Path, inside: str, progress: Callable[[int], None] | None = None) -> File:
    """A file as a manifest lists it; it is read once.

    Args:
        inside: its path in the bundle.
        progress: told of bytes that were read.
    """
    whole, chunks = hashlib.sha256(), []
    for piece in pieces(path):
        whole.update(piece)
        chunks.append(Chunk(digest=digest_of(piece), size=len(piece)))
        if progress is not None:
            progress(len(piece))
    size = sum(chunk.size for chunk in chunks)
    return File(path=inside, size=size, digest=f"sha256:{whole.hexdigest()}", chunks=tuple(chunks))


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content, chunk by chunk; no more than a chunk is in memory."""
    with path.open("rb") as file:
        ahead = b""
        while ahead := ahead + file.read(CHUNK_BYTES - len(ahead)):
            size = cut(ahead)
            yield ahead[:size]
            ahead = ahead[size:]


def cut(content: Buffer) -> int:
    """Where the first chunk ends in some bytes that begin with it: all there are to the end, or `CHUNK_BYTES`."""
    if len(content) <= _LEAST:
        return len(content)
    data = np.frombuffer(content, np.uint8, count=min(len(content), CHUNK_BYTES))
    for begin in range(_LEAST, len(data), _STRIDE):
        hashes = _hashes(data[begin - _REACH : begin + _STRIDE])[_REACH:]
        found = np.flatnonzero((hashes & (_RARE if begin < _USUAL else _FREQUENT)) == 0)
        if found.size:
            return begin + int(found[0]) + 1
    return len(data)


def _hashes(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The gear hash behind every byte: h = 2·h + gear[byte], of the last 32 bytes.

    Hashes of 1 byte make those of 2, which make those of 4, and so on: five passes instead of a loop over bytes.
    """
    hashes = _GEAR[data]
    span = 1
    while span < _REACH:
        longer = hashes.copy()
        longer[span:] += hashes[:-span] << np.uint32(span)
        hashes, span = longer, 2 * span
    return hashes
