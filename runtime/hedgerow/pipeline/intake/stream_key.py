"""Tells the streams of a pipeline apart."""

from __future__ import annotations

from typing import Any

from hedgerow.bus.message import Message
from hedgerow.config import PipelineConfig
from hedgerow.errors import FrameError
from hedgerow.wire.codec import (
    ENVELOPE,
    LONGEST_NAME,
    mime,
    parse_json,
    parse_msgpack,
)


class StreamKey:
    """Tells streams apart, as the pipeline's `stream:` says."""

    def __init__(self, config: PipelineConfig) -> None:
        self._by = config.stream.by
        self._level = config.stream.level or 0
        self._field = config.stream.field or ""
        self._content_type = config.content_type or ""

    def __call__(self, message: Message) -> str:
        """The stream a message belongs to.

        Raises: FrameError: the topic has no such level, or the payload no such field, or too long a name in it.
        """
        if self._by == "topic":
            said = message.properties.content_type
            if (mime(said) if said else self._content_type) == ENVELOPE:
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
            raise FrameError(f"The payload has no field {self._field!r} to tell streams by", code="no-stream-key")
        return _short(key)


def _short(key: str) -> str:
    if len(key) > LONGEST_NAME:
        raise FrameError(
            f"The stream's name has {len(key)} characters, more than {LONGEST_NAME}", code="long-stream-name"
        )
    return key


def _field(body: Any, name: str) -> str | None:
    value = body.get(name) if isinstance(body, dict) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
