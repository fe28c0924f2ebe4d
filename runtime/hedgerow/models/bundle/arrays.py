"""Reads and writes arrays: reproducible .npz files with named arrays, and .npy files with one array."""

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
"""Largest size in memory of the arrays of one file, in bytes."""

_MOST_ARRAYS: Final = 1024
_KINDS: Final = "biufc"
"""Supported kinds of dtypes: booleans and numbers."""

_READ_BYTES: Final = 1 << 20

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


class BadArrays(ModelError):
    """A file has no usable arrays."""

    code = "bad-arrays"


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an .npz file, ordered by name and without timestamps.

    Raises: BadArrays: an array has objects, such as strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, array in sorted(arrays.items()):
            if array.dtype.hasobject:
                raise BadArrays(
                    f"{name} has {array.dtype} values, which cannot be stored",
                    remedy="Export the model with numeric tensors as inputs and outputs.",
                )
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=array.nbytes > 1 << 30) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read the arrays of an .npz file, safely: runs no code, and allocates no more than the file's actual content.

    Raises: BadArrays: it cannot be read, has other content, or unpacks to more than `LARGEST_ARRAYS` bytes.
    """
    with _translated_errors(path), zipfile.ZipFile(path) as file:
        entries = file.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > LARGEST_ARRAYS or len(entries) > _MOST_ARRAYS:
            raise BadArrays(
                f"{path} unpacks to {size:,} bytes in {len(entries):,} arrays; "
                f"the limits are {LARGEST_ARRAYS:,} bytes and {_MOST_ARRAYS:,} arrays",
                remedy="Use fewer or smaller arrays.",
            )
        arrays = {}
        for entry in entries:
            with file.open(entry) as stream:
                arrays[entry.filename.removesuffix(".npy")] = _read(stream, entry.file_size)
        return arrays


def read_array(path: Path) -> Array:
    """Read the array of an .npy file, as safely as `read_arrays`. Raises: BadArrays."""
    with _translated_errors(path), path.open("rb") as stream:
        return _read(stream, path.stat().st_size)


def _read(stream: IO[bytes], size: int) -> Array:
    """Read one array. numpy would allocate whatever size the header states before it reads the data."""
    version = np.lib.format.read_magic(stream)
    read_head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_head:
        raise ValueError(f"an array has the unsupported format version {version}")
    shape, fortran, dtype = read_head[version](stream)
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise ValueError(f"an array has {dtype} values")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"an array's size does not match its header, {dtype}{list(shape)}")
    array = np.empty(math.prod(shape), dtype)
    buffer, at = array.view(np.uint8), 0
    while piece := stream.read(min(_READ_BYTES, buffer.size - at)):
        buffer[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    # zipfile verifies the checksum when it reaches the end of an entry.
    if at < buffer.size or stream.read(1):
        raise EOFError("an array's data does not match the size in its header")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """Translate all exceptions of array readers into BadArrays."""
    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,  # numpy, of a header with keys that are not texts
        OverflowError,
        EOFError,
        RuntimeError,  # an encrypted entry
        NotImplementedError,
        SyntaxError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise BadArrays(
            f"{path} has no readable arrays: {error}",
            remedy="Save them with `numpy.savez` or `numpy.save`, without objects.",
        ) from error
