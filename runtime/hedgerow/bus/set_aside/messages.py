"""Messages over which the broker ends the link: set aside, so that those behind them flow on, and kept for an operator.

Each is a file of JSON in a folder: when, why, the topic, properties and payload. The folder is bounded; what finds it full is
told and counted, but not kept.
"""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson

from hedgerow.bus.outgoing import Outgoing
from hedgerow.bus.properties import MalformedPacket, decode_properties
from hedgerow.errors import BusError, HedgerowError
from hedgerow.text import visible

FOLDER: Final = "set-aside"
"""Name of the folder in a node's `state_dir`."""

_MOST_FILES: Final = 100
_MOST_BYTES: Final = 64 << 20


class MessageSetAside(BusError):
    """The broker ended the link twice over this message and no other.

    Args:
        cause: how the broker ended it.
        kept_as: file with the message; None: it was not kept.
    """

    code = "set-aside"

    def __init__(self, cause: HedgerowError, kept_as: Path | None) -> None:
        where = "; it is lost" if kept_as is None else f"; it is in {kept_as}"
        super().__init__(
            f"The broker ended the link each time it received this message, also when that was sent alone: {cause}{where}",
            remedy="Look for the reason in the broker's log: mostly a malformed string, or a message that is too large. Then "
            "publish it again in a form that the broker takes, and delete the file.",
        )


def keep(folder: Path | None, publish: Outgoing, cause: HedgerowError) -> Path | None:
    """Write a message to a file of the folder, readable by this user only.

    Returns: the file; None if there is no folder, it is full, or it cannot be written.
    """
    if folder is None:
        return None
    content = _describe(publish, cause)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sizes = [each.stat().st_size for each in folder.glob("*.json")]
        if len(sizes) >= _MOST_FILES or sum(sizes) + len(content) > _MOST_BYTES:
            return None
        path = folder / f"{time.time_ns()}.json"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return path
    return None


def count(folder: Path) -> int:
    """Return how many messages are kept in a folder."""
    with suppress(OSError):
        return sum(1 for _ in folder.glob("*.json"))
    return 0


def _describe(publish: Outgoing, cause: HedgerowError) -> bytes:
    raw = publish.raw_properties
    try:
        properties = [[kind.name, visible(str(value))] for kind, value in decode_properties(raw)]
    except MalformedPacket as error:
        properties = [["malformed", visible(str(error))]]
    return orjson.dumps(
        {
            "schema": "hedgerow.set-aside/1",
            "at": time.time(),
            "cause": str(cause),
            "topic": visible(publish.topic),
            "properties": properties,
            "properties_base64": base64.b64encode(raw).decode(),
            "payload_bytes": len(publish.payload),
            "payload_base64": base64.b64encode(publish.payload).decode(),
        },
        option=orjson.OPT_INDENT_2,
    )
