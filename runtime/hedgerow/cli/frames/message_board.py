"""Parses messages for `hedgerow watch`, and counts them by stream on a board. Pure: no broker, no terminal."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from hedgerow import topics
from hedgerow.cli.base.console import size
from hedgerow.errors import FrameError
from hedgerow.topics import Channel
from hedgerow.wire.codec import mime, timestamp
from hedgerow.wire.messages import JSON, MSGPACK, Health, decode_payload

WINDOW_S: Final = 10.0
"""Period over which rates and latencies are computed."""

_MAX_SAMPLES: Final = 2000
_MAX_STREAMS: Final = 1000
_MAX_NODES: Final = 1000
"""Above, those silent for longest are forgotten: whoever sends can invent names."""
_DEEPEST: Final = 8
_TIME_KEYS: Final = frozenset({"at", "start", "end", "captured_at"})


@dataclass(frozen=True, slots=True)
class WatchedMessage:
    """A received message.

    Attributes:
        channel: its kind; None: the topic is not one of Hedgerow's.
        node: the address of the node that sent it; "" on a foreign topic.
        pipeline: the pipeline it concerns; "" if none.
        stream: the stream it concerns; on a foreign topic, the topic.
        received_at, produced_at, captured_at: when it was received here, produced by the node, and captured by the sensor:
            Unix seconds, or None.
        text: a summary in one line.
        body: its content.
    """

    topic: str
    channel: Channel | None
    node: str
    pipeline: str
    stream: str
    received_at: float
    produced_at: float | None
    captured_at: float | None
    text: str
    body: Any

    def latency_ms(self) -> float | None:
        """Return the time from capture to result."""
        return _ms(self.produced_at, self.captured_at)

    def arrival_ms(self) -> float | None:
        """Return the time from capture to reception here, which is meaningful only if both clocks agree."""
        return _ms(self.received_at, self.captured_at)

    def line(self) -> str:
        """Return the message as a line for reading."""
        kind = "" if self.channel in (Channel.RESULT, None) else str(self.channel)
        latency = "" if (ms := self.latency_ms()) is None else f"{ms:.1f} ms"
        return "  ".join(
            part
            for part in (_clock(self.received_at), self.node, self.pipeline, self.stream, kind, latency, self.text)
            if part
        )

    def record(self) -> dict[str, Any]:
        """Return the message as a mapping for JSON."""
        return {
            "topic": self.topic,
            "channel": self.channel,
            "received_at": self.received_at,
            "latency_ms": self.latency_ms(),
            "arrival_ms": self.arrival_ms(),
            "body": self.body,
        }


def _clock(seconds: float) -> str:
    """Format Unix seconds as local time with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03}"


