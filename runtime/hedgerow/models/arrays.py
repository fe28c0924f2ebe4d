"""Arrays by name in .npz files whose bytes depend on nothing but the arrays."""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

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
    """Read arrays; nothing in the file is run, and no more memory is taken than it says truly that it needs.

    Raises: BadArrays: it cannot be read, holds something else, or unpacks to more than `LARGEST_ARRAYS`.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > LARGEST_ARRAYS or len(entries) > _MOST_ARRAYS:
                raise BadArrays(
                    f"{path} unpacks to {size:,} bytes in {len(entries):,} arrays; {LARGEST_ARRAYS:,} in {_MOST_ARRAYS:,} "
                    "may be",
                    remedy="Give fewer or smaller arrays.",
                )
            return {entry.filename.removesuffix(".npy"): _read(file, entry) for entry in entries}
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
            f"{path} holds no arrays that can be read: {error}", remedy="Save them with `numpy.savez`, without objects."
        ) from error


def _read(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """One array. numpy would make room for whatever an array's head says before it looks at what follows."""
    with file.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read_head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_head:
            raise ValueError(f"{entry.filename} is of version {version}")
        shape, fortran, dtype = read_head[version](stream)
        if dtype.hasobject or dtype.kind not in _KINDS:
            raise ValueError(f"{entry.filename} holds {dtype} values")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{entry.filename} is said to be {dtype}{list(shape)}, and is not")
        array = np.empty(math.prod(shape), dtype)
        room, at = array.view(np.uint8), 0
        while piece := stream.read(min(_READ_BYTES, room.size - at)):
            room[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        if at < room.size:
            raise EOFError(f"{entry.filename} is cut short")
        if stream.read(1):  # the checksum is looked at where the end is met
            raise ValueError(f"{entry.filename} is longer than it says")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
