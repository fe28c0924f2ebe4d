"""What a GGUF file says of itself: its head, and of its weights only that they are where it says.

The format is described in ggml's `docs/gguf.md`: magic, version, counts, keys with typed values, then for each tensor its
name, dimensions, type and place. Nothing that is said there is believed before the file is found to be as large: whoever
maps it into memory by a head that lies reads what is not there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from hedgerow.errors import ModelUnreadable

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST: Final = 1 << 24
_MOST_KEYS: Final = 4096
_MOST_TENSORS: Final = 1 << 16
_MOST_DIMS: Final = 4
_ALIGNMENT: Final = 32

_SIZES: Final = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    30: (1, 2),
}
"""Weights in a block and bytes of it, by ggml's type; of others only the place is looked at."""

_FILE_TYPES: Final = {
    0: "fp32",
    1: "fp16",
    2: "q4_0",
    3: "q4_1",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_k",
    11: "q3_k_s",
    12: "q3_k_m",
    13: "q3_k_l",
    14: "q4_k_s",
    15: "q4_k_m",
    16: "q5_k_s",
    17: "q5_k_m",
    18: "q6_k",
    32: "bf16",
}
"""`general.file_type`: what most of the weights are."""


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a GGUF file.

    Attributes:
        version: of the format.
        tensors: how many it has.
        metadata: keys and values; long lists, such as a vocabulary, are only counted.
    """

    version: int
    tensors: int
    metadata: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """What most of its weights are: fp16, q4_k_m …"""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "mixed")


def read_header(path: Path) -> Header:
    """Read a file's head.

    Raises: ModelUnreadable: it is no GGUF file, cut short, or says what cannot be.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, tensors, keys = _read(file, "I"), _read(file, "Q"), _read(file, "Q")
            if version not in (2, 3) or keys > _MOST_KEYS or tensors > _MOST_TENSORS:
                raise ValueError(f"version {version} with {keys:,} keys and {tensors:,} tensors")
            metadata = {}
            for _ in range(keys):
                key = _text(file)
                metadata[key] = _value(file, _read(file, "I"), size)
            _check_tensors(file, tensors, metadata.get("general.alignment", _ALIGNMENT), size)
            return Header(version, tensors, metadata)
    except struct.error as error:
        raise _unreadable(path, "it is cut short") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ModelUnreadable:
    return ModelUnreadable(
        f"{path.name} is no GGUF file that can be read: {why}",
        remedy="Copy the file again, or convert it with a newer llama.cpp.",
    )


def _check_tensors(file: BinaryIO, tensors: int, alignment: Any, size: int) -> None:
    """Whether all tensors are inside the file."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment}")
    ends: list[tuple[int, str]] = []
    for _ in range(tensors):
        name, dimensions = _text(file), _read(file, "I")
        if dimensions > _MOST_DIMS:
            raise ValueError(f"a tensor of {dimensions:,} dimensions")
        weights = math.prod(_read(file, "Q") for _ in range(dimensions))
        kind, offset = _read(file, "I"), _read(file, "Q")
        block, length = _SIZES.get(kind, (1, 0))
        ends.append((offset + weights // block * length, name))
    begin = -(-file.tell() // alignment) * alignment
    end, name = max(ends, default=(0, ""))
    if tensors and begin + end > size:
        raise ValueError(f"its tensor {name!r:.80} would end at byte {begin + end:,}, and the file has {size:,}")


def _read(file: BinaryIO, kind: str) -> Any:
    layout = struct.Struct(f"<{kind}")
    return layout.unpack(file.read(layout.size))[0]


def _text(file: BinaryIO) -> str:
    length = _read(file, "Q")
    if length > _LONGEST:
        raise ValueError(f"a text of {length:,} bytes")
    content = file.read(length)
    if len(content) < length:
        raise ValueError("it is cut short")
    return content.decode()


def _skip(file: BinaryIO, length: int, size: int) -> None:
    if length > size - file.tell():
        raise ValueError(f"a value of {length:,} bytes, which are not there")
    file.seek(length, 1)


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind in _SCALARS:
        return _read(file, _SCALARS[kind])
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise ValueError(f"a value of type {kind}")
    inside, count = _read(file, "I"), _read(file, "Q")
    if count > _LONGEST:
        raise ValueError(f"a list of {count:,}")
    if inside in _SCALARS:
        _skip(file, count * struct.calcsize(f"<{_SCALARS[inside]}"), size)
    elif inside == _STRING:
        for _ in range(count):
            _skip(file, _read(file, "Q"), size)
    else:
        raise ValueError(f"a list of type {inside}")
    return f"{count:,} values"
