"""Encodes results and dead letters for publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from hedgerow import __version__
from hedgerow.bus.properties import Property, encode_properties, encode_text
from hedgerow.config import FieldsSection, PublishSection
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.topics import Address, Channel
from hedgerow.wire import messages as wire
from hedgerow.wire.trace import trace_child

_BYTES: Final = (bytes, bytearray, memoryview)

# User properties up to their value, encoded once.
_ID, _TIME, _SUBJECT, _TRACEPARENT = (
    bytes([Property.USER]) + encode_text(name) for name in ("id", "time", "subject", "traceparent")
)


@lru_cache(4096)  # streams recur with every frame
def _subject(stream: str) -> bytes:
    return _SUBJECT + encode_text(stream)


class Encoded(NamedTuple):
    """A message ready to publish: payload, MQTT properties, the content type of the payload, and the id of a result."""

    payload: bytes
    properties: bytes
    content_type: str
    id: str = ""


class ResultEncoder:
    """Encodes the results and dead letters of one pipeline; their common parts are encoded once.

    Args:
        address: address of the node.
        pipeline: name of the pipeline.
        publish: format, expiry and fields of results.
        config_digest: digest of the pipeline's configuration.
        models: name, digest, backend and device of each model it runs.
        dead_payload: whether dead letters contain the frame's payload.
    """

    def __init__(
        self,
        address: Address,
        pipeline: str,
        publish: PublishSection,
        config_digest: str,
        models: Sequence[Mapping[str, str]],
        *,
        dead_payload: bool = True,
    ) -> None:
        self._dead_payload = dead_payload
        self.topic = address.topic(Channel.RESULT, pipeline)
        self.dead_topic = address.topic(Channel.DEAD, pipeline)
        self._content_type = wire.MSGPACK if publish.format == "msgpack" else wire.JSON
        self._fields = publish.fields
        self._filters_fields = bool(publish.fields)
        self._encode = wire.encode_msgpack if publish.format == "msgpack" else wire.encode_json
        self._head = {"node": str(address), "pipeline": pipeline}
        self._result_head = {"schema": wire.RESULT_SCHEMA, **self._head}
        self._time = (0.0, b"")
        self._content_type_size = len(encode_properties([(Property.CONTENT_TYPE, self._content_type)]))
        self._lineage = {"hedgerow": __version__, "config": config_digest, "models": list(models)}
        self._properties = encode_properties(
            [
                (Property.CONTENT_TYPE, self._content_type),
                *([(Property.EXPIRY, publish.expiry_s)] if publish.expiry_s is not None else []),
                (Property.USER, ("specversion", "1.0")),
                (Property.USER, ("source", f"/hedgerow/{address}/{pipeline}")),
                (Property.USER, ("type", "hedgerow.result")),
                (Property.USER, ("config", config_digest)),
                *((Property.USER, ("model", f"{model['name']}@{model['digest']}")) for model in models),
            ]
        )

    def lineage(self, timings: Sequence[tuple[str, float, int]]) -> dict[str, Any]:
        """Return the lineage of one run of the chain; `results` adds the waiting time of each frame."""
        stages = [[name, round(seconds * 1e3, 3), count] for name, seconds, count in timings]
        return {**self._lineage, "stages": stages}

    def results(self, frames: Sequence[Frame], lineage: dict[str, Any], waited_s: float, at: float) -> list[Encoded]:
        """Encode the results of one frame.

        Args:
            frames: the frames that the chain made from it.
            lineage: lineage of the run.
            waited_s: seconds it was queued.
            at: time of the results, Unix seconds.
        Raises: FrameError: a result cannot be encoded.
        """
        lineage["waited_ms"] = int(waited_s * 1e6 + 0.5) / 1e3  # faster than `round`, which formats and parses text
        made_at, time = self._time
        if made_at != at:  # all results of a list have the same time
            time = _TIME + encode_text(wire.rfc3339(at))
            self._time = (at, time)
        try:
            return [self._result(frame, index, lineage, at, time) for index, frame in enumerate(frames)]
        except FrameError:
            raise
        except BaseException as error:
            raise wire.unserialisable(error) from error  # a plugin's result may be any object

    def _result(self, frame: Frame, index: int, lineage: dict[str, Any], at: float, time: bytes) -> Encoded:
        static, content_type = self._properties, self._content_type
        if isinstance(frame.result, _BYTES) and self._fields.keep is None:
            payload, content_type = bytes(frame.result), frame.content_type or "application/octet-stream"
            result_id = wire.result_id(frame, index)
            static = encode_properties([(Property.CONTENT_TYPE, content_type)]) + static[self._content_type_size :]
        else:
            body = wire.result_body(frame, index, self._result_head, lineage, at)
            if self._filters_fields:
                body["result"] = _only(self._fields, body["result"])
            payload, result_id = self._encode(body), body["id"]
        properties = b"".join((static, time, _ID, encode_text(result_id), _subject(frame.stream)))
        if frame.traceparent is not None:
            properties += _TRACEPARENT + encode_text(trace_child(frame.traceparent))
        return Encoded(payload, properties, content_type, result_id)

    def dead(self, frame: Frame, error: HedgerowError, stage: str, payload_bytes: int | None = None) -> Encoded:
        """Encode a dead letter.

        Args:
            frame: the frame, as far as it is known.
            error: why it failed.
            stage: the stage it failed in; "" if outside the stages.
            payload_bytes: size of the payload, if the payload itself was discarded.
        """
        payload = wire.dead_letter(frame, error, stage, self._head, payload_bytes, with_payload=self._dead_payload)
        reason = wire.reason_of(error)
        properties = encode_properties([(Property.CONTENT_TYPE, wire.JSON), (Property.USER, ("reason", reason))])
        return Encoded(payload, properties, wire.JSON)


def _only(fields: FieldsSection, result: Any) -> Any:
    """Return a result with only the configured fields; without fields it is empty with `keep`, whole with `drop`."""
    if not isinstance(result, Mapping):
        return result if fields.keep is None else {}
    keep = result.keys() - set(fields.drop) if fields.keep is None else fields.keep
    return {name: value for name, value in result.items() if name in keep}
