"""Assigns messages to streams."""

from __future__ import annotations

from typing import Any

from hedgerow.bus.message import Message
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError
from hedgerow.wire.codec import ENVELOPE, LONGEST_NAME, mime, parse_json, parse_msgpack


class StreamKey:
    """Assigns messages to streams as the pipeline's `stream:` section configures."""

    def __init__(self, config: PipelineConfig) -> None:
        self._by = config.stream.by
        self._level = config.stream.level or 0
        self._field = config.stream.field or ""
        self._content_type = config.content_type or ""

    def __call__(self, message: Message) -> str:
        """Return the stream of a message.

        Raises: FrameError: the topic lacks the level, the payload lacks the field, or the name is too long.
        """
        if self._by == "topic":
            stated = message.properties.content_type
            if (mime(stated) if stated else self._content_type) == ENVELOPE:
                return _short(_field(parse_msgpack(message.payload), "stream") or message.topic)
            return message.topic
        if self._by == "level":
            levels = message.topic.split("/")
            if self._level >= len(levels):
                raise FrameError(f"{message.topic!r} has no level {self._level}", code="no-stream-key")
            return levels[self._level]
        kind = mime(message.properties.content_type or "") or self._content_type
        key = _field((parse_msgpack if "msgpack" in kind else parse_json)(message.payload), self._field)
        if key is None:
            raise FrameError(f"The payload has no field {self._field!r} to identify its stream", code="no-stream-key")
        return _short(key)


def _short(key: str) -> str:
    if len(key) > LONGEST_NAME:
        raise FrameError(
            f"The stream name has {len(key)} characters; the limit is {LONGEST_NAME}", code="long-stream-name"
        )
    return key


def _field(body: Any, name: str) -> str | None:
    value = body.get(name) if isinstance(body, dict) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
