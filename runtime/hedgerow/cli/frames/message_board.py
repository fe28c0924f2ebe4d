"""What `hedgerow watch` sees: messages taken apart, and a board that keeps count of them. No broker, no terminal."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from hedgerow import topics
from hedgerow.cli.base.console import size
from hedgerow.errors import FrameError
from hedgerow.topics import Channel
from hedgerow.wire.codec import mime, timestamp
from hedgerow.wire.messages import JSON, MSGPACK, Health, decode_payload

WINDOW_S: Final = 10.0
"""Rates and latencies are those of this long."""

_MOST_SAMPLES: Final = 2000
_MOMENTS: Final = frozenset({"at", "start", "end", "captured_at"})


@dataclass(frozen=True, slots=True)
class WatchedMessage:
    """One message.

    Attributes:
        channel: what kind of message; None: a topic that is not ours.
        node: where it came from, "" if it is not ours.
        pipeline: which pipeline it is about, "" if none.
        stream: which stream it is about; the topic, if it is not ours.
        received_at, made_at, captured_at: when we got it, the node made it, the sensor took it: Unix seconds or None.
        text: what it says, in a line.
        body: what it says, all of it.
    """

    topic: str
    channel: Channel | None
    node: str
    pipeline: str
    stream: str
    received_at: float
    made_at: float | None
    captured_at: float | None
    text: str
    body: Any

    def latency_ms(self) -> float | None:
        """From capture to result."""
        return _ms(self.made_at, self.captured_at)

    def arrival_ms(self) -> float | None:
        """From capture to here; both clocks must agree for it to mean anything."""
        return _ms(self.received_at, self.captured_at)

    def line(self) -> str:
        """For reading."""
        kind = "" if self.channel in (Channel.RESULT, None) else str(self.channel)
        latency = "" if (ms := self.latency_ms()) is None else f"{ms:.1f} ms"
        return "  ".join(
            part
            for part in (_clock(self.received_at), self.node, self.pipeline, self.stream, kind, latency, self.text)
            if part
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "topic": self.topic,
            "channel": self.channel,
            "received_at": self.received_at,
            "latency_ms": self.latency_ms(),
            "arrival_ms": self.arrival_ms(),
            "body": self.body,
        }


def _clock(moment: float) -> str:
    """Unix seconds as local time, with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03}"


def _ms(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else round((later - earlier) * 1e3, 3)


def parse_message(
    topic: str, payload: bytes, content_type: str, user: Sequence[tuple[str, str]], received_at: float
) -> WatchedMessage | None:
    """Take a message apart.

    Args:
        user: its MQTT 5 user properties.
    Returns: None if it is on one of our topics and cannot be read.
    """
    said = dict(user)
    parsed = topics.parse(topic)
    if parsed is None:
        text = f"{content_type or 'no content type'}, {size(len(payload))}"
        body = {"content_type": content_type, "payload_bytes": len(payload), "user_properties": said}
        return WatchedMessage(topic, None, "", "", topic, received_at, None, _time(said.get("time")), text, body)
    node = str(parsed.address)
    if mime(content_type) not in ("", JSON, MSGPACK):  # a result that is bytes; what there is to say is beside it
        text = f"{content_type}, {size(len(payload))}"
        body = {"content_type": content_type, "payload_bytes": len(payload), "user_properties": said}
        stream, at = said.get("subject", ""), _time(said.get("time"))
        return WatchedMessage(topic, parsed.channel, node, parsed.pipeline, stream, received_at, at, None, text, body)
    try:
        body = decode_payload(payload, mime(content_type))
    except FrameError:
        return None
    if not isinstance(body, dict):
        return None
    told = body.get("frame")
    frame: Mapping[str, Any] = told if isinstance(told, dict) else {}
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
        told = body.get("reasons")
        reasons = told if isinstance(told, list) else []
        return f"{body.get('state')}{': ' if reasons else ''}{'; '.join(map(str, reasons))}"
    return summarise(body)


def summarise(value: Any, width: int = 72) -> str:
    """A result in a few words: labels counted, texts quoted, numbers rounded, moments as local time, the rest left out.

    >>> summarise({"detections": [{"label": "face", "score": 0.9}, {"label": "face", "score": 0.6}]})
    '2 face'
    """
    text = _brief(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _brief(value: Any, depth: int = 0) -> str:
    if isinstance(value, dict):
        parts = [
            (str(key), _clock(item) if _is_moment(key, item) else _brief(item, depth + 1))
            for key, item in value.items()
        ]
        # A list of things found says what it is by itself.
        named = [text if _found(value[key]) else f"{key} {text}" for key, text in parts if key in value]
        joined = ", ".join(text for text in named if text)
        return f"({joined})" if depth > 1 else joined
    if isinstance(value, (list, tuple)):
        if not _found(value):
            return f"[{len(value)}]" if value else "none"
        texts = [repr(item["text"]) for item in value if "text" in item]
        labels = Counter(str(item["label"]) for item in value if "text" not in item)
        return ", ".join([*texts, *(label if count == 1 else f"{count} {label}" for label, count in labels.items())])
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _is_moment(key: Any, value: Any) -> bool:
    """Whether a value is Unix seconds, of 2001 to 2286; smaller ones may be seconds since anything."""
    return key in _MOMENTS and isinstance(value, (int, float)) and 1e9 < value < 1e10


def _found(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, dict) and ("label" in item or "text" in item) for item in value)
    )


