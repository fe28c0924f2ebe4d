"""Hidden state of a model, stream by stream: for `infer`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hedgerow.frame import Array
from hedgerow.stage import ModelHandle, StageContext

_VERSION: Final = "hedgerow:version"
_OTHER: Final = "hedgerow:other"
_REMEMBERED: Final = 64
"""Versions whose states are told apart; state of an older one is reset."""

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Version:
    """A model version, as far as its state is concerned.

    Attributes:
        number: never 0, and never that of another version.
        zero: state of a new stream, with the batch axis.
        fits: whether it has the shapes of the table.
    """

    number: int
    zero: Mapping[str, Array]
    fits: bool


class HiddenStates:
    """Hidden state of all streams: a row of a table for each.

    Another version may have state of other shapes than the one that served at setup, and a model may return state of
    another shape than it got. Such state is stored beside the table, in an object per stream.

    Args:
        pairs: state input → output with its next value.
    """

    def __init__(self, context: StageContext, model: ModelHandle, pairs: Sequence[tuple[str, str]]) -> None:
        self._model = model
        self._pairs = pairs
        zero = model.zero_state()
        self._axes = {name: model.batch_axis.get(name, 0) for name, _ in pairs}
        self._next_axes = {output: model.batch_axis.get(output, self._axes[name]) for name, output in pairs}
        self._shapes = {name: array.shape for name, array in zero.items()}
        self._single = all(shape[self._axes[name]] == 1 if shape else False for name, shape in self._shapes.items())
        columns: dict[str, tuple[Any, ...]] = {
            name: (self._row_shape(name) if self._single else (), array.dtype) for name, array in zero.items()
        }
        self._table = context.stream_table(**columns, **{_VERSION: ((), np.int64), _OTHER: ((), object)})
        self._any_other = False
        self._versions: OrderedDict[object, Version] = OrderedDict()
        self._newest = 0
        self._lock = threading.Lock()  # several lanes may meet a new version at once

    def version(self) -> Version:
        """Return the version on which this thread's list of frames runs."""
        token = self._model.state_token
        version = self._versions.get(token)
        if version is None:
            with self._lock:
                version = self._versions.get(token) or self._new_version(token)
        return version

    def rows(self, streams: Sequence[str]) -> Rows:
        """Return the rows of streams."""
        return self._table.rows(streams)

    def restart(self, rows: Rows) -> None:
        """Let streams begin anew, with zero state."""
        self._table.put(_VERSION, rows, 0)

    def columns(self, rows: Rows, version: Version) -> dict[str, Array] | None:
        """Return the state of streams by input, its rows on the batch axis; None: it is not all in the table."""
        if not version.fits:
            return None
        table = self._table
        fresh = table.take(_VERSION, rows) != version.number
        if self._any_other and any(other is not None for other in table.take(_OTHER, rows)[~fresh]):
            return None
        states: dict[str, Array] = {name: table.take(name, rows) for name in self._axes}
        if fresh.any():
            for array in states.values():
                array[fresh] = 0
        return {
            name: np.moveaxis(array, 0, axis) if (axis := self._axes[name]) else array for name, array in states.items()
        }

    def put_columns(self, rows: Rows, version: Version, outputs: dict[str, Array]) -> bool:
        """Take the next state out of a batch's outputs, and store it.

        Returns: False: it has other shapes than the table, so nothing was stored.
        """
        states = {}
        for name, output in self._pairs:
            axis, array = self._next_axes[output], outputs[output]
            array = np.moveaxis(array, axis, 0) if axis else array
            if array.shape != (len(rows), *self._row_shape(name)):
                return False
            states[name] = array
        self._put(rows, version, states)
        for output in self._next_axes:
            del outputs[output]
        return True

    def each(self, rows: Rows, version: Version) -> list[dict[str, Array]]:
        """Return the state of each stream by input, with a batch axis of size 1."""
        columns = self.columns(rows, version)
        if columns is not None:
            parts = [
                (name, np.expand_dims(np.moveaxis(array, self._axes[name], 0), 1 + self._axes[name]))
                for name, array in columns.items()
            ]
            return [{name: array[number] for name, array in parts} for number in range(len(rows))]
        return [self._one(row, version) for row in rows.tolist()]

    def put_each(self, rows: Rows, version: Version, results: Sequence[Any]) -> None:
        """Take the next state out of each result that is a mapping of outputs, and store it."""
        done = [number for number, result in enumerate(results) if result.__class__ is dict]
        states = [{name: results[number].pop(output) for name, output in self._pairs} for number in done]
        if not states:
            return
        whole = {name: self._shapes[name] for name in self._axes}
        if version.fits and all(state[name].shape == shape for state in states for name, shape in whole.items()):
            stacked = {
                name: np.concatenate([np.moveaxis(state[name], axis, 0) for state in states])
                for (name, _), axis in zip(self._pairs, self._next_axes.values(), strict=True)
            }
            self._put(rows[done], version, stacked)
            return
        self._any_other = True
        for number, state in zip(done, states, strict=True):
            row = int(rows[number])
            # Copied, so that a silent stream does not keep the whole batch in memory.
            self._table.put(_OTHER, row, {name: array.copy() for name, array in state.items()})
            self._table.put(_VERSION, row, version.number)

    def _put(self, rows: Rows, version: Version, states: Mapping[str, Array]) -> None:
        for name, array in states.items():
            self._table.put(name, rows, array)
        if self._any_other:
            self._table.put(_OTHER, rows, None)
        self._table.put(_VERSION, rows, version.number)

    def _one(self, row: int, version: Version) -> dict[str, Array]:
        table = self._table
        if table.take(_VERSION, row) != version.number:
            return dict(version.zero)
        other = table.take(_OTHER, row).item()
        if other is not None:
            return dict(other)
        return {name: np.expand_dims(table.take(name, row), axis) for name, axis in self._axes.items()}

    def _row_shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self._shapes[name], self._axes[name]
        return (*shape[:axis], *shape[axis + 1 :])

    def _new_version(self, token: object) -> Version:
        self._newest += 1
        zero = self._model.zero_state()
        fits = self._single and {name: array.shape for name, array in zero.items()} == self._shapes
        version = self._versions[token] = Version(self._newest, zero, fits)
        if len(self._versions) > _REMEMBERED:
            self._versions.popitem(last=False)
        return version
