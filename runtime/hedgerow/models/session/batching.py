"""Selection of requests for a batch, and stacking and splitting of their arrays. Pure: no threads, no backend.

Terms:
- rows: size of a request along its batch axis; usually one.
- key: requests with the same key may share a batch; None: the request runs alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from hedgerow.frame import Array

_ALL = slice(None)


def pick(waiting: Sequence[tuple[Hashable, int]], limit: int) -> list[int]:
    """Select the waiting requests for the next batch.

    The oldest request is always included, so none waits for ever. Requests with the same key follow in order, until one
    does not fit. A request with more rows than the limit runs alone.

    Args:
        waiting: key and rows of each request, oldest first.
        limit: most rows in a batch.
    Returns: positions in `waiting`, ascending; empty only if `waiting` is empty.
    """
    if not waiting:
        return []
    key, total = waiting[0]
    chosen = [0]
    if key is None:
        return chosen
    for position in range(1, len(waiting)):
        other, rows = waiting[position]
        if other == key:
            if total + rows > limit:
                break
            chosen.append(position)
            total += rows
    return chosen


def stack(requests: Sequence[Mapping[str, Array]], axes: Mapping[str, int | None], padding: int) -> dict[str, Array]:
    """Stack the inputs of several requests to one batch.

    Args:
        axes: batch axis of every input; None: it has none, and is the same in all requests.
        padding: how often to repeat the last row at the end.
    Returns: C-contiguous arrays; those of a single request are copied only if they are not contiguous.
    """
    if padding:
        last = requests[-1]
        row = {name: array if (axis := axes[name]) is None else _last(array, axis) for name, array in last.items()}
        requests = [*requests, *[row] * padding]
    if len(requests) == 1:
        return {name: _in_order(array) for name, array in requests[0].items()}
    return {
        name: _in_order(requests[0][name])
        if axis is None
        else np.concatenate([request[name] for request in requests], axis=axis)
        for name, axis in axes.items()
    }


def fill(batch: Mapping[str, Array], requests: Sequence[Mapping[str, Array]], axes: Mapping[str, int | None]) -> None:
    """Copy the inputs of several requests into the arrays of one batch, like `stack`; their last row fills what remains.

    Args:
        batch: arrays to fill, by input.
        axes: batch axis of every input of the requests; None: it has none, and is the same in all requests.
    """
    for name, axis in axes.items():
        array = batch[name]
        if axis is None:
            array[...] = requests[0][name]
            continue
        if len(requests) == 1 and array.shape == requests[0][name].shape:
            array[...] = requests[0][name]
            continue
        before = (_ALL,) * axis
        start = 0
        for request in requests:
            end = start + request[name].shape[axis]
            array[(*before, slice(start, end))] = request[name]
            start = end
        if start < array.shape[axis]:
            array[(*before, slice(start, None))] = array[(*before, slice(start - 1, start))]


def parts(request: Mapping[str, Array], axes: Mapping[str, int | None], limit: int) -> list[Mapping[str, Array]]:
    """Divide a request into several of at most `limit` rows each, as views.

    Args:
        axes: batch axis of every input; None: it has none, and is the same in all parts.
    """
    rows = max(request[name].shape[axis] for name, axis in axes.items() if axis is not None)
    return [
        {
            name: array if (axis := axes[name]) is None else array[(*[_ALL] * axis, slice(start, start + limit))]
            for name, array in request.items()
        }
        for start in range(0, rows, limit)
    ]


def join(outputs: Sequence[Mapping[str, Array]], axes: Mapping[str, int]) -> dict[str, Array]:
    """Join the outputs of parts in order; the opposite of `parts`."""
    return {name: np.concatenate([each[name] for each in outputs], axis=axes[name]) for name in outputs[0]}


def split(
    outputs: Mapping[str, Array], axes: Mapping[str, int], rows: Sequence[int], total: int
) -> list[dict[str, Array]]:
    """Split the outputs of a batch into those of its requests, as views.

    Args:
        axes: batch axis of every output.
        rows: number of rows of each request.
        total: number of rows in the batch, padding included.
    Raises: ValueError: an output does not have `total` rows along its batch axis.
    """
    for name, array in outputs.items():
        axis = axes[name]
        if array.ndim <= axis or array.shape[axis] != total:
            raise ValueError(f"output {name} has the shape {list(array.shape)}, not {total} rows on axis {axis}")
    if rows.count(1) == len(rows):  # nearly always: iterating over an axis in numpy is faster than slicing
        singles: list[dict[str, Array]] = [{} for _ in rows]
        for name, array in outputs.items():
            for single, row in zip(singles, _rows_of(array, axes[name], len(rows)), strict=True):
                single[name] = row
        return singles
    parts = []
    start = 0
    for count in rows:
        own = slice(start, start + count)
        parts.append({name: array[(_ALL,) * axes[name] + (own,)] for name, array in outputs.items()})
        start += count
    return parts


def _last(array: Array, axis: int) -> Array:
    return array[(*[_ALL] * axis, slice(-1, None))]


def _rows_of(array: Array, axis: int, count: int) -> list[Array]:
    """Return views of an array's first rows, each with a batch axis of size 1."""
    if axis == 0:
        return list(array[:count, np.newaxis])
    return list(np.moveaxis(array, axis, 0)[(slice(count), *[_ALL] * axis, np.newaxis)])


def _in_order(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
