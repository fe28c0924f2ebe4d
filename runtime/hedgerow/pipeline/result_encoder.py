"""Encodes results and dead letters for publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np

from hedgerow import __version__
from hedgerow.bus.properties import Property, encode_properties, encode_text
from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.config import FieldsSection, PublishSection
from hedgerow.errors import FrameError, HedgerowError
from hedgerow.frame import Frame
from hedgerow.topics import Address, Channel
from hedgerow.wire import messages as wire
from hedgerow.wire.result_batch import json_results, msgpack_results
from hedgerow.wire.trace import trace_child

_FEWEST_COLUMNS: Final = 3
"""Rows from which on it takes less time to encode them together."""
_join: Final = b"".join
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
        self._encode_batch = msgpack_results if publish.format == "msgpack" else json_results
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

    def results(self, frames: Sequence[Frame], lineage: Mapping[str, Any], waited_s: float, at: float) -> list[Encoded]:
        """Encode the results of one frame.

        Args:
            frames: the frames that the chain made from it.
            lineage: lineage of the run.
            waited_s: seconds it was queued.
            at: time of the results, Unix seconds.
        Raises: FrameError: a result cannot be encoded.
        """
        lineage = {**lineage, "waited_ms": _milliseconds(waited_s)}
        time = self._time_property(at)
        try:
            return [self._result(frame, index, lineage, at, time) for index, frame in enumerate(frames)]
        except FrameError:
            raise
        except BaseException as error:
            raise wire.unserialisable(error) from error  # a plugin's result may be any object

    def batch(
        self, batch: FrameBatch, lineage: Mapping[str, Any], waited_s: Sequence[float], at: float
    ) -> list[Encoded | FrameError]:
        """Encode the result of each row, to the same bytes as `results`; an error for a row that cannot be encoded.

        Args:
            batch: rows at the end of the chain.
            lineage, at: see `results`.
            waited_s: seconds that each was queued.
        """
        encoded: Sequence[Any] = [None] * len(batch)
        if len(batch) >= _FEWEST_COLUMNS:
            with suppress(BaseException):  # a plugin may have set anything in a column; looked at again row by row
                encoded = self._quickly(batch, lineage, waited_s, at)
        if not encoded.count(None):
            return [*encoded]
        outcomes: list[Encoded | FrameError] = []
        for row, result in enumerate(encoded):
            if result is not None:
                outcomes.append(result)
                continue
            try:
                outcomes += self.results([batch.frame(row)], lineage, waited_s[row], at)
            except FrameError as error:
                outcomes.append(error)
        return outcomes

    def _quickly(
        self, batch: FrameBatch, lineage: Mapping[str, Any], waited_s: Sequence[float], at: float
    ) -> Sequence[Encoded | None]:
        """Encode the rows whose results are ordinary; None for each of the others."""
        results = self._results_of(batch)
        if not isinstance(results, Mapping) and any(isinstance(result, _BYTES) for result in results):
            return [None] * len(batch)
        payloads = self._encode_batch(batch, results, self._result_head, lineage, at, [*map(_milliseconds, waited_s)])
        if not all(map(str.isprintable, batch.ids)):  # else `encode_text` looks closer
            return [None] * len(batch)
        ids = [*map(str.encode, batch.ids)]
        static = self._properties + self._time_property(at) + _ID
        lengths = [len(each).to_bytes(2, "big") for each in ids]
        properties = [*map(_join, zip(repeat(static), lengths, ids, map(_subject, batch.streams), strict=False))]
        if batch.traceparents is not None:
            for row, parent in enumerate(batch.traceparents):
                if parent is not None:
                    properties[row] += _TRACEPARENT + encode_text(trace_child(parent))
        encoded: list[Encoded | None] = [
            *map(Encoded._make, zip(payloads, properties, repeat(self._content_type), batch.ids, strict=False))
        ]
        for row, payload in enumerate(payloads):
            if payload is None:
                encoded[row] = None
        return encoded

    def _results_of(self, batch: FrameBatch) -> Sequence[Any] | Mapping[str, Sequence[Any]]:
        """Return what each row publishes, see `wire.result_of`; or columns of that."""
        columns = batch.result_columns
        if columns:
            chosen = _only(self._fields, columns) if self._filters_fields else columns
            if not chosen:
                return [{}] * len(batch)
            return {
                name: column.tolist() if isinstance(column, np.ndarray) else column for name, column in chosen.items()
            }
        results: Sequence[Any]
        if batch.results is not None and all(result is not None for result in batch.results):
            results = batch.results
        elif batch.results is None and columns is None and batch.tensors:
            names, arrays = list(batch.tensors), batch.tensors.values()
            results = [
                dict(zip(names, [array[row, ...] for array in arrays], strict=True)) for row in range(len(batch))
            ]
        else:
            results = [wire.result_of(batch.frame(row)) for row in range(len(batch))]
        return [_only(self._fields, result) for result in results] if self._filters_fields else results

    def _time_property(self, at: float) -> bytes:
        made_at, time = self._time
        if made_at != at:  # all results of a list have the same time
            time = _TIME + encode_text(wire.rfc3339(at))
            self._time = (at, time)
        return time

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


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1e3  # faster than `round`, which formats and parses text
