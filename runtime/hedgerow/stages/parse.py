"""The `parse` stage: parses payloads (.npy, JSON, MessagePack, CSV, raw numbers) into arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final

import numpy as np

from hedgerow.columns.frame_batch import FrameBatch, Irregular
from hedgerow.errors import FrameError, StageMismatch
from hedgerow.frame import Array, Buffer, Drop, Frame
from hedgerow.stage import ArraySpec, FrameSpec, Stage, StageContext
from hedgerow.stages.parse_config import Name, ParseConfig
from hedgerow.wire.codec import COMPACT_DATE, NPY, is_plain, parse_npy, timestamp
from hedgerow.wire.document import decode_json, decode_json_exactly, decode_msgpack, field
from hedgerow.wire.numbers import FLOAT32, ArrayReader, RoundedError, below, convert
from hedgerow.wire.sniff import explained, payload_kind
from hedgerow.wire.table import Table
from hedgerow.wire.values import MissingValue

_FORMATS: Final = {
    NPY: "npy",
    "application/json": "json",
    "text/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "text/csv": "csv",
}
_UNITS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_CLOCKS_BEGIN_S: Final = 1e8
"""In 1973: no clock that has been set is earlier."""
_MISSING: Final = Drop(MissingValue.code)
_ORJSON_ROUNDS_FROM: Final = 2.0**64
_UNREADABLE: Final = frozenset({"bad-json", "bad-msgpack", "bad-csv", "bad-npy"})


class Parse(Stage[ParseConfig]):
    """Parse the payload into the frame's array; other fields of a map become the frame's `fields`."""

    concurrent = True

    def setup(self, context: StageContext) -> None:
        """Prepare what does not depend on the frame."""
        config = self.config
        self._fill: float | None = None
        if isinstance(config.missing, float):  # a whole number must not make floats of whole numbers
            self._fill = int(config.missing) if config.missing.is_integer() else config.missing
        self._dtype = None if config.dtype is None else np.dtype(config.dtype)
        self._reader = ArrayReader(self._dtype, self._fill, text=config.text)
        names = config.field if isinstance(config.field, tuple) else () if config.field is None else (config.field,)
        self._names = names or tuple(config.tensors.values())
        self._fields = itemgetter(*(self._names or ("",)))
        self._plain_fields = bool(self._names) and not config.text and self._reader.makes_floats
        self._labels = {name: partial(_label, name) for name in self._names}
        used = (*self._names, *config.meta.values(), *(() if config.time is None else (config.time,)))
        self._named = any(isinstance(name, str) for name in used)
        self._plain_csv = not used and config.delimiter == "," and config.decimal == "."
        parts = dict.fromkeys(part for name in used for part in (str(name), *str(name).split(".")))
        self._keys = tuple(json.dumps(part, ensure_ascii=False).encode() for part in parts)
        self._tops = {part for name in self._names for part in (str(name), str(name).partition(".")[0])}

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a payload of numbers; give an array, or tensors.

        Raises: StageMismatch: the payload is something else.
        """
        config, sent = self.config, incoming.content_type
        raw = config.format == "raw"
        if sent is not None and not raw and (sent == "image/*" or (config.format == "auto" and _known(sent) is None)):
            remedy = "Remove `parse`, or send numbers and, if their content type is another, set `format`."
            raise StageMismatch("payloads of numbers", sent, remedy=remedy)
        noted = incoming.with_meta(**dict.fromkeys(config.meta))
        if config.tensors:
            read = dict.fromkeys(config.tensors, ArraySpec(config.dtype))
            return noted.with_tensors(None if incoming.tensors is None else {**incoming.tensors, **read})
        return noted.with_array(ArraySpec(config.dtype or ("float32" if raw else None), (None,) if raw else None))

    def process_batch(self, batch: FrameBatch) -> FrameBatch:
        """Parse documents whose fields are single numbers, all at once; other rows are left to `process`.

        Raises: Irregular: the payloads are something else.
        """
        config = self.config
        kind = config.format if config.format != "auto" else _known(batch.content_type)
        if kind not in ("json", "msgpack") or not self._plain_fields:
            raise Irregular
        first = self._plain_document(batch.payloads[0], kind)
        if first is not None and list in map(type, self._plain_values(first) or ()):
            raise Irregular  # before the others are decoded: theirs are lists too
        documents = [first, *[self._plain_document(payload, kind) for payload in batch.payloads[1:]]]
        values = [None if body is None else self._plain_values(body) for body in documents]
        read: list[Array] = []
        good = np.array([row is not None for row in values])
        blank = (0.0,) * len(self._names)
        for names in [slice(at, at + 1) for at in range(len(self._names))] if config.tensors else [slice(None)]:
            numbers, fit = self._reader.rows([(row or blank)[names] for row in values], good)
            good &= fit
            read.append(numbers)
        details = [self._details(documents[row], batch, row) if good[row] else None for row in range(len(batch))]
        left = [row for row, detail in enumerate(details) if detail is None]
        if len(left) == len(batch):
            raise Irregular
        for row in left:
            batch.defer(row)
        filled = [detail or ({}, (), 0.0) for detail in details]
        if config.tensors:
            parsed = batch.with_tensors({**batch.tensors, **dict(zip(config.tensors, read, strict=True))})
        else:
            parsed = batch.with_array(read[0])
        if any(fields for fields, _, _ in filled) or batch.fields is not None:
            parsed.fields = [fields for fields, _, _ in filled]
        if config.meta:
            columns = zip(*[meta or (None,) * len(config.meta) for _, meta, _ in filled], strict=True)
            parsed = parsed.with_meta_columns(**dict(zip(config.meta, columns, strict=True)))
        if config.time is not None:
            parsed.captured_at = [seconds for _, _, seconds in filled]
        return parsed

    def _plain_document(self, payload: Buffer, kind: str) -> dict[Any, Any] | None:
        """Return the map that a payload is; None: it is something else, which `process` says."""
        try:
            body = decode_json(payload, self._keys) if kind == "json" else decode_msgpack(payload)
        except FrameError:
            return None
        return body if body.__class__ is dict else None

    def _plain_values(self, body: dict[Any, Any]) -> tuple[Any, ...] | None:
        """Return the fields of a map; None: one is missing."""
        try:
            values: Any = self._fields(body)
            return values if len(self._names) > 1 else (values,)
        except KeyError:
            pass  # absent, or a path
        try:
            return tuple([field(body, name, self._fill) for name in self._names])
        except FrameError:
            return None

    def _details(self, body: Any, batch: FrameBatch, row: int) -> tuple[dict[str, Any], Sequence[Any], float] | None:
        """Return a map's other fields, the values for meta, and the capture time; None: one is missing or wrong."""
        config, tops = self.config, self._tops
        try:
            meta = [field(body, source) for source in config.meta.values()] if config.meta else ()
            at = _seconds(field(body, config.time), config.time_unit) if config.time is not None else 0.0
        except FrameError:
            return None
        return {str(key): value for key, value in body.items() if key not in tops}, meta, at

    def process(self, frame: Frame) -> Frame | Drop:
        """Parse one frame.

        Raises: FrameError: the payload is empty, invalid, or of unknown type, or a value does not fit the dtype.
        """
        payload = frame.payload
        if not len(payload):
            raise FrameError("The payload is empty", code="empty-payload")
        kind = self.config.format if self.config.format != "auto" else _format(frame)
        try:
            if kind == "json":
                try:
                    return self._document(frame, decode_json(payload, self._keys), _ORJSON_ROUNDS_FROM)
                except RoundedError:
                    return self._document(frame, decode_json_exactly(payload))
            if kind == "msgpack":
                return self._document(frame, decode_msgpack(payload))
            if kind == "csv":
                return self._table(frame)
            return frame.with_array(self._array(frame, kind))
        except MissingValue:
            if self.config.missing == "drop":
                return _MISSING
            raise
        except FrameError as error:
            if error.code in _UNREADABLE and (named := explained(error, payload, frame.topic)) is not None:
                raise named from error
            raise

    def _document(self, frame: Frame, body: Any, rounded_from: float = math.inf) -> Frame:
        config, fill, labels, numbers = self.config, self._fill, self._labels, self._reader.array
        if config.tensors:
            read = {
                tensor: numbers(field(body, name, fill), labels[name], rounded_from)
                for tensor, name in config.tensors.items()
            }
            parsed = frame.with_tensors({**frame.tensors, **read})
        elif config.field is None:
            parsed = frame.with_array(numbers(body, None, rounded_from))
        elif isinstance(config.field, tuple):
            values = [field(body, name, fill) for name in config.field]
            array = numbers(values, lambda at: _label(self._names[at[0]], at[1:]), rounded_from)
            parsed = frame.with_array(np.ascontiguousarray(np.moveaxis(array, 0, -1)))
        else:
            value = field(body, config.field, fill)
            parsed = frame.with_array(numbers(value, labels[config.field], rounded_from))
        if body.__class__ is dict:
            tops = self._tops
            parsed.fields = {str(key): value for key, value in body.items() if key not in tops}
        if config.meta:
            parsed.meta = {**frame.meta, **{name: field(body, source) for name, source in config.meta.items()}}
        if config.time is not None:
            parsed.captured_at = _seconds(field(body, config.time), config.time_unit)
        return parsed

    def _table(self, frame: Frame) -> Frame:
        config = self.config
        if self._plain_csv:
            try:
                return frame.with_array(self._plain(frame.payload))
            except (ValueError, FrameError, RoundedError):
                pass  # what is not plain takes three times as long, and what is wrong is said there
        table = Table(frame.payload, delimiter=config.delimiter, decimal=config.decimal, named=self._named)
        if config.tensors:
            read = {tensor: self._columns(table, name) for tensor, name in config.tensors.items()}
            parsed = frame.with_tensors({**frame.tensors, **read})
        else:
            parsed = frame.with_array(self._columns(table, config.field))
        first = table.rows[0]
        if table.names and len(table.rows) == 1:
            parsed.fields = {
                name: cell for name, cell in zip(table.names, first, strict=True) if name not in self._tops
            }
        if config.meta:
            cells = {name: first[table.position(source)] for name, source in config.meta.items()}
            parsed.meta = {**frame.meta, **cells}
        if config.time is not None:
            parsed.captured_at = _seconds(first[table.position(config.time)], config.time_unit)
        return parsed

    def _plain(self, payload: Buffer) -> Array:
        """Return the numbers of a table that is nothing but small numbers, commas and lines."""
        text = str(payload, "ascii")
        if "_" in text:
            raise ValueError(text)
        rows = [[float(cell) for cell in line.split(",")] for line in text.strip().split("\n")]
        return self._reader.array(rows if len(rows) > 1 else rows[0], None, below(self._dtype))

    def _columns(self, table: Table, columns: Name | tuple[Name, ...] | None) -> Array:
        """Return columns of a table: (lines, columns), (columns,) of one line, or (lines,) of one column."""
        one = columns is not None and not isinstance(columns, tuple)
        if columns is None:
            left_out = None if self.config.time is None else table.position(self.config.time)
            positions = [position for position in range(table.width) if position != left_out]
        else:
            positions = [table.position(name) for name in (columns if isinstance(columns, tuple) else (columns,))]
        lines = len(table.rows)

        def label(at: tuple[int, ...]) -> str:
            line, column = (at[0], 0) if one else at if lines > 1 else (0, at[0])
            return table.label(line, positions[column])

        def array(rounded_from: float = math.inf) -> Array:
            rows = table.numbers(positions, exact=rounded_from == math.inf)
            value = [row[0] for row in rows] if one else rows if lines > 1 else rows[0]
            return self._reader.array(value, label, rounded_from)

        try:
            read = array(below(self._dtype))
        except RoundedError:
            read = array()
        if self._dtype is None and read.dtype.kind != "f":  # a column is what it is, whatever one frame has in it
            return convert(read, FLOAT32, label=label, rounds=False)
        return read

    def _array(self, frame: Frame, kind: str) -> Array:
        dtype, payload = self._dtype, frame.payload
        if kind == "npy":
            array = parse_npy(payload, self.config.max_bytes)
        else:
            stored = (dtype or FLOAT32).newbyteorder("<")
            if len(payload) % stored.itemsize:
                raise FrameError(
                    f"{len(payload)} bytes are not a multiple of the {stored.itemsize} bytes of {stored}",
                    code="truncated-array",
                )
            array = np.frombuffer(payload, dtype=stored)
        if self.config.missing != "refuse" and array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            if self._fill is None:
                raise MissingValue("The array contains NaN or infinity")
            array = np.where(finite, array, array.dtype.type(self._fill))
        return array if dtype is None or array.dtype == dtype else convert(array, dtype)


