"""The `parse` stage: parses payloads (.npy, JSON, MessagePack, CSV, raw numbers) into arrays."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from hedgerow.errors import FrameError, StageMismatch
from hedgerow.frame import Frame
from hedgerow.stage import ArraySpec, FrameSpec, Stage, StageConfig
from hedgerow.wire.codec import NPY, parse_json, parse_msgpack, parse_npy, to_array

_FORMATS = {
    NPY: "npy",
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "text/csv": "csv",
}


class ParseConfig(StageConfig):
    """Configuration of `parse`."""

    format: Literal["auto", "npy", "json", "msgpack", "csv", "raw"] = Field(
        "auto", description="`auto` uses the content type; `raw` reads the bytes as numbers of `dtype`."
    )
    field: str | None = Field(None, description="Field of a JSON or MessagePack map that contains the numbers.")
    dtype: Literal["float32", "float64", "int16", "int32", "uint8"] | None = Field(
        None, description="Convert to this type; for `raw`, the type of the bytes (little-endian)."
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="A larger array is refused.")


class Parse(Stage[ParseConfig]):
    """Parse the payload into the frame's array; other fields of a map become meta."""

    concurrent = True

    def output_spec(self, incoming: FrameSpec) -> FrameSpec:
        """Take a payload of numbers; give an array.

        Raises: StageMismatch: the payload is something else.
        """
        config = self.config
        raw = config.format == "raw"
        sent = incoming.content_type
        if sent is not None and not raw and sent not in _FORMATS and (config.format == "auto" or sent == "image/*"):
            remedy = f"Send one of {', '.join(_FORMATS)}, or set `format`."
            raise StageMismatch("payloads of numbers", sent, remedy=remedy)
        array = ArraySpec(config.dtype or ("float32" if raw else None), (None,) if raw else None)
        if config.field is not None:  # other fields become meta, in place of what is there
            return FrameSpec(array, incoming.tensors, content_type=incoming.content_type)
        return incoming.with_array(array)

    def process(self, frame: Frame) -> Frame:
        """Parse one frame.

        Raises: FrameError: the payload is empty, invalid, or of unknown type.
        """
        if not frame.payload:
            raise FrameError("The payload is empty", code="empty-payload")
        config = self.config
        kind = config.format if config.format != "auto" else _FORMATS.get(frame.content_type)
        if kind is None:
            raise FrameError(
                f"`parse` does not support content type {frame.content_type or 'unknown'!r}",
                code="unknown-content-type",
                remedy=f"Send one of {', '.join(_FORMATS)}; or set `format`, or the pipeline's `content_type`.",
            )
        meta: dict[str, Any] = {}
        if kind == "npy":
            array = parse_npy(frame.payload, config.max_bytes)
        elif kind == "raw":
            array = self._raw(frame)
        elif kind == "csv":
            array = _csv(frame)
        else:
            value = parse_json(frame.payload) if kind == "json" else parse_msgpack(frame.payload)
            array, meta = self._numbers(value)
        if config.dtype is not None and array.dtype != config.dtype:
            array = _converted(array, np.dtype(config.dtype))
        parsed = frame.with_array(array)
        if meta:
            parsed.meta = {**frame.meta, **meta}  # not as keywords: keys from the sensor may be any string
        return parsed

    def _numbers(self, value: Any) -> tuple[Any, dict[str, Any]]:
        if self.config.field is None:
            return to_array(value), {}
        if not isinstance(value, dict) or self.config.field not in value:
            raise FrameError(f"The payload has no field {self.config.field!r}", code="missing-field")
        rest = {str(key): item for key, item in value.items() if key != self.config.field}
        return to_array(value[self.config.field]), rest

    def _raw(self, frame: Frame) -> Any:
        dtype = np.dtype(self.config.dtype or "float32").newbyteorder("<")
        if len(frame.payload) % dtype.itemsize:
            raise FrameError(
                f"{len(frame.payload)} bytes are not a multiple of the {dtype.itemsize} bytes of {dtype}",
                code="truncated-array",
            )
        return np.frombuffer(frame.payload, dtype=dtype)


def _converted(array: Any, dtype: np.dtype[Any]) -> Any:
    """Convert an array to another dtype.

    Raises: FrameError: a value is out of range.
    """
    if array.dtype.kind == "c":
        raise FrameError(f"Complex numbers cannot be converted to {dtype}", code="not-numbers")
    if dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, dtype):
        limits, lowest, highest = np.iinfo(dtype), array.min(), array.max()
        if not (limits.min <= lowest and highest <= limits.max):  # NaN fails this too
            raise FrameError(f"Values from {lowest} to {highest} do not fit {dtype}", code="out-of-range")
    with np.errstate(over="ignore"):  # overflow becomes infinity
        return array.astype(dtype)


def _csv(frame: Frame) -> Any:
    """Parse lines of comma-separated numbers: (lines, columns), or (columns,) for one line."""
    try:
        text = bytes(frame.payload).decode("ascii").strip()
        rows = [[float(cell) for cell in line.split(",")] for line in text.split("\n")]
        array = np.asarray(rows, dtype=np.float32)
    except ValueError as error:
        raise FrameError(f"Not lines of comma-separated numbers: {error}", code="bad-csv") from error
    return array[0] if len(array) == 1 else array
