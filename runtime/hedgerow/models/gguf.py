"""What a GGUF file says of itself: its head, and nothing of its weights.

The format is described in ggml's `docs/gguf.md`: magic, version, counts, then keys with typed values.
"""

from __future__ import annotations

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

    Raises: ModelUnreadable: it is no GGUF file, or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, tensors, keys = _read(file, "I"), _read(file, "Q"), _read(file, "Q")
            if version not in (2, 3) or keys > _MOST_KEYS:
                raise ValueError(f"version {version} with {keys:,} keys")
            metadata = {}
            for _ in range(keys):
                key = _text(file)
                metadata[key] = _value(file, _read(file, "I"))
            return Header(version, tensors, metadata)
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelUnreadable(
            f"{path.name} is no GGUF file that can be read: {error}",
            remedy="Copy the file again, or convert it with a newer llama.cpp.",
        ) from error


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


def _value(file: BinaryIO, kind: int) -> Any:
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
        file.seek(count * struct.calcsize(f"<{_SCALARS[inside]}"), 1)
    elif inside == _STRING:
        for _ in range(count):
            file.seek(_read(file, "Q"), 1)
    else:
        raise ValueError(f"a list of type {inside}")
    return f"{count:,} values"
