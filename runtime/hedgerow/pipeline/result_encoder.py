"""From frames that reached the end of a chain, or died on the way, to what is published for them."""

from __future__ import annotations

import os
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

_BYTES: Final = (bytes, bytearray, memoryview)

# User properties up to their value: results are made once a frame, and their names never change.
_ID, _TIME, _SUBJECT, _TRACEPARENT = (
    bytes([Property.USER]) + encode_text(name) for name in ("id", "time", "subject", "traceparent")
)


@lru_cache(4096)  # streams come again with every frame
def _subject(stream: str) -> bytes:
    return _SUBJECT + encode_text(stream)


class Encoded(NamedTuple):
    """A message ready to be published: payload, MQTT properties, and the payload's type."""

    payload: bytes
    properties: bytes
    content_type: str


class ResultEncoder:
    """Encodes the results and dead letters of one pipeline; what is the same for all of them is encoded once.

    Args:
        address: of the node.
        pipeline: its name.
        publish: format, expiry.
        config_digest: of the pipeline's configuration.
        models: the models it runs: name, digest, backend, device of each.
    """

    def __init__(
        self,
        address: Address,
        pipeline: str,
        publish: PublishSection,
        config_digest: str,
        models: Sequence[Mapping[str, str]],
    ) -> None:
        self.topic = address.topic(Channel.RESULT, pipeline)
        self.dead_topic = address.topic(Channel.DEAD, pipeline)
        self._content_type = wire.MSGPACK if publish.format == "msgpack" else wire.JSON
        self._fields = publish.fields
        self._chooses = bool(publish.fields)
        self._encode = wire.encode_msgpack if publish.format == "msgpack" else wire.encode_json
        self._head = {"node": str(address), "pipeline": pipeline}
        self._result_head = {"schema": wire.RESULT_SCHEMA, **self._head}
        self._time = (0.0, b"")
        self._own_type = len(encode_properties([(Property.CONTENT_TYPE, self._content_type)]))
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
        """How the results of one run of the chain were made; the waiting of a single frame is added to it."""
        stages = [[name, round(seconds * 1e3, 3), count] for name, seconds, count in timings]
        return {**self._lineage, "stages": stages}

    def results(self, frames: Sequence[Frame], lineage: dict[str, Any], waited_s: float, at: float) -> list[Encoded]:
        """Encode the results of one frame.

        Args:
            frames: what the chain made of it.
            lineage: how.
            waited_s: how long it waited before it ran.
            at: when, Unix seconds.
        Raises: FrameError: a result cannot be encoded.
        """
        lineage["waited_ms"] = int(waited_s * 1e6 + 0.5) / 1e3  # `round` goes by way of text
        made_at, time = self._time
        if made_at != at:  # all results of a list were made at the same time
            time = _TIME + encode_text(wire.rfc3339(at))
            self._time = (at, time)
        try:
            return [self._result(frame, index, lineage, at, time) for index, frame in enumerate(frames)]
        except FrameError:
            raise
        except Exception as error:
            raise wire.unserialisable(error) from error  # what an author's stage gave may be anything

    def _result(self, frame: Frame, index: int, lineage: dict[str, Any], at: float, time: bytes) -> Encoded:
        static, content_type = self._properties, self._content_type
        if isinstance(frame.result, _BYTES) and self._fields.keep is None:
            payload, content_type = bytes(frame.result), frame.content_type or "application/octet-stream"
            result_id = wire.result_id(frame, index)
            static = encode_properties([(Property.CONTENT_TYPE, content_type)]) + static[self._own_type :]
        else:
            body = wire.result_body(frame, index, self._result_head, lineage, at)
            if self._chooses:
                body["result"] = _only(self._fields, body["result"])
            payload, result_id = self._encode(body), body["id"]
        properties = b"".join((static, time, _ID, encode_text(result_id), _subject(frame.stream)))
        if frame.traceparent is not None:
            properties += _TRACEPARENT + encode_text(trace_child(frame.traceparent))
        return Encoded(payload, properties, content_type)

    def dead(self, frame: Frame, error: HedgerowError, stage: str, payload_bytes: int | None = None) -> Encoded:
        """Encode a dead letter.

        Args:
            frame: what died, as far as it is known.
            error: of what.
            stage: where; "" if in no stage.
            payload_bytes: how large the payload was, where it is not at hand any more.
        """
        payload = wire.dead_letter(frame, error, stage, self._head, payload_bytes)
        reason = wire.clean(error.code)
        properties = encode_properties([(Property.CONTENT_TYPE, wire.JSON), (Property.USER, ("reason", reason))])
        return Encoded(payload, properties, wire.JSON)


def _only(fields: FieldsSection, result: Any) -> Any:
    """What may go out of a result; of one that has no fields nothing is kept and nothing dropped."""
    if not isinstance(result, Mapping):
        return result if fields.keep is None else {}
    keep = result.keys() - set(fields.drop) if fields.keep is None else fields.keep
    return {name: value for name, value in result.items() if name in keep}


def trace_child(traceparent: str) -> str:
    """The trace context of something made in a trace (W3C Trace Context §3.2): same trace, new parent.

    What is not a trace context is handed on as it is.
    """
    if len(traceparent) != 55:
        return traceparent
    return f"{traceparent[:36]}{os.urandom(8).hex()}{traceparent[52:]}"