def _format(frame: Frame) -> str:
    """Return the format that a frame's content type means.

    Raises: FrameError: it has none, or another.
    """
    stated = frame.content_type
    kind = _known(stated)
    if kind is not None:
        return kind
    found = payload_kind(frame.payload, frame.topic)
    what = f": the payload is {found[0]}" if found else ""
    formats = "npy, json, msgpack, csv or raw"
    if not stated:
        raise FrameError(
            f"The frame has no content type{what}",
            code="unknown-content-type",
            remedy=found[1] if found else f"Set `content_type` of the pipeline; or `format` of `parse` to {formats}.",
        )
    raise FrameError(
        f"`parse` does not read the content type {stated!r}, which the frame states{what}",
        code="unknown-content-type",
        remedy=found[1] if found else f"If the payload is one of {formats} all the same, set `format` of `parse`.",
    )


def _known(content_type: str) -> str | None:
    return _FORMATS.get(content_type) or ("json" if content_type.endswith("+json") else None)


def _label(name: Name, at: tuple[int, ...]) -> str:
    """Name a value for an error message: a field, and the position in it."""
    return f"`{name}{''.join(f'[{index}]' for index in at)}`"


def _seconds(value: Any, unit: str) -> float:
    """Return Unix seconds from RFC 3339, or from a number of a unit, which may be text.

    Raises: FrameError: it is no time, or seems to be one of another unit.
    """
    if isinstance(value, bool) or (isinstance(value, str) and (COMPACT_DATE.fullmatch(value) or not is_plain(value))):
        return timestamp(str(value))
    try:
        number = value if isinstance(value, (int, float)) else float(value)
        seconds = timestamp(str(number / _UNITS[unit]))
    except (TypeError, ValueError, OverflowError):
        return timestamp(str(value))
    if unit != "s" and abs(seconds) < _CLOCKS_BEGIN_S <= abs(number):
        raise FrameError(
            f"{str(value)[:40]!r} is in 1970 as a time in `{unit}`: it seems to be one in larger units",
            code="bad-time",
            remedy="Correct `time_unit` of `parse`, or set the sensor's clock.",
        )
    return seconds
