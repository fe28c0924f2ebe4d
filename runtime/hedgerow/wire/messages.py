"""What Hedgerow publishes: results, dead letters, status, health, events, replies.

Rules:
- Every payload names its schema (`hedgerow.result/1`); a reader refuses what it does not know.
- What a receiver cannot do without is in the payload, since MQTT 3.1.1 readers see no properties.
- Results and events carry CloudEvents 1.0 attributes as MQTT 5 user properties (MQTT binding, binary mode).

Results and dead letters are built as plain mappings, because they are made once a frame. The rest are models.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgpack
import orjson
from pydantic import BaseModel, ConfigDict, Field

from hedgerow.errors import FrameError, HedgerowError

if TYPE_CHECKING:  # a region reads messages and has no frames, nor the arrays that come with them
    from hedgerow.frame import Buffer, Frame

RESULT_SCHEMA: Final = "hedgerow.result/1"
DEAD_SCHEMA: Final = "hedgerow.dead/1"
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
LARGEST_DEAD_PAYLOAD: Final = 1 << 20
"""Bytes of a dead frame's payload that go along with its dead letter; a larger one stays behind."""


class WireMessage(BaseModel):
    """Base of the messages that are models."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps(self.model_dump(exclude_none=True, by_alias=True), default=_plain, option=_ORJSON)


class Status(WireMessage):
    """Birth and death of a node; both carry the session's id, so a late will cannot bury a newer birth."""

    schema_: Literal["hedgerow.status/1"] = Field("hedgerow.status/1", alias="schema")
    state: Literal["online", "offline"]
    session: str
    node: str
    version: str
    at: float | None = Field(None, description="Unix seconds; a will has none.")
    reason: str | None = None


class PipelineHealth(WireMessage):
    """How one pipeline is doing. Counts are since the node's start: `received = out + dropped + dead + in_flight`."""

    state: Literal["loading", "running", "paused", "failed", "stopping"]
    received: int = 0
    bytes_in: int = Field(0, description="Payload bytes of them.")
    out: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    dead: dict[str, int] = Field(default_factory=dict)
    in_flight: int = 0
    queued: int = 0
    streams: int = 0
    results: int = 0
    rate: float = Field(0.0, description="Frames out a second since the last report.")
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    last_result_at: float | None = None
    models: list[str] = Field(default_factory=list)
    error: str | None = None
    remedy: str | None = None


class ModelHealth(WireMessage):
    """What a model provably runs as."""

    digest: str
    version: str | None = Field(
        None, description="Of the bundle that its file belongs to; none: a file of the node's own."
    )
    bundle: str | None = Field(None, description="Digest of that bundle's manifest.")
    backend: str
    device: str
    device_asked: str
    degraded: str | None = None
    inferences: int = 0
    frames: int = 0
    looked_at: int = Field(
        0, description="Frames of late whose values were looked at; 0: its bundle has no statistics, or it has none."
    )
    not_finite: int = Field(
        0, description="Those of them whose outputs hold NaN or infinity where its author's samples gave none."
    )
    drift: float | None = Field(
        None,
        description="How far the output that has moved most is from its author's samples, above what chance explains: "
        "population stability index of the last minute or two; none: not known.",
    )
    input_drift: float | None = Field(None, description="The same of what came in.")


class OutboxHealth(WireMessage):
    """How the node's outbox is doing."""

    epoch: str = Field("", description="Of its numbers; empty as long as it could not be opened.")
    entries: int = Field(0, description="Results and gaps that the region does not have.")
    used_bytes: int = 0
    max_bytes: int = 0
    under_way: int = Field(0, description="Sent to the region and not acknowledged by it.")
    lost: dict[str, int] = Field(default_factory=dict, description="Given up since the node's start, by reason.")
    failure: str | None = Field(None, description="Why nothing can be stored.")


class Health(WireMessage):
    """A node's periodic measure of itself."""

    schema_: Literal["hedgerow.health/1"] = Field("hedgerow.health/1", alias="schema")
    node: str
    session: str
    at: float
    uptime_s: float
    state: Literal["ok", "degraded", "failing"]
    reasons: list[str] = Field(default_factory=list)
    pipelines: dict[str, PipelineHealth] = Field(default_factory=dict)
    models: dict[str, ModelHealth] = Field(default_factory=dict)
    outbox: OutboxHealth | None = None
    memory_bytes: int = 0
    cpu_s: float = 0.0


class Event(WireMessage):
    """Something that happened."""

    schema_: Literal["hedgerow.event/1"] = Field("hedgerow.event/1", alias="schema")
    kind: str
    node: str
    session: str
    at: float
    pipeline: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


class ErrorBody(WireMessage):
    """An error as it crosses the wire."""

    code: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: HedgerowError) -> ErrorBody:
        """From one of our errors."""
        return cls(code=error.code, message=str(error), remedy=error.remedy)


