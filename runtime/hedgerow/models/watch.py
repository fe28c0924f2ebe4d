"""Looks at what a version on trial gives for live frames: counts what is not finite, gathers how values are distributed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Final

import numpy as np

from hedgerow.frame import Array
from hedgerow.models.conduct import Conduct
from hedgerow.models.engine import Engine
from hedgerow.models.manifest import Baseline
from hedgerow.models.probation import excess_shift
from hedgerow.models.statistics import Accumulator

_AT_MOST: Final = 4096
"""Values looked at of one output of one batch."""

_SHARE: Final = 0.05
"""Of the time, that gathering distributions may take."""


class Watch:
    """An observer of one engine, from when it is made until `end`."""

    def __init__(self, engine: Engine) -> None:
        baseline = engine.candidate.manifest.baseline if engine.candidate is not None else None
        self._engine = engine
        self._baseline = baseline or Baseline(samples=0)
        self._axes = engine.fit.output_axes
        self._lock = threading.Lock()
        self._frames = 0
        self._not_finite = 0
        self._began = time.perf_counter()
        self._spent_s = 0.0
        self._gathered_frames = 0
        self._gathered = {
            name: Accumulator(one.edges, at_most=_AT_MOST)
            for name, one in self._baseline.outputs.items()
            if one.counts and one.edges
        }
        self._failed_before = engine.info().failures
        engine.observers = (*engine.observers, self)

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """See one batch that ran."""
        began = time.perf_counter()
        bad = self._bad_rows(outputs, rows)
        with self._lock:
            self._frames += rows
            self._not_finite += bad
            if self._gathered and self._spent_s <= _SHARE * (began - self._began):
                self._gathered_frames += rows
                for name, accumulator in self._gathered.items():
                    if (array := outputs.get(name)) is not None:
                        accumulator.add(_rows(array, self._axes.get(name, 0), rows))
                self._spent_s += time.perf_counter() - began

    @property
    def frames(self) -> int:
        """Frames it was given."""
        return self._frames + self.failures

    @property
    def failures(self) -> int:
        """Frames that failed since."""
        return self._engine.info().failures - self._failed_before

    @property
    def not_finite(self) -> int:
        """Frames whose outputs hold what the author's samples gave none of."""
        return self._not_finite

    def shift(self) -> dict[str, float]:
        """By output, how far its values are from the baseline, above what chance explains."""
        with self._lock:
            return {
                name: excess_shift(
                    self._baseline.outputs[name], gathered.counts, self._baseline.samples, self._gathered_frames
                )
                for name, gathered in self._gathered.items()
            }

    def conduct(self) -> Conduct:
        """All of that."""
        return Conduct(
            frames=self.frames,
            failures=self.failures,
            not_finite=self.not_finite,
            recent_s=self._engine.recent_s(),
            shift=self.shift(),
        )

    def end(self) -> None:
        """Look at no more."""
        self._engine.observers = tuple(each for each in self._engine.observers if each is not self)

    def _bad_rows(self, outputs: Mapping[str, Array], rows: int) -> int:
        bad = np.zeros(rows, np.bool_)
        for name, array in outputs.items():
            known = self._baseline.outputs.get(name)
            if array.dtype.kind != "f" or (known is not None and known.not_finite):
                continue
            array = _rows(array, self._axes.get(name, 0), rows)
            if _finite(array):
                continue
            axis = self._axes.get(name, 0)
            if axis >= array.ndim or array.shape[axis] != rows:
                return rows
            wrong = ~np.isfinite(np.moveaxis(array, axis, 0).reshape(rows, -1)).all(axis=1)
            bad |= wrong
        return int(bad.sum())


def _finite(array: Array) -> bool:
    with np.errstate(all="ignore"):
        return math.isfinite(float(array.sum())) or bool(np.isfinite(array).all())


def _rows(array: Array, axis: int, rows: int) -> Array:
    """Without padding."""
    if axis < array.ndim and array.shape[axis] > rows:
        return array[(slice(None),) * axis + (slice(rows),)]
    return array
