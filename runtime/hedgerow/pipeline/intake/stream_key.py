"""Assigns messages to streams."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack
import orjson

from hedgerow.bus.message import Message
from hedgerow.config import PipelineConfig, StreamSection
from hedgerow.errors import FrameError
from hedgerow.frame import Buffer
from hedgerow.topics import without_group
from hedgerow.wire.codec import ENVELOPE, accepted, mime
from hedgerow.wire.document import decode_json, decode_msgpack

_WINDOW: Final = 4096
"""Bytes at either end of a larger payload that are searched for the key: this runs on the event loop."""
_MEMBERS: Final = 64
"""Members of a large MessagePack map that are looked at."""
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length of binary data and texts, by MessagePack's first byte."""
_BRACKET: Final = re.compile(rb"[\[\]{}]")


class StreamKey:
    """Assigns messages to streams as the pipeline's `stream:` section configures.

    A broker decides who may publish on a topic; nobody decides what a payload names. So a stream that a payload names belongs
    to the topic it came on: it is `TOPIC#NAME`, which no other topic can be, nor lead to (`#` is in no topic's name). Only if
    the pipeline has a single topic, or `across_topics` allows it, it is `NAME`.

    Nor does a level alone say whose it is, if those before it may differ: a sensor that may publish on `plant/s1/#` would name
    the stream of `plant/s2/door` as `plant/s1/door`. So the levels before it belong to the name, unless they are the same in all
    topics of the pipeline, or `across_topics` allows it.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self._by = config.stream.by
        self._level = config.stream.level or 0
        self._field = config.stream.field or ""
        self._content_type = mime(config.content_type or "")
        self._across_topics = config.stream.across_topics or single_topic(config.subscribe)
        bare = config.stream.across_topics or _begin_alike(config.subscribe, self._level)
        self._first_level = self._level if bare else 0

    def __call__(self, message: Message) -> str:
        """Return the stream of a message.

        Raises: FrameError: the topic lacks the level, the payload lacks the field, or the name is not accepted.
        """
        if self._by == "topic":
            stated = message.properties.content_type
            if (mime(stated) if stated else self._content_type) == ENVELOPE:
                key = _msgpack_field(message.payload, "stream")
                return self._named(key, message.topic) if key else message.topic
            return message.topic
        if self._by == "level":
            levels = message.topic.split("/")
            if self._level >= len(levels):
                raise FrameError(f"{message.topic!r} has no level {self._level}", code="no-stream-key")
            return "/".join(levels[self._first_level : self._level + 1])
        kind = mime(message.properties.content_type or "") or self._content_type
        find = _msgpack_field if "msgpack" in kind else _json_field
        key = find(message.payload, self._field)
        if key is None:
            raise FrameError(f"The payload has no field {self._field!r} to identify its stream", code="no-stream-key")
        return self._named(key, message.topic)

    def _named(self, key: str, topic: str) -> str:
        accepted("stream name", key, if_long="long-stream-name")
        return key if self._across_topics or key == topic else f"{topic}#{key}"


def sensor_topic(topic: str, stream: StreamSection) -> str:
    """Return the topic, up to the level that names its stream: a sensor may invent the levels below."""
    return topic if stream.by != "level" else "/".join(topic.split("/")[: (stream.level or 0) + 1])


def single_topic(filters: Sequence[str]) -> bool:
    """Whether filters match no more than one topic."""
    topics = {without_group(each) for each in filters}
    return len(topics) == 1 and not any("+" in each or "#" in each for each in topics)


def _begin_alike(filters: Sequence[str], levels: int) -> bool:
    """Whether all topics that filters match have the same first levels."""
    beginnings = {tuple(without_group(each).split("/")[:levels]) for each in filters}
    return len(beginnings) == 1 and not any(level in ("+", "#") for level in next(iter(beginnings)))


def _json_field(payload: Buffer, name: str) -> str | None:
    """Return a field of a JSON map, as text.

    Of a large payload, only the members in front of its first list or map and behind its last one are decoded, if the field
    is among these.
    """
    quoted = (orjson.dumps(name),)
    if len(payload) > _WINDOW:
        try:
            ends = [_front(bytes(payload[:_WINDOW])), _back(bytes(payload[-_WINDOW:]))]
            keys = {_key(decode_json(end, quoted), name) for end in ends if end} - {None}
            if len(keys) == 1:
                return keys.pop()
        except FrameError:
            pass  # an end was cut within a text, or it is not JSON
    return _key(decode_json(payload, quoted), name)


def _front(window: bytes) -> bytes:
    """Return a map of the members in front of the first list or map; b"" if there are none.

    A bracket or a comma within a text cuts this text, so that the result is not JSON.
    """
    if not window.lstrip().startswith(b"{"):
        return b""
    start = window.find(b"{") + 1
    nested = _BRACKET.search(window, start)
    end = window.rfind(b",", start, nested.start() if nested else len(window))
    return b"{" + window[start:end] + b"}" if end > 0 else b""


def _back(window: bytes) -> bytes:
    """Return a map of the members behind the last list or map; b"" if there are none.

    A bracket or a comma within a text leaves an odd number of quotation marks behind it, so that the result is not JSON.
    """
    if not window.rstrip().endswith(b"}"):
        return b""
    end = window.rfind(b"}")
    inner = max(window.rfind(bracket, 0, end) for bracket in (b"[", b"]", b"{", b"}"))
    start = window.find(b",", inner + 1, end) + 1
    return b"{" + window[start:end] + b"}" if start else b""


def _msgpack_field(payload: Buffer, name: str) -> str | None:
    """Return a field of a MessagePack map, as text; of a large one without decoding texts and binary data beside it."""
    if len(payload) > _WINDOW:
        view = memoryview(payload)
        try:
            count, at = _at(view, 0, msgpack.Unpacker.read_map_header)
            for _ in range(min(count, _MEMBERS)):
                key, at = _at(view, at, msgpack.Unpacker.unpack)
                if key == name:
                    return _text(_at(view, at, msgpack.Unpacker.unpack)[0])
                at = _behind(view, at)
            if count <= _MEMBERS:
                return None
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
            pass  # longer than the window, or not MessagePack
    return _key(decode_msgpack(payload), name)


def _at(view: memoryview, at: int, read: Callable[[msgpack.Unpacker], Any]) -> tuple[Any, int]:
    """Return what is at a position, and the position behind it."""
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=_WINDOW)
    unpacker.feed(view[at : at + _WINDOW])
    return read(unpacker), at + unpacker.tell()


def _behind(view: memoryview, at: int) -> int:
    """Return the position behind a value; texts and binary data say how long they are."""
    size = _LENGTHS.get(view[at]) if at < len(view) else None
    if size is None:
        return _at(view, at, msgpack.Unpacker.skip)[1]
    return at + 1 + size + int.from_bytes(view[at + 1 : at + 1 + size], "big")


def _key(body: Any, name: str) -> str | None:
    return _text(body.get(name)) if isinstance(body, dict) else None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
