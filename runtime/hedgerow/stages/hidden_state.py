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
        zero = model.zero_state()
        self._shapes = {name: array.shape for name, array in zero.items()}
        axes = {name: model.batch_axis.get(name, 0) for name, _ in pairs}
        self._pairs = [(name, output, axes[name], model.batch_axis.get(output, axes[name])) for name, output in pairs]
        self._one_row = all(len(shape) > axes[name] and shape[axes[name]] == 1 for name, shape in self._shapes.items())
        self._table = context.stream_table(
            **{name: (array.shape, array.dtype) for name, array in zero.items()},
            **{_VERSION: ((), np.int64), _OTHER: ((), object)},
        )
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

    def one(self, stream: str, version: Version, *, begins: bool) -> dict[str, Array]:
        """Return the state of a stream by input, with a batch axis of size 1; zero state if it begins."""
        table = self._table
        row = table.row(stream)
        if begins:
            table.put(_VERSION, row, 0)
        if begins or table.take(_VERSION, row) != version.number:
            return dict(version.zero)
        if self._any_other and (other := table.take(_OTHER, row).item()) is not None:
            return dict(other)
        return {name: table.take(name, row) for name, *_ in self._pairs}

    def put_one(self, stream: str, version: Version, outputs: dict[str, Array]) -> None:
        """Take the next state of a stream out of its outputs, and store it."""
        table = self._table
        row = table.row(stream)
        state = {name: outputs.pop(output) for name, output, *_ in self._pairs}
        if version.fits and all(array.shape == self._shapes[name] for name, array in state.items()):
            for name, array in state.items():
                table.put(name, row, array)
            other = None
        else:  # copied, so that a silent stream does not keep the whole batch in memory
            other = {name: array.copy() for name, array in state.items()}
            self._any_other = True
        if self._any_other:
            table.put(_OTHER, row, other)
        table.put(_VERSION, row, version.number)

    def many(
        self, streams: Sequence[str], version: Version, begins: Sequence[Any]
    ) -> tuple[Rows, dict[str, Array]] | None:
        """Return the rows of streams and their state by input, with a row for each on the batch axis.

        Returns: None: it is not all in the table, so only `one` has it.
        """
        if not (version.fits and self._one_row):
            return None
        table = self._table
        rows = table.rows(streams)
        if any(begins):
            table.put(_VERSION, rows[[row for row, value in enumerate(begins) if value]], 0)
        fresh = table.take(_VERSION, rows) != version.number
        if self._any_other and any(other is not None for other in table.take(_OTHER, rows)[~fresh]):
            return None
        states = {}
        for name, _, axis, _ in self._pairs:
            array = table.take(name, rows)
            if fresh.any():
                array[fresh] = 0
            # Its batch axis, of size 1, gives way to the rows.
            states[name] = array.swapaxes(0, 1 + axis)[0] if axis else array[:, 0]
        return rows, states

    def put_many(self, rows: Rows, version: Version, outputs: dict[str, Array]) -> bool:
        """Take the next state of streams out of a batch's outputs, and store it.

        Returns: False: it has other shapes than the table, so nothing was stored.
        """
        states = {}
        for name, output, _, axis in self._pairs:
            array = outputs[output]
            array = array[np.newaxis].swapaxes(0, 1 + axis) if axis else array[:, np.newaxis]
            if array.shape != (len(rows), *self._shapes[name]):
                return False
            states[name] = array
        for name, array in states.items():
            self._table.put(name, rows, array)
        if self._any_other:
            self._table.put(_OTHER, rows, None)
        self._table.put(_VERSION, rows, version.number)
        for _, output, *_ in self._pairs:
            del outputs[output]
        return True

    def _new_version(self, token: object) -> Version:
        self._newest += 1
        zero = self._model.zero_state()
        fits = {name: array.shape for name, array in zero.items()} == self._shapes
        version = self._versions[token] = Version(self._newest, zero, fits)
        if len(self._versions) > _REMEMBERED:
            self._versions.popitem(last=False)
        return version
