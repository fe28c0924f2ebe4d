"""Arrays in files: by name in .npz files whose bytes depend on nothing but the arrays, alone in .npy files."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np

from hedgerow.errors import ModelError
from hedgerow.frame import Array

LARGEST_ARRAYS: Final = 1 << 30
"""Bytes that the arrays of one file may have in memory."""

_MOST_ARRAYS: Final = 1024
_KINDS: Final = "biufc"
"""What arrays may hold: booleans and numbers."""

_READ_BYTES: Final = 1 << 20

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class BadArrays(ModelError):
    """A file does not hold arrays that can be used."""

    code = "bad-arrays"


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays, in the order of their names and without a time.

    Raises: BadArrays: one holds objects, such as texts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, array in sorted(arrays.items()):
            if array.dtype.hasobject:
                raise BadArrays(
                    f"{name} holds {array.dtype} values, which are not kept",
                    remedy="Export the model with tensors of numbers in and out.",
                )
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=array.nbytes > 1 << 30) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read arrays of an .npz file; nothing in it is run, and memory is taken for what is really there.

    Raises: BadArrays: it cannot be read, holds something else, or unpacks to more than `LARGEST_ARRAYS`.
    """
    with _refusing(path), zipfile.ZipFile(path) as file:
        entries = file.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > LARGEST_ARRAYS or len(entries) > _MOST_ARRAYS:
            raise BadArrays(
                f"{path} unpacks to {size:,} bytes in {len(entries):,} arrays; {LARGEST_ARRAYS:,} in {_MOST_ARRAYS:,} may be",
                remedy="Give fewer or smaller arrays.",
            )
        arrays = {}
        for entry in entries:
            with file.open(entry) as stream:
                arrays[entry.filename.removesuffix(".npy")] = _read(stream, entry.file_size)
        return arrays


def read_array(path: Path) -> Array:
    """Read the array of an .npy file, likewise. Raises: BadArrays."""
    with _refusing(path), path.open("rb") as stream:
        return _read(stream, path.stat().st_size)


def _read(stream: IO[bytes], size: int) -> Array:
    """One array. numpy would make room for whatever an array's head says before it looks at what follows."""
    version = np.lib.format.read_magic(stream)
    read_head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_head:
        raise ValueError(f"an array of version {version}")
    shape, fortran, dtype = read_head[version](stream)
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype} values")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"an array is said to be {dtype}{list(shape)}, and is not")
    array = np.empty(math.prod(shape), dtype)
    room, at = array.view(np.uint8), 0
    while piece := stream.read(min(_READ_BYTES, room.size - at)):
        room[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    # The checksum of a packed array is looked at where its end is met.
    if at < room.size or stream.read(1):
        raise EOFError("an array is not as long as it says")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Make all that readers of arrays raise one error of ours."""
    try:
        yield
    except (
        OSError,
        ValueError,
        OverflowError,
        EOFError,
        RuntimeError,  # what is encrypted
        NotImplementedError,
        SyntaxError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise BadArrays(
            f"{path} holds no arrays that can be read: {error}",
            remedy="Save them with `numpy.savez` or `numpy.save`, without objects.",
        ) from error
