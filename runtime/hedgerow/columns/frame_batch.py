"""A list of frames as columns: one array or sequence per attribute, one row per frame.

Rules:
- A batch is a value. `with_*` methods return a new batch that shares unchanged columns with the old one.
- Row i of each column is what frame i has: `batch.tensors["x"][i]` is `batch.frame(i).tensors["x"]`.
- No two rows are of the same stream.
- A row that is unlike the others leaves the columns (`leave`, `defer`) and goes on as a frame; the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hedgerow.frame import Array, Buffer, Frame

_EMPTY: Final[Mapping[str, Any]] = {}

DEFERRED: Final = object()
"""The outcome of a row that `process_many` has to find; see `FrameBatch.defer`."""

ABSENT: Final = object()
"""Value in a column of meta: this row's meta has no such key; in `with_meta_columns`: it stays as it is."""


class Irregular(Exception):
    """Raised by `Stage.process_batch` if it cannot take a batch; `process_many` gets its frames instead.

    Raise it before any state has changed.
    """


class FrameBatch:
    """Frames as columns.

    Attributes:
        payloads: the bytes as received.
        ids, streams, topics, sequences, captured_at: see `Frame`.
        content_type: MIME type of all payloads.
        traceparents: W3C trace context of each row, or None; None: no row has one.
        array: the frames' arrays, stacked along a new first axis; None: not decoded.
        tensors: the frames' tensors by name, likewise.
        meta: meta that all rows have, with the same value.
        meta_columns: other meta by key: a value per row, `ABSENT` for a row without this key.
        fields: other fields of each row's message; None: no row has any.
        results: what each row publishes; None: no stage has set it, or see `result_columns`.
        result_columns: what each row publishes, as columns: row i publishes `{name: column[i]}`. A value of an array
            counts as `tolist()` gives it: a Python number or list.
        left: outcome of each row that has left during this call of a stage; see `leave`.
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
        ids: tuple[str, ...],
        streams: tuple[str, ...],
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
        """Return the number of rows."""
        return len(self.streams)

    def with_array(self, array: Array, /, **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with another array, (rows, …), and additional columns of meta."""
        batch = self.with_meta_columns(**meta) if meta else self._copy()
        batch.array = array
        return batch

    def with_tensors(self, tensors: Mapping[str, Array], /, **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with other tensors, each (rows, …), and additional columns of meta."""
        batch = self.with_meta_columns(**meta) if meta else self._copy()
        batch.tensors = tensors
        return batch

    def with_meta(self, /, **meta: Any) -> FrameBatch:
        """Return a copy with additional meta that is the same in all rows."""
        if self.meta_columns:  # in the order in which frames would get them
            return self.with_meta_columns(**{key: [value] * len(self) for key, value in meta.items()})
        batch = self._copy()
        batch.meta = {**self.meta, **meta}
        return batch

    def with_meta_columns(self, /, **meta: Sequence[Any]) -> FrameBatch:
        """Return a copy with additional columns of meta; rows where a column has `ABSENT` keep the meta that they have."""
        batch = self._copy()
        columns = self.meta_columns
        if not meta.keys().isdisjoint(self.meta):
            batch.meta = _EMPTY
            columns = {**{key: [value] * len(self) for key, value in self.meta.items()}, **columns}
        for key in meta.keys() & columns.keys():
            before, after = columns[key], meta[key]
            meta[key] = [old if new is ABSENT else new for old, new in zip(before, after, strict=True)]
        batch.meta_columns = {**columns, **meta}
        return batch

    def with_results(self, results: Sequence[Any]) -> FrameBatch:
        """Return a copy with a result to publish for each row."""
        batch = self._copy()
        batch.results, batch.result_columns = results, None
        return batch

    def with_result_columns(self, /, **columns: Sequence[Any] | Array) -> FrameBatch:
        """Return a copy whose row i publishes `{name: column[i]}`; faster than a mapping per row."""
        batch = self._copy()
        batch.results, batch.result_columns = None, columns
        return batch

    def meta_column(self, key: str, default: Any = None) -> Sequence[Any]:
        """Return a key of each row's meta; `default` for rows without it."""
        column = self.meta_columns.get(key)
        if column is None:
            return [self.meta.get(key, default)] * len(self)
        return [default if value is ABSENT else value for value in column]

    def leave(self, row: int, outcome: Any) -> None:
        """Let a row leave the columns, with what `process` would return for its frame, or an exception that it would raise.

        What the returned batch has in this row is ignored. Frames in `outcome` go on through the chain by themselves.
        """
        self.left[int(row)] = outcome

    def defer(self, row: int) -> None:
        """Let `process_many` process this row's frame, as it came to this stage. Change no state for it."""
        self.left[int(row)] = DEFERRED

    def frame(self, row: int) -> Frame:
        """Return a row as a frame."""
        meta = self.meta
        if self.meta_columns:
            columns = self.meta_columns.items()
            meta = {**meta, **{key: column[row] for key, column in columns if column[row] is not ABSENT}}
        return Frame(
            self.payloads[row],
            id=self.ids[row],
            stream=self.streams[row],
            topic=self.topics[row],
            sequence=self.sequences[row],
            captured_at=self.captured_at[row],
            content_type=self.content_type,
            array=None if self.array is None else self.array[row, ...],  # `...`: an array, even if it has no axis
            tensors={name: column[row, ...] for name, column in self.tensors.items()} if self.tensors else _EMPTY,
            fields=_EMPTY if self.fields is None else self.fields[row],
            meta=meta,
            result=self.result(row),
            traceparent=None if self.traceparents is None else self.traceparents[row],
        )

    def result(self, row: int) -> Any:
        """Return what a stage has set as the result of a row; None: nothing."""
        if self.results is not None:
            return self.results[row]
        if self.result_columns is None:
            return None
        return {
            name: column[row : row + 1].tolist()[0] if isinstance(column, np.ndarray) else column[row]
            for name, column in self.result_columns.items()
        }

    def select(self, rows: Sequence[int]) -> FrameBatch:
        """Return a copy with only these rows, in this order; arrays are copied."""
        batch = FrameBatch(
            tuple([self.payloads[row] for row in rows]),
            ids=tuple([self.ids[row] for row in rows]),
            streams=tuple([self.streams[row] for row in rows]),
            topics=tuple([self.topics[row] for row in rows]),
            sequences=tuple([self.sequences[row] for row in rows]),
            captured_at=tuple([self.captured_at[row] for row in rows]),
            content_type=self.content_type,
            traceparents=None if self.traceparents is None else [self.traceparents[row] for row in rows],
            meta=self.meta,
        )
        index = np.array(rows, np.intp)
        batch.array = None if self.array is None else self.array[index]
        batch.tensors = {name: column[index] for name, column in self.tensors.items()}
        batch.meta_columns = {key: _rows_of(column, rows, index) for key, column in self.meta_columns.items()}
        batch.fields = None if self.fields is None else [self.fields[row] for row in rows]
        batch.results = None if self.results is None else _rows_of(self.results, rows, index)
        if self.result_columns is not None:
            batch.result_columns = {key: _rows_of(column, rows, index) for key, column in self.result_columns.items()}
        return batch

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> FrameBatch | None:
        """Return frames as columns; None if they are not alike.

        Alike are frames of different streams with one content type whose arrays and tensors have the same names, shapes and
        dtypes, and whose meta has its keys in one order. Their arrays are copied.
        """
        streams = tuple([frame.stream for frame in frames])
        if not frames or len(set(streams)) < len(streams) or set(map(type, frames)) != {Frame}:
            return None
        first = frames[0]
        if any(
            frame.content_type != first.content_type or list(frame.tensors) != list(first.tensors) for frame in frames
        ):
            return None
        traceparents = [frame.traceparent for frame in frames]
        batch = cls(
            tuple([frame.payload for frame in frames]),
            ids=tuple([frame.id for frame in frames]),
            streams=streams,
            topics=tuple([frame.topic for frame in frames]),
            sequences=tuple([frame.sequence for frame in frames]),
            captured_at=tuple([frame.captured_at for frame in frames]),
            content_type=first.content_type,
            traceparents=traceparents if any(each is not None for each in traceparents) else None,
        )
        arrays = [frame._array for frame in frames]
        if any(array is not None for array in arrays) and (stacked := _stacked(arrays)) is not None:
            batch.array = stacked
        elif any(array is not None for array in arrays):
            return None
        tensors = {name: _stacked([frame.tensors[name] for frame in frames]) for name in first.tensors}
        if any(column is None for column in tensors.values()):
            return None
        batch.tensors = {name: column for name, column in tensors.items() if column is not None}
        if not batch._gather_meta([frame.meta for frame in frames]):
            return None
        if any(frame.fields for frame in frames):
            batch.fields = [frame.fields for frame in frames]
        if any(frame.result is not None for frame in frames):
            batch.results = [frame.result for frame in frames]
        return batch

    def _gather_meta(self, metas: Sequence[Mapping[str, Any]]) -> bool:
        """Take the meta of frames; return False if their keys are in different orders, which a result may show."""
        first = metas[0]
        if all(meta is first for meta in metas):
            self.meta = first
            return True
        keys = dict.fromkeys(key for meta in metas for key in meta)
        self.meta_columns = {key: [meta.get(key, ABSENT) for meta in metas] for key in keys}
        return all([key for key in keys if key in meta] == list(meta) for meta in metas)

    def _copy(self) -> FrameBatch:
        batch = FrameBatch.__new__(FrameBatch)  # written out, as in `Frame`
        batch.payloads = self.payloads
        batch.ids = self.ids
        batch.streams = self.streams
        batch.topics = self.topics
        batch.sequences = self.sequences
        batch.captured_at = self.captured_at
        batch.content_type = self.content_type
        batch.traceparents = self.traceparents
        batch.array = self.array
        batch.tensors = self.tensors
        batch.meta = self.meta
        batch.meta_columns = self.meta_columns
        batch.fields = self.fields
        batch.results = self.results
        batch.result_columns = self.result_columns
        batch.left = self.left  # shared: a row may leave by any copy that a stage makes
        return batch

    def __repr__(self) -> str:
        shape = "" if self.array is None else f" {self.array.dtype}{list(self.array.shape)}"
        return f"<FrameBatch {len(self)} rows{shape}>"


def _rows_of(column: Sequence[Any] | Array, rows: Sequence[int], index: Array) -> Any:
    return column[index] if isinstance(column, np.ndarray) else [column[row] for row in rows]


def _stacked(arrays: Sequence[Any]) -> Array | None:
    """Return arrays along a new first axis, unchanged in dtype; None if they are not alike."""
    first = arrays[0]
    if any(type(array) is not np.ndarray for array in arrays):
        return None  # nothing, or a subclass, such as a masked array, that would lose what it adds
    if any(array.shape != first.shape or array.dtype != first.dtype for array in arrays):
        return None
    stacked = np.empty((len(arrays), *first.shape), first.dtype)
    for row, array in enumerate(arrays):
        stacked[row] = array
    return stacked
