"""Checks what a stage returns: a plugin may return anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any, Final

import numpy as np

from hedgerow.columns.frame_batch import FrameBatch
from hedgerow.errors import text_of
from hedgerow.frame import Drop, Frame
from hedgerow.stage import MOST_PARTS
from hedgerow.text import visible

_LONGEST_REASON: Final = 64
_PER_ROW: Final = ("payloads", "topics", "sequences", "captured_at", "traceparents", "fields", "results")


def listed(outcomes: Any, count: int) -> list[Any]:
    """Return what `process_many` returned as a list, at most one longer than it should be."""
    if isinstance(outcomes, (Set, Mapping)):
        raise TypeError(f"process_many returned a {type(outcomes).__name__}, which has no order")
    return list(islice(outcomes, count + 1))


def checked(outcome: Any, stream: str) -> Drop | Frame | tuple[Frame, ...]:
    """Return what a stage returned for a frame of `stream`, as a drop, a frame, or the frames that it was split into.

    Raises: TypeError, ValueError: it is something else; and whatever a generator raises.
    """
    kind = type(outcome)
    if outcome is None:
        return ()
    if issubclass(kind, Drop):
        return Drop(visible(text_of(outcome.reason)[:_LONGEST_REASON]) or "dropped")
    parts: tuple[Any, ...]
    if kind is list:  # before those that ask an abstract class, which takes longer than all the rest
        parts = tuple(outcome)
    elif issubclass(kind, Frame):
        parts = (outcome,)
    elif issubclass(kind, (str, bytes, Mapping)) or not issubclass(kind, Iterable):
        raise TypeError(f"process returned a {kind.__name__} instead of a Frame")
    else:
        parts = tuple(islice(outcome, MOST_PARTS + 1))
    if len(parts) > MOST_PARTS:
        raise ValueError(f"process returned more than {MOST_PARTS:,} frames for one frame")
    for part in parts:
        if not issubclass(type(part), Frame):
            raise TypeError(f"process returned a {type(part).__name__} instead of a Frame")
        if part.stream != stream:
            raise ValueError(f"process returned a frame of stream {part.stream!r} for a frame of stream {stream!r}")
    return parts[0] if len(parts) == 1 and type(parts[0]) is Frame else parts


def checked_batch(returned: Any, given: FrameBatch, left: Mapping[Any, Any]) -> FrameBatch:
    """Return what `process_batch` returned, if it has the rows that it was given, and each column has all of them.

    Args:
        given: the batch that it got a copy of.
        left: the rows that have left.
    Raises: TypeError, ValueError: it has not.
    """
    if type(returned) is not FrameBatch:
        raise TypeError(f"process_batch returned a {type(returned).__name__} instead of a FrameBatch")
    count = len(given)
    if returned.streams is not given.streams and tuple(returned.streams) != given.streams:
        raise ValueError("process_batch returned rows of other streams, or in another order")
    if returned.ids is not given.ids and tuple(returned.ids) != given.ids:
        raise ValueError("process_batch returned rows with other ids")
    returned.streams, returned.ids = given.streams, given.ids
    for name in ("tensors", "meta", "meta_columns"):
        if type(getattr(returned, name)) is not dict:
            setattr(returned, name, dict(getattr(returned, name)))
    if returned.left is not left and returned.left:
        raise ValueError("process_batch let rows leave a selection of its batch: let them leave the batch itself")
    for row in left:
        if type(row) is not int or not 0 <= row < count:
            raise ValueError(f"process_batch let row {text_of(row)[:40]} leave a batch of {count} rows")
    for name in _PER_ROW:
        column = getattr(returned, name)
        if column is not None:  # also the same one: a stage may have changed it
            _check_rows(name, column, count)
    if returned.array is not None:
        _check_array("array", returned.array, count)
    for name, tensor in returned.tensors.items():
        _check_array(f"tensors[{name!r}]", tensor, count)
    for name, column in returned.meta_columns.items():
        _check_rows(f"meta_columns[{name!r}]", column, count)
    if returned.result_columns is not None:
        returned.result_columns = dict(returned.result_columns)
        for name, column in returned.result_columns.items():
            _check_rows(f"result_columns[{name!r}]", column, count)
    return returned


def _check_rows(name: str, column: Any, count: int) -> None:
    if type(column) is np.ndarray:
        _check_array(name, column, count)
    elif type(column) is not list and type(column) is not tuple:
        raise TypeError(f"process_batch returned a {type(column).__name__} as {name}: not a list, tuple or array")
    elif len(column) != count:
        raise ValueError(f"process_batch returned {len(column)} rows of {name} for {count} frames")


def _check_array(name: str, array: Any, count: int) -> None:
    if type(array) is not np.ndarray:
        raise TypeError(f"process_batch returned a {type(array).__name__} as {name}: not an array")
    if array.shape[:1] != (count,):
        raise ValueError(f"process_batch returned {name} of shape {array.shape} for {count} frames")
