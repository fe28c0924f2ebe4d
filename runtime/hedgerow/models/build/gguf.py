"""Reader of GGUF headers. Of the weights, it checks only that they lie inside the file.

ggml's `docs/gguf.md` describes the format: magic, version, counts, typed key-value pairs, then name, dimensions, type and
offset of each tensor. Sizes in the header are checked against the file's size: a library that maps the file into memory
and trusts a forged header would read beyond its end.
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
"""Weights and bytes per block, by ggml type; for other types only the offset is checked."""

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
"""Precision of most weights, by `general.file_type`."""


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a GGUF file.

    Attributes:
        version: version of the format.
        tensors: number of tensors.
        metadata: keys and values; lists, such as a vocabulary, are replaced by their length, as text.
    """

    version: int
    tensors: int
    metadata: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """Precision of most weights: fp16, q4_k_m …"""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "mixed")


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises: ModelUnreadable: the file is not GGUF, is truncated, or its header is invalid.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(4) != b"GGUF":
                raise ValueError("it does not start with GGUF")
            version, tensors, keys = _read(file, "I"), _read(file, "Q"), _read(file, "Q")
            if version not in (2, 3) or keys > _MOST_KEYS or tensors > _MOST_TENSORS:
                raise ValueError(f"version {version} with {keys:,} keys and {tensors:,} tensors is not supported")
            metadata = {}
            for _ in range(keys):
                key = _text(file)
                metadata[key] = _value(file, _read(file, "I"), size)
            _check_tensors(file, tensors, metadata.get("general.alignment", _ALIGNMENT), size)
            return Header(version, tensors, metadata)
    except struct.error as error:
        raise _unreadable(path, "it is truncated") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ModelUnreadable:
    return ModelUnreadable(
        f"{path.name} is not a readable GGUF file: {why}",
        remedy="Copy the file again, or convert it with a newer llama.cpp.",
    )


def _check_tensors(file: BinaryIO, tensors: int, alignment: Any, size: int) -> None:
    """Raise ValueError unless all tensors lie inside the file."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment}, not a power of two")
    ends: list[tuple[int, str]] = []
    for _ in range(tensors):
        name, dimensions = _text(file), _read(file, "I")
        if dimensions > _MOST_DIMS:
            raise ValueError(f"a tensor has {dimensions:,} dimensions, more than {_MOST_DIMS}")
        weights = math.prod(_read(file, "Q") for _ in range(dimensions))
        kind, offset = _read(file, "I"), _read(file, "Q")
        block, length = _SIZES.get(kind, (1, 0))
        ends.append((offset + weights // block * length, name))
    start = -(-file.tell() // alignment) * alignment
    end, name = max(ends, default=(0, ""))
    if tensors and start + end > size:
        raise ValueError(f"its tensor {name!r:.80} would end at byte {start + end:,}, but the file has {size:,} bytes")


def _read(file: BinaryIO, kind: str) -> Any:
    layout = struct.Struct(f"<{kind}")
    return layout.unpack(file.read(layout.size))[0]


def _text(file: BinaryIO) -> str:
    length = _read(file, "Q")
    if length > _LONGEST:
        raise ValueError(f"a string has {length:,} bytes, more than {_LONGEST:,}")
    content = file.read(length)
    if len(content) < length:
        raise ValueError("it is truncated")
    return content.decode()


def _skip(file: BinaryIO, length: int, size: int) -> None:
    if length > size - file.tell():
        raise ValueError(f"a value of {length:,} bytes goes beyond the end of the file")
    file.seek(length, 1)


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind in _SCALARS:
        return _read(file, _SCALARS[kind])
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise ValueError(f"a value has the unknown type {kind}")
    inside, count = _read(file, "I"), _read(file, "Q")
    if count > _LONGEST:
        raise ValueError(f"a list has {count:,} values, more than {_LONGEST:,}")
    if inside in _SCALARS:
        _skip(file, count * struct.calcsize(f"<{_SCALARS[inside]}"), size)
    elif inside == _STRING:
        for _ in range(count):
            _skip(file, _read(file, "Q"), size)
    else:
        raise ValueError(f"a list has values of the unsupported type {inside}")
    return f"{count:,} values"
