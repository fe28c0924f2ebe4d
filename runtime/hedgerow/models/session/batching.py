"""What goes into one batch, and how arrays are stacked and split. Pure: no threads, no backend.

Words:
- rows: how many entries a request has along its batch axis; one, usually.
- key: requests of one key may share a batch; None: it runs alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from hedgerow.frame import Array

_ALL = slice(None)


def pick(waiting: Sequence[tuple[Hashable, int]], limit: int) -> list[int]:
    """Which of the waiting requests go into the next batch.

    The one that waits longest goes first, so none is passed over for ever; with it go those of its key, in order, until
    one no longer fits. A request that has more rows than the limit goes alone.

    Args:
        waiting: key and rows of each request, longest waiting first.
        limit: most rows in a batch.
    Returns: positions in `waiting`, ascending; empty only if `waiting` is.
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
    """One input from those of several requests.

    Args:
        axes: the batch axis of every input; None: it has none and is the same in all requests.
        padding: how often the last row is repeated at the end.
    Returns: arrays in C order; of a single request its own, not copied if they are in C order already.
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


def split(
    outputs: Mapping[str, Array], axes: Mapping[str, int], rows: Sequence[int], total: int
) -> list[dict[str, Array]]:
    """The outputs of every request of a batch; views, not copies.

    Args:
        axes: the batch axis of every output.
        rows: how many rows each request had.
        total: how many rows the batch had, padding included.
    Raises: ValueError: an output does not have that many rows along its batch axis.
    """
    for name, array in outputs.items():
        axis = axes[name]
        if array.ndim <= axis or array.shape[axis] != total:
            raise ValueError(f"{name} came back as {list(array.shape)} for {total} rows on axis {axis}")
    if rows.count(1) == len(rows):  # as nearly always: numpy walks along an axis faster than slices are made
        singles: list[dict[str, Array]] = [{} for _ in rows]
        for name, array in outputs.items():
            for single, row in zip(singles, _rows_of(array, axes[name], len(rows)), strict=True):
                single[name] = row
        return singles
    parts = []
    begin = 0
    for count in rows:
        cut = slice(begin, begin + count)
        parts.append({name: array[(_ALL,) * axes[name] + (cut,)] for name, array in outputs.items()})
        begin += count
    return parts


def _last(array: Array, axis: int) -> Array:
    return array[(*[_ALL] * axis, slice(-1, None))]


def _rows_of(array: Array, axis: int, count: int) -> list[Array]:
    """Views of an array's first rows, each with its batch axis of size 1."""
    if axis == 0:
        return list(array[:count, np.newaxis])
    return list(np.moveaxis(array, axis, 0)[(slice(count), *[_ALL] * axis, np.newaxis)])


def alike(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether two outputs of the same request are the same but for rounding.

    Shapes and types must agree, and floats roughly; whole numbers may flip by rounding and are not looked at.
    """
    return all(
        array.shape == other[name].shape
        and array.dtype == other[name].dtype
        and (array.dtype.kind != "f" or _close(array, other[name]))
        for name, array in one.items()
    )


def _close(one: Array, other: Array) -> bool:
    scale = float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=1e-2, atol=1e-2 * scale, equal_nan=True))


def _in_order(array: Array) -> Array:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
