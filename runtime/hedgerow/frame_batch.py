"""A list of frames as columns: one array or list per attribute, one row per frame.

Rules:
- A batch is a value. `with_*` methods return a new batch that shares unchanged columns with the old one.
- Row i of every column is what frame i would hold: `batch.tensors["x"][i]` is `batch.frame(i).tensors["x"]`.
- No two rows are of one stream.
- A row that is unlike the others leaves the columns (`leave`, `defer`) and goes on as a frame; the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hedgerow.frame import Array, Buffer, Frame

_EMPTY: Final[Mapping[str, Any]] = {}

DEFERRED: Final = object()
"""Stands for the outcome of a row that `process_many` has to find."""


class Irregular(Exception):
    """Raised by `process_batch` when it cannot take this batch; its frames are given to `process_many` instead.

    Raise it before any state has changed.
    """


class FrameBatch:
    """Frames as columns.

    Attributes:
        payloads: the bytes as received.
        ids, streams, topics, sequences, captured_at: see `Frame`.
        traceparents: W3C trace context of each row, or None; None: no row has one.
        content_type: MIME type of all payloads.
        array: the frames' arrays, stacked on a new first axis; None: not decoded.
        tensors: the frames' tensors by name, likewise.
        meta: meta that all rows have, with the same value.
        meta_columns: meta that all rows have, by key: one value per row.
        fields: other fields of each row's message; None: no row has any.
        results: what each row publishes; None: no stage has set it.
        result_columns: likewise, as columns by field: row i publishes `{name: column[i]}`. Arrays count as `tolist()`.
        left: rows that have left during this call of a stage, with their outcome; see `leave`.
    """

    __slots__ = (
        "array",
        "captured_at",
        "content_type",
        "fields",
        "ids",
        "left",
        "meta",
        "meta_columns",
        "payloads",
        "result_columns",
        "results",
        "sequences",
        "streams",
        "tensors",
        "topics",
        "traceparents",
    )

    def __init__(
        self,
        payloads: Sequence[Buffer],
        *,
        ids: Sequence[str],
        streams: Sequence[str],
        topics: Sequence[str],
        sequences: Sequence[int],
        captured_at: Sequence[float],
        content_type: str = "",
        traceparents: Sequence[str | None] | None = None,
        meta: Mapping[str, Any] = _EMPTY,
    ) -> None:
        self.payloads = payloads
        self.ids = ids
        self.streams = streams
        self.topics = topics
        self.sequences = sequences
        self.captured_at = captured_at
        self.content_type = content_type
        self.traceparents = traceparents
        self.array: Array | None = None
        self.tensors: Mapping[str, Array] = _EMPTY
        self.meta = meta
        self.meta_columns: Mapping[str, Sequence[Any]] = _EMPTY
        self.fields: Sequence[Mapping[str, Any]] | None = None
        self.results: Sequence[Any] | None = None
        self.result_columns: Mapping[str, Sequence[Any] | Array] | None = None
        self.left: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.payloads)

    def with_array(self, array: Array, **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with another array, (rows, …), and additional meta columns."""
        ...

    def with_tensors(self, tensors: Mapping[str, Array], **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with other tensors, each (rows, …), and additional meta columns."""
        ...

    def with_meta(self, **meta: Any) -> FrameBatch:
        """Return a copy with additional meta that is the same in all rows."""
        ...

    def with_meta_columns(self, **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with additional meta columns."""
        ...

    def with_results(self, results: Sequence[Any]) -> FrameBatch:
        """Return a copy with a result to publish for each row."""
        ...

    def with_result_columns(self, **columns: Sequence[Any] | Array) -> FrameBatch:
        """Return a copy whose row i publishes `{name: column[i]}`; the columns become JSON without a dict per row."""
        ...

    def leave(self, row: int, outcome: Any) -> None:
        """Let a row leave the columns, with what `process` would return for its frame, or an exception it would raise.

        Its place in the columns that the stage returns is ignored. A frame, or several, go on through the chain by themselves.
        """
        self.left[row] = outcome

    def defer(self, row: int) -> None:
        """Let `process_many` find the outcome of a row's frame, as it came to this stage. Change no state for it."""
        self.left[row] = DEFERRED

    def frame(self, row: int) -> Frame:
        """Return a row as a frame."""
        ...

    def select(self, rows: Sequence[int]) -> FrameBatch:
        """Return a copy with only these rows, in this order."""
        ...

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> FrameBatch | None:
        """Return frames as columns; None if they are not alike: other streams, shapes, dtypes, keys or content types."""
        ...
