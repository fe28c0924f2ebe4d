"""Messages that Hedgerow publishes: results, dead letters, status, health, events, replies.

Rules:
- Every payload names its schema (`hedgerow.result/1`); readers refuse unknown ones.
- Everything essential is in the payload, since MQTT 3.1.1 clients receive no properties.
- Results and events carry CloudEvents 1.0 attributes as MQTT 5 user properties (MQTT binding, binary mode).

Results and dead letters are plain mappings, for speed: there is one per frame. The rest are models.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgpack
import orjson
from pydantic import BaseModel, ConfigDict, Field

from hedgerow.errors import LONGEST_TEXT, FrameError, HedgerowError, published, text_of
from hedgerow.text import visible, visible_lines
from hedgerow.wire.json_limits import clashing_key, not_finite
from hedgerow.wire.ranges import Count, Quantity, Seconds, UnixTime

if TYPE_CHECKING:  # not at run time: frames import numpy, which a region does not need
    from hedgerow.frame import Buffer, Frame

RESULT_SCHEMA: Final = "hedgerow.result/1"
DEAD_SCHEMA: Final = "hedgerow.dead/1"
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
NAME_NOTICE: Final = "name-in-use"
"""Name of the user property with a `NameNotice`."""
LARGEST_DEAD_PAYLOAD: Final = 1 << 20
"""Largest payload, in bytes, that a dead letter includes."""

_LONGEST_REASON: Final = 64


class WireMessage(BaseModel):
    """Base of the messages that are models."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        """Encode as JSON."""
        return orjson.dumps(self.model_dump(exclude_none=True, by_alias=True), default=plain, option=_ORJSON)


class Instance(WireMessage):
    """Where a run of a node takes place: hints, by which an operator finds the machine. `session` names the run.

    None of it proves anything: clones of a disk have all in common but perhaps the address, and a container has its own.
    """

    host: str = Field("", max_length=253, description="Name of the host.")
    address: str = Field("", max_length=64, description="The machine's own address on the link to its broker.")
    machine: str = Field("", max_length=64, description="Hash of the machine's id.")
    key: str = Field("", max_length=64, description="Hash of the public key of the certificate that it uses.")
    state: str = Field("", max_length=64, description="Hash of the random token in the state folder.")
    started_at: UnixTime | None = Field(None, description="Unix seconds.")


class NamedRun(WireMessage):
    """A run of a node, and where it takes place."""

    session: str = Field(max_length=64)
    instance: Instance = Field(default_factory=Instance)


class NameNotice(WireMessage):
    """The last two runs under one name that were alive at once, as the region tells them: a user property of a `ping`."""

    runs: list[NamedRun] = Field(max_length=2)

    def pair(self) -> tuple[str, str]:
        """Return the property."""
        return NAME_NOTICE, self.encode().decode()


class Status(WireMessage):
    """Birth and death of a node. Both carry the session's id, so that a late will does not override a newer birth."""

    schema_: Literal["hedgerow.status/1"] = Field("hedgerow.status/1", alias="schema")
    state: Literal["online", "offline"]
    session: str
    node: str
    version: str
    at: UnixTime | None = Field(None, description="Unix seconds; a will has none.")
    reason: str | None = None
    instance: Instance | None = None
    answers: str | None = Field(
        None, description="Session of another node of this name, to which this tells that this one runs too."
    )


class PipelineHealth(WireMessage):
    """Health of a pipeline. Counts are since the node started: `received = out + dropped + dead + in_flight`."""

    state: Literal["loading", "running", "paused", "failed", "stopping"]
    received: Count = 0
    bytes_in: Count = Field(0, description="Payload bytes received.")
    out: Count = 0
    dropped: dict[str, Count] = Field(default_factory=dict)
    dead: dict[str, Count] = Field(default_factory=dict)
    in_flight: Count = 0
    queued: Count = 0
    streams: Count = 0
    results: Count = 0
    rate: Quantity = Field(0.0, description="Frames out per second since the last report.")
    latency_p50_ms: Quantity | None = None
    latency_p99_ms: Quantity | None = None
    last_result_at: UnixTime | None = None
    models: list[str] = Field(default_factory=list)
    worker_memory_bytes: Count = Field(0, description="Resident memory of its workers.")
    most_lost: str | None = Field(
        None, description="Topic with the most frames dead-lettered or dropped under overload since the last report."
    )
    most_lost_frames: Count = Field(0, description="How many.")
    error: str | None = None
    remedy: str | None = None


class ModelHealth(WireMessage):
    """Health of a model: the file that runs, and where."""

    digest: str
    version: str | None = Field(None, description="Version of the bundle; absent for the node's own file.")
    bundle: str | None = Field(None, description="Digest of the bundle's manifest.")
    backend: str
    device: str
    device_asked: str
    degraded: str | None = None
    inferences: Count = 0
    frames: Count = 0
    looked_at: Count = Field(
        0, description="Recent frames whose values were examined; 0 if there is no bundle or it has no statistics."
    )
    not_finite: Count = Field(
        0, description="Frames among them with NaN or infinity in outputs where the author's samples had none."
    )
    drift: Quantity | None = Field(
        None,
        description="Drift of the output that differs most from the author's samples, beyond chance: population stability index "
        "over the last minute or two; absent: unknown.",
    )
    input_drift: Quantity | None = Field(None, description="Drift of the inputs, likewise.")


