"""Looks at what a version on trial gives for live frames: counts what is not finite, gathers how values are distributed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from hedgerow.frame import Array
from hedgerow.models.bundle.manifest import Baseline
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.monitor.output_statistics import OutputStatistics, not_finite_rows
from hedgerow.models.serving.engine import Engine

_SHARE: Final = 0.05
"""Of the time, that gathering distributions may take."""


class Observer:
    """An observer of one engine, from when it is made until `stop`."""

    def __init__(self, engine: Engine) -> None:
        baseline = engine.model_version.manifest.baseline if engine.model_version is not None else None
        self._engine = engine
        self._baseline = baseline or Baseline(samples=0)
        self._axes = engine.signature.output_axes
        self._lock = threading.Lock()
        self._frames = 0
        self._not_finite = 0
        self._began = time.perf_counter()
        self._spent_s = 0.0
        self._gathered = OutputStatistics(self._baseline.outputs, self._baseline.samples, self._axes)
        self._failed_before = engine.info().failures
        engine.observers = (*engine.observers, self)

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """See one batch that ran."""
        began = time.perf_counter()
        bad = not_finite_rows(outputs, self._axes, self._baseline.outputs, rows)
        with self._lock:
            self._frames += rows
            self._not_finite += bad
            if self._gathered and self._spent_s <= _SHARE * (began - self._began):
                self._gathered.add(outputs, rows)
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
            return self._gathered.shift()

    def observations(self) -> Observations:
        """All of that."""
        return Observations(
            frames=self.frames,
            failures=self.failures,
            not_finite=self.not_finite,
            recent_s=self._engine.recent_s(),
            shift=self.shift(),
        )

    def stop(self) -> None:
        """Look at no more."""
        self._engine.observers = tuple(each for each in self._engine.observers if each is not self)
