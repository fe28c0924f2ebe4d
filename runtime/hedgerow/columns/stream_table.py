"""Per-stream state as rows of arrays, for stages that process batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hedgerow.frame import Array

_FIRST_ROWS: Final = 64


class StreamTable:
    """State by stream: named arrays with a row for each stream.

    A stream gets a row with the initial values on first access. When there are too many streams, the node discards the
    row of those silent for longest, never while one of their frames is in a stage; a row is cleared before another
    stream gets it. Thread-safe, if no two threads use the same stream at once.

    Args:
        columns: for each array: shape of a row, dtype, and optionally its initial value (else 0, or None for objects).
    """

    def __init__(self, **columns: tuple[Any, ...]) -> None:
        self._initial: dict[str, Any] = {}
        self._arrays: dict[str, Array] = {}
        for name, (shape, dtype, *initial) in columns.items():
            self._arrays[name] = array = np.empty((0, *shape), dtype)
            self._initial[name] = initial[0] if initial else (None if array.dtype.hasobject else 0)
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._size = 0
        self._lock = threading.Lock()  # growing copies the arrays: nothing may be written meanwhile
        self._grow(_FIRST_ROWS)

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._rows)

    def __contains__(self, stream: object) -> bool:
        return stream in self._rows

    def rows(self, streams: Sequence[str]) -> npt.NDArray[np.intp]:
        """Return the row of each stream, (n,); they are valid until the stage returns."""
        rows = self._rows
        try:
            return np.array([rows[stream] for stream in streams], np.intp)
        except KeyError:
            return np.array([self.row(stream) for stream in streams], np.intp)

    def row(self, stream: str) -> int:
        """Return the row of a stream; it is valid until the stage returns."""
        row = self._rows.get(stream)
        if row is None:
            with self._lock:
                if not self._free:
                    self._grow(2 * self._size)
                row = self._free.pop()
                self._clear(row)
                self._rows[stream] = row
        return row

    def take(self, name: str, rows: int | npt.NDArray[np.intp]) -> Any:
        """Return a copy of these rows of an array, (n, …); of one row, its value (…)."""
        return self._arrays[name][rows] if isinstance(rows, np.ndarray) else self._arrays[name][rows, ...].copy()

    def put(self, name: str, rows: int | npt.NDArray[np.intp], values: Any) -> None:
        """Store values, (n, …) or what fits, in these rows of an array."""
        with self._lock:
            self._arrays[name][rows] = values

    def reset(self, rows: int | npt.NDArray[np.intp]) -> None:
        """Give these rows their initial values, in all arrays."""
        with self._lock:
            self._clear(rows)

    def pop(self, stream: str, default: Any = None) -> Any:
        """Discard the state of a stream; return `default`. Called by the node."""
        with self._lock:
            row = self._rows.pop(stream, None)
            if row is not None:
                self._free.append(row)
        return default

    def clear(self) -> None:
        """Discard the state of all streams."""
        with self._lock:
            self._free += self._rows.values()
            self._rows.clear()

    def _clear(self, rows: int | npt.NDArray[np.intp]) -> None:
        for name, initial in self._initial.items():
            self._arrays[name][rows] = initial

    def _grow(self, size: int) -> None:
        for name, array in self._arrays.items():
            larger = np.empty((size, *array.shape[1:]), array.dtype)
            larger[: self._size] = array
            self._arrays[name] = larger
        self._free += range(size - 1, self._size - 1, -1)
        self._size = size