def _ms(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else round((later - earlier) * 1e3, 3)


def parse_message(
    topic: str, payload: bytes, content_type: str, user_properties: Sequence[tuple[str, str]], received_at: float
) -> WatchedMessage | None:
    """Parse a message; return None if it is on one of Hedgerow's topics and cannot be decoded."""
    properties = dict(user_properties)
    parsed = topics.parse(topic)
    if parsed is None:
        text = f"{content_type or 'no content type'}, {size(len(payload))}"
        body = {"content_type": content_type, "payload_bytes": len(payload), "user_properties": properties}
        return WatchedMessage(topic, None, "", "", topic, received_at, None, _time(properties.get("time")), text, body)
    node = str(parsed.address)
    if mime(content_type) not in ("", JSON, MSGPACK):  # a result that is bytes is described by its properties
        text = f"{content_type}, {size(len(payload))}"
        body = {"content_type": content_type, "payload_bytes": len(payload), "user_properties": properties}
        stream, at = properties.get("subject", ""), _time(properties.get("time"))
        return WatchedMessage(topic, parsed.channel, node, parsed.pipeline, stream, received_at, at, None, text, body)
    try:
        body = decode_payload(payload, mime(content_type))
    except FrameError:
        return None
    if not isinstance(body, dict):
        return None
    frame = body.get("frame")
    frame = frame if isinstance(frame, dict) else {}
    pipeline = parsed.pipeline if parsed.channel in (Channel.RESULT, Channel.DEAD) else str(body.get("pipeline") or "")
    return WatchedMessage(
        topic,
        parsed.channel,
        node,
        pipeline,
        str(frame.get("stream", "")),
        received_at,
        _number(body.get("at")),
        _number(frame.get("captured_at")),
        _text(parsed.channel, parsed.tail, body),
        body,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _time(text: str | None) -> float | None:
    try:
        return None if text is None else timestamp(text)
    except FrameError:
        return None


def _text(channel: Channel, tail: str, body: Mapping[str, Any]) -> str:
    if channel is Channel.RESULT:
        return summarise(body.get("result"))
    if channel is Channel.DEAD:
        return f"{body.get('reason')}: {body.get('message')}"
    if channel is Channel.EVENT:
        return f"{tail} {summarise(body.get('detail'))}".rstrip()
    if channel is Channel.STATUS:
        reason = body.get("reason")
        return f"{body.get('state')}{f' ({reason})' if reason else ''}, version {body.get('version')}"
    if channel is Channel.HEALTH:
        reasons = body["reasons"] if isinstance(body.get("reasons"), list) else []
        return f"{body.get('state')}{': ' if reasons else ''}{'; '.join(map(str, reasons))}"
    return summarise(body)


def summarise(value: Any, width: int = 72) -> str:
    """Summarise a result: labels counted, texts quoted, numbers rounded, times in local time, the rest omitted.

    >>> summarise({"detections": [{"label": "face", "score": 0.9}, {"label": "face", "score": 0.6}]})
    '2 face'
    """
    text = _brief(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _brief(value: Any, depth: int = 0) -> str:
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        parts = [
            (str(key), _clock(item) if _is_time(key, item) else _brief(item, depth + 1)) for key, item in value.items()
        ]
        # A list of findings needs no key.
        named = [text if _is_findings(value[key]) else f"{key} {text}" for key, text in parts if key in value]
        joined = ", ".join(text for text in named if text)
        return f"({joined})" if depth > 1 else joined
    if isinstance(value, (list, tuple)):
        if not _is_findings(value):
            return f"[{len(value)}]" if value else "none"
        texts = [repr(item["text"]) for item in value if "text" in item]
        labels = Counter(str(item["label"]) for item in value if "text" not in item)
        return ", ".join([*texts, *(label if count == 1 else f"{count} {label}" for label, count in labels.items())])
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _is_time(key: Any, value: Any) -> bool:
    """Return whether a value is Unix seconds between 2001 and 2286; smaller ones may count from anything."""
    return key in _TIME_KEYS and isinstance(value, (int, float)) and 1e9 < value < 1e10


def _is_findings(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, dict) and ("label" in item or "text" in item) for item in value)
    )


class Quantiles(NamedTuple):
    """Median and 99th percentile in milliseconds."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p99:.1f}"


@dataclass(slots=True)
class StreamCount:
    """Counters of one stream.

    Attributes:
        last: the newest message.
        results: results received so far.
        dead: dead letters received so far.
        recent: messages of the last `WINDOW_S`.
    """

    last: WatchedMessage
    results: int = 0
    dead: int = 0
    recent: deque[WatchedMessage] = field(default_factory=lambda: deque(maxlen=_MAX_SAMPLES))

    def rate(self, now: float) -> float:
        """Return results per second, over the last `WINDOW_S`."""
        self._expire(now)
        if len(self.recent) < 2:
            return 0.0
        span = max(now - self.recent[0].received_at, 1.0)
        return len(self.recent) / span

    def latency(self) -> Quantiles | None:
        """Return the recent times from capture to result."""
        return _quantiles([message.latency_ms() for message in self.recent])

    def arrival(self) -> Quantiles | None:
        """Return the recent times from capture to reception here."""
        return _quantiles([message.arrival_ms() for message in self.recent])

    def _expire(self, now: float) -> None:
        while self.recent and self.recent[0].received_at < now - WINDOW_S:
            self.recent.popleft()


def _quantiles(values: Sequence[float | None]) -> Quantiles | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return Quantiles(known[(len(known) - 1) // 2], known[min(len(known) - 1, int(0.99 * len(known)))])


class Board:
    """Messages received so far, counted by stream and node.

    Attributes:
        streams: counters by node, pipeline and stream; of the last ones.
        nodes: the newest health report of each node; of the last ones.
        news: the newest events, dead letters and changes of status.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str, str], StreamCount] = {}
        self.nodes: dict[str, Health] = {}
        self.news: deque[WatchedMessage] = deque(maxlen=6)

    def add(self, message: WatchedMessage) -> None:
        """Count a message."""
        if message.channel is Channel.HEALTH:
            with suppress(ValidationError):  # anyone may publish there
                health = Health.model_validate(message.body)
                self.nodes.pop(message.node, None)
                self.nodes[message.node] = health
                if len(self.nodes) > _MAX_NODES:
                    del self.nodes[next(iter(self.nodes))]
        elif message.channel in (Channel.RESULT, Channel.DEAD, None):
            key = (message.node, message.pipeline, message.stream)
            message = replace(message, body=None)  # it may be large, and is not shown
            count = self.streams.pop(key, None) or StreamCount(message)
            self.streams[key] = count
            if len(self.streams) > _MAX_STREAMS:
                del self.streams[next(iter(self.streams))]
            if message.channel is Channel.DEAD:
                count.dead += 1
                self.news.append(message)
            else:
                count.results += 1
                count.last = message
                count.recent.append(message)
        else:
            self.news.append(replace(message, body=None))
