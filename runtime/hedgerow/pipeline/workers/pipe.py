"""Encoding for the pipe between the node and a worker: MessagePack; nothing is pickled."""

from __future__ import annotations

from typing import Any

import msgpack


def pack(value: Any) -> bytes:
    """Encode a message for the pipe."""
    packed: bytes = msgpack.packb(value, default=str)
    return packed


def unpack(data: bytes) -> Any:
    """Decode a message from the pipe."""
    return msgpack.unpackb(data, strict_map_key=False)