class RegionStoreHealth(WireMessage):
    """What a node's outbox knows of the region's store."""

    mark: str = Field(
        "",
        max_length=100,
        description="Which store it is, and its last restore; empty: none has acknowledged anything.",
    )
    resent: Count = Field(
        0, description="Results that were sent again since that restore, because the store had lost them."
    )
    complete: bool = Field(True, description="Whether those were all that it had acknowledged and lost.")


class OutboxHealth(WireMessage):
    """Health of the node's outbox."""

    epoch: str = Field("", description="Epoch of this run's numbers; empty until it has stored a result.")
    entries: Count = Field(0, description="Results and gaps not acknowledged by the region.")
    used_bytes: Count = 0
    max_bytes: Count = 0
    under_way: Count = Field(0, description="Sent to the region and not acknowledged yet.")
    stuck: Count = Field(0, description="Not acknowledged although later ones are: a bridge does not carry them.")
    lost: dict[str, Count] = Field(default_factory=dict, description="Results lost since the node started, by reason.")
    failure: str | None = Field(None, description="Why the outbox cannot store anything.")
    moved: list[str] = Field(
        default_factory=list,
        description="What is not as when its file was last used: machine, key. A notice, no error.",
    )
    kept_bytes: Count = Field(
        0, description="Size of acknowledged results that are kept in case the region's store is put back."
    )
    region: RegionStoreHealth | None = Field(
        None, description="What it knows of the region's store; null: an earlier version."
    )


class Health(WireMessage):
    """Periodic health report of a node."""

    schema_: Literal["hedgerow.health/1"] = Field("hedgerow.health/1", alias="schema")
    node: str
    session: str
    at: UnixTime
    uptime_s: Seconds
    state: Literal["ok", "degraded", "failing"]
    reasons: list[str] = Field(default_factory=list)
    pipelines: dict[str, PipelineHealth] = Field(default_factory=dict)
    models: dict[str, ModelHealth] = Field(default_factory=dict)
    outbox: OutboxHealth | None = None
    instance: Instance | None = None
    memory_bytes: Count = Field(0, description="Resident memory of the node and its workers.")
    cpu_s: Seconds = 0.0


class Event(WireMessage):
    """Something that happened at a node."""

    schema_: Literal["hedgerow.event/1"] = Field("hedgerow.event/1", alias="schema")
    kind: str
    node: str
    session: str
    at: UnixTime
    pipeline: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


class RunningService(WireMessage):
    """A region's service tells other services of the region that it runs."""

    schema_: Literal["hedgerow.service/1"] = Field("hedgerow.service/1", alias="schema")
    region: str = Field(max_length=64)
    instance: str = Field(max_length=64, description="Random id of its run.")
    store: str = Field(max_length=64, description="Random id of its store.")
    host: str = Field("", max_length=253)
    address: str = Field("", max_length=64)
    uptime_s: Seconds


class ErrorBody(WireMessage):
    """An error in a message."""

    code: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: HedgerowError) -> ErrorBody:
        """Convert an error to what may be published of it."""
        message, remedy = published(error)
        return cls(code=error.code, message=message, remedy=remedy)


class Reply(WireMessage):
    """Reply to a command."""

    schema_: Literal["hedgerow.reply/1"] = Field("hedgerow.reply/1", alias="schema")
    command: str
    node: str
    ok: bool
    value: Any = None
    error: ErrorBody | None = None


class Command(BaseModel):
    """Payload of a command; an empty payload is a command without arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: dict[str, Any] = Field(default_factory=dict)
    expires_at: UnixTime | None = Field(None, description="Unix seconds after which the command must not be executed.")


_ORJSON: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_TRIES: Final = (
    orjson.OPT_SERIALIZE_NUMPY,  # looking for non-string keys costs more than all the rest
    _ORJSON,
    orjson.OPT_NON_STR_KEYS,  # orjson refuses some arrays, such as big-endian ones, without calling `plain`
)


def plain(value: Any) -> Any:
    """Convert a value that the encoders do not support."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, BaseModel):
        return value.model_dump()

    import numpy as np  # imported late, see above

    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be published")


def encode_json(value: Any, *, lossy: bool = False) -> bytes:
    """Encode as JSON; numpy arrays become lists, bytes become base64.

    Args:
        lossy: write null for NaN and infinity, and keep keys that become the same text; for display.
    Raises: FrameError: it contains a value without a JSON form, such as NaN, or keys that become the same text.
    """
    refusal: Exception | None = None
    for option in _TRIES:
        try:
            encoded = orjson.dumps(value, default=plain, option=option)
        except (TypeError, RecursionError) as error:
            refusal = error
            continue
        if lossy:
            return encoded
        if option & orjson.OPT_NON_STR_KEYS and (key := clashing_key(value)) is not None:
            raise unserialisable(ValueError(f"two keys become {key!r}"))
        if b"null" in encoded and (problem := not_finite(value)) is not None:  # NaN becomes null
            raise unserialisable(ValueError(f"{problem.removeprefix('.')}, which JSON cannot express"))
        return encoded
    assert refusal is not None  # noqa: S101 - otherwise it has returned
    raise unserialisable(refusal) from refusal