class Quantiles(NamedTuple):
    """Median and 99th percentile, milliseconds."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p99:.1f}"


@dataclass(slots=True)
class StreamCount:
    """One stream's line on the board.

    Attributes:
        results: how many came since the watch began.
        dead: how many of its frames died since.
        last: the newest sighting.
    """

    last: WatchedMessage
    results: int = 0
    dead: int = 0
    recent: deque[WatchedMessage] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))

    def rate(self, now: float) -> float:
        """Results a second, of late."""
        self._forget(now)
        if len(self.recent) < 2:
            return 0.0
        span = max(now - self.recent[0].received_at, 1.0)
        return len(self.recent) / span

    def latency(self) -> Quantiles | None:
        """From capture to result, of late."""
        return _quantiles([sighting.latency_ms() for sighting in self.recent])

    def arrival(self) -> Quantiles | None:
        """From capture to here, of late."""
        return _quantiles([sighting.arrival_ms() for sighting in self.recent])

    def _forget(self, now: float) -> None:
        while self.recent and self.recent[0].received_at < now - WINDOW_S:
            self.recent.popleft()


def _quantiles(values: Sequence[float | None]) -> Quantiles | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return Quantiles(known[(len(known) - 1) // 2], known[min(len(known) - 1, int(0.99 * len(known)))])


class Board:
    """Everything seen so far, by stream and by node.

    Attributes:
        streams: by node, pipeline and stream.
        nodes: newest health report of each node.
        news: the newest events, dead letters and changes of status.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str, str], StreamCount] = {}
        self.nodes: dict[str, Health] = {}
        self.news: deque[WatchedMessage] = deque(maxlen=6)

    def add(self, sighting: WatchedMessage) -> None:
        """Count a message."""
        if sighting.channel is Channel.HEALTH:
            with suppress(ValidationError):  # anybody may publish there
                self.nodes[sighting.node] = Health.model_validate(sighting.body)
        elif sighting.channel in (Channel.RESULT, Channel.DEAD, None):
            key = (sighting.node, sighting.pipeline, sighting.stream)
            count = self.streams.setdefault(key, StreamCount(sighting))
            if sighting.channel is Channel.DEAD:
                count.dead += 1
                self.news.append(sighting)
            else:
                count.results += 1
                count.last = sighting
                count.recent.append(sighting)
        else:
            self.news.append(sighting)