class Reply(WireMessage):
    """The answer to a command."""

    schema_: Literal["hedgerow.reply/1"] = Field("hedgerow.reply/1", alias="schema")
    command: str
    node: str
    ok: bool
    value: Any = None
    error: ErrorBody | None = None


class Command(BaseModel):
    """What may stand in a command's payload; an empty payload is a command without arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: dict[str, Any] = Field(default_factory=dict)
    expires_at: float | None = Field(None, description="Unix seconds after which the command must not be carried out.")


_ORJSON: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_TRIES: Final = (
    orjson.OPT_SERIALIZE_NUMPY,  # looking for keys that are no texts costs more than all the rest
    _ORJSON,
    orjson.OPT_NON_STR_KEYS,  # orjson refuses some arrays, big-endian ones for instance, without asking `_plain`
)


def _plain(value: Any) -> Any:
    """Turn what an encoder does not know into what it does."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, BaseModel):
        return value.model_dump()

    import numpy as np  # see above

    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be published")


def encode_json(value: Any) -> bytes:
    """As JSON; numpy arrays become lists, bytes base64.

    Raises: FrameError: it holds something that has no JSON form.
    """
    refusal: Exception | None = None
    for option in _TRIES:
        try:
            return orjson.dumps(value, default=_plain, option=option)
        except (TypeError, RecursionError) as error:
            refusal = error
    assert refusal is not None  # noqa: S101 - or it had returned
    raise unserialisable(refusal) from refusal


def _plain_for_msgpack(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else _plain(value)


def encode_msgpack(value: Any) -> bytes:
    """As MessagePack; numpy arrays become lists, bytes stay bytes.

    Raises: FrameError: it holds something that has no MessagePack form.
    """
    try:
        packed: bytes = msgpack.packb(value, default=_plain_for_msgpack)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise unserialisable(error) from error
    return packed


def unserialisable(error: Exception) -> FrameError:
    """What an encoder's error means for a frame."""
    return FrameError(
        f"The result cannot be encoded: {error}",
        code="unserialisable-result",
        remedy="Let the last stage set a result of numbers, strings, lists, mappings or numpy values.",
    )


def result_body(frame: Frame, index: int, head: dict[str, Any], lineage: dict[str, Any], at: float) -> dict[str, Any]:
    """The payload of a result, before encoding.

    Args:
        index: which of the frame's results it is, from 0.
        head: what is the same for all results of a pipeline: schema, node, pipeline.
        lineage: how it was made.
        at: Unix seconds.
    """
    return {
        **head,
        "id": result_id(frame, index),
        "at": at,
        "frame": frame_body(frame),
        "result": result_of(frame),
        "lineage": lineage,
    }


def result_id(frame: Frame, index: int) -> str:
    """Identifies a result: the same for every delivery of the same frame, so that duplicates can be told."""
    return frame.id if index == 0 else f"{frame.id}/{index}"


def result_of(frame: Frame) -> Any:
    """What a frame that reached the end has to say: its result; else its tensors; else its meta."""
    if frame.result is not None:
        return frame.result
    return dict(frame.tensors) or dict(frame.meta)


def frame_body(frame: Frame) -> dict[str, Any]:
    """Which frame something came from."""
    return {
        "id": frame.id,
        "stream": frame.stream,
        "topic": frame.topic,
        "sequence": frame.sequence,
        "captured_at": frame.captured_at,
    }


def dead_letter(
    frame: Frame, error: HedgerowError, stage: str, head: dict[str, Any], payload_bytes: int | None = None
) -> bytes:
    """A dead letter: why a frame could not be processed, and the frame itself if it is not too large.

    Args:
        payload_bytes: how large the payload was, where it is not at hand any more.
    """
    size = len(frame.payload) if payload_bytes is None else payload_bytes
    body = {
        **head,
        "schema": DEAD_SCHEMA,
        "at": time.time(),
        "reason": clean(error.code),
        "message": clean(str(error), 10_000),
        "remedy": clean(error.remedy, 10_000),
        "stage": stage or None,
        "frame": frame_body(frame),
        "content_type": frame.content_type,
        "payload_bytes": size,
    }
    if 0 < len(frame.payload) <= LARGEST_DEAD_PAYLOAD and len(frame.payload) == size:
        body["payload_base64"] = base64.b64encode(frame.payload).decode()
    return encode_json(body)


def clean(text: str, longest: int = 200) -> str:
    """A text that any encoder takes: an error's words may come from anywhere, and must not stop its own report."""
    return str(text)[:longest].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def rfc3339(at: float) -> str:
    """Unix seconds as CloudEvents wants them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decode_payload(payload: Buffer, content_type: str) -> Any:
    """Read a result, reply or dead letter back: JSON, or MessagePack if its type says so.

    Raises: FrameError: it is neither.
    """
    try:
        if content_type == MSGPACK:
            return msgpack.unpackb(payload, strict_map_key=False)
        return orjson.loads(payload)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a map's key
        raise FrameError(f"Not a {content_type or JSON} payload: {error}", code="unreadable-payload") from error
