"""Arrays by name in .npz files whose bytes depend on nothing but the arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from hedgerow.errors import ModelError
from hedgerow.frame import Array

LARGEST_ARRAYS: Final = 1 << 30
"""Bytes that the arrays of one file may have in memory."""

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
    """Read arrays; nothing in the file is run.

    Raises: BadArrays: it cannot be read, holds something else, or unpacks to more than `LARGEST_ARRAYS`.
    """
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > LARGEST_ARRAYS:
            raise BadArrays(
                f"{path} unpacks to {size:,} bytes, more than {LARGEST_ARRAYS:,}",
                remedy="Give fewer or smaller arrays.",
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BadArrays(
            f"{path} holds no arrays that can be read: {error}", remedy="Save them with `numpy.savez`, without objects."
        ) from error