def plain_for_msgpack(value: Any) -> Any:
    """Convert a value that MessagePack does not support."""
    return bytes(value) if isinstance(value, memoryview) else plain(value)


def encode_msgpack(value: Any) -> bytes:
    """Encode as MessagePack; numpy arrays become lists, bytes stay bytes.

    Raises: FrameError: it contains a value without a MessagePack form.
    """
    try:
        packed: bytes = msgpack.packb(value, default=plain_for_msgpack)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise unserialisable(error) from error
    return packed


def unserialisable(error: BaseException) -> FrameError:
    """Return the error of a frame whose result cannot be encoded."""
    return FrameError(
        f"The result cannot be encoded: {text_of(error)}",
        code="unserialisable-result",
        remedy="Let the last stage set a result of finite numbers, strings, lists, mappings or numpy values; None where a "
        "value is missing. `publish: {format: msgpack}` can express NaN and infinity.",
    )


def result_body(frame: Frame, index: int, head: dict[str, Any], lineage: dict[str, Any], at: float) -> dict[str, Any]:
    """Return the payload of a result, before encoding.

    Args:
        frame: the frame at the end of the chain.
        index: of the result among those of the frame, from 0.
        head: fields common to all results of a pipeline: schema, node, pipeline.
        lineage: how the result was made.
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
    """Return the id of a result: the same for every delivery of a frame, so that duplicates are recognised."""
    return frame.id if index == 0 else f"{frame.id}/{index}"


def result_of(frame: Frame) -> Any:
    """Return what a frame publishes: its result, else its tensors, else its meta, else the message's other fields."""
    if frame.result is not None:
        return frame.result
    return dict(frame.tensors) or dict(frame.meta) or dict(frame.fields)


def frame_body(frame: Frame) -> dict[str, Any]:
    """Return the fields that identify a frame."""
    return {
        "id": frame.id,
        "stream": frame.stream,
        "topic": frame.topic,
        "sequence": frame.sequence,
        "captured_at": frame.captured_at,
    }


def dead_letter(
    frame: Frame,
    error: HedgerowError,
    stage: str,
    head: dict[str, Any],
    payload_bytes: int | None = None,
    *,
    with_payload: bool = True,
) -> bytes:
    """Encode a dead letter: why a frame could not be processed, with its payload unless that is too large.

    Args:
        frame: the frame.
        error: why.
        stage: where; empty: in none.
        head: fields common to all dead letters of a pipeline.
        payload_bytes: size of the payload, if it is no longer available.
        with_payload: whether it may contain the payload.
    """
    size = len(frame.payload) if payload_bytes is None else payload_bytes
    body = {
        **head,
        "schema": DEAD_SCHEMA,
        "at": time.time(),
        "reason": reason_of(error),
        "message": clean(error, LONGEST_TEXT),
        "remedy": clean(getattr(error, "remedy", None) or "See the node's log.", LONGEST_TEXT),
        "stage": stage or None,
        "frame": frame_body(frame),
        "content_type": clean(frame.content_type),
        "payload_bytes": size,
    }
    if error.traceback:
        body["traceback"] = clean(error.traceback, LONGEST_TEXT)
    if not with_payload:
        body["payload_omitted"] = "kept-back"
    elif len(frame.payload) != size:
        body["payload_omitted"] = "not-received"
    elif size > LARGEST_DEAD_PAYLOAD:
        body["payload_omitted"] = "too-large"
    elif size:
        body["payload_base64"] = base64.b64encode(frame.payload).decode()
    return encode_json(body)


def without_payload(letter: bytes) -> bytes:
    """Return an encoded dead letter without its frame's payload, because it would be too large for the broker."""
    body = orjson.loads(letter)
    if body.pop("payload_base64", None) is not None:
        body["payload_omitted"] = "too-large"
    return orjson.dumps(body)


def clean(text: object, longest: int = 200) -> str:
    """Return a text of unknown origin, limited in length, that can be published and printed; it keeps its line feeds."""
    return visible_lines(text_of(text)[:longest])


def reason_of(error: HedgerowError) -> str:
    """Return an error's code as counters and dead letters have it; a plugin's error may have anything there."""
    code = getattr(error, "code", None) or type(error).code
    return visible(text_of(code)[:_LONGEST_REASON])


def rfc3339(at: float) -> str:
    """Format Unix seconds as RFC 3339, as CloudEvents requires."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decode_payload(payload: Buffer, content_type: str) -> Any:
    """Decode a result, reply or dead letter: JSON, or MessagePack if the content type says so.

    Raises: FrameError: it cannot be decoded.
    """
    try:
        if content_type == MSGPACK:
            return msgpack.unpackb(payload, strict_map_key=False)
        return orjson.loads(payload)
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # TypeError: a list as a map's key
        raise FrameError(f"Not a {content_type or JSON} payload: {error}", code="unreadable-payload") from error
