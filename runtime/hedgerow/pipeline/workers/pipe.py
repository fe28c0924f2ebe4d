"""What crosses the pipe between the node and a worker: MessagePack; nothing is pickled."""

from __future__ import annotations

from typing import Any

import msgpack


def pack(value: Any) -> bytes:
    """For the pipe."""
    packed: bytes = msgpack.packb(value, default=str)
    return packed


def unpack(data: bytes) -> Any:
    """From the pipe."""
    return msgpack.unpackb(data, strict_map_key=False)
