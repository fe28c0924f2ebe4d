"""Observer of a version under canary analysis: counts NaN and infinity in its outputs, and their distributions."""

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
"""Largest share of the time spent on distributions."""


class Observer:
    """Observes an engine from its creation until `stop`."""

    def __init__(self, engine: Engine) -> None:
        baseline = engine.model_version.manifest.baseline if engine.model_version is not None else None
        self._engine = engine
        self._baseline = baseline or Baseline(samples=0)
        self._axes = engine.signature.output_axes
        self._lock = threading.Lock()
        self._frames = 0
        self._not_finite = 0
        self._started = time.perf_counter()
        self._spent_s = 0.0
        self._statistics = OutputStatistics(self._baseline.outputs, self._baseline.samples, self._axes)
        self._failed_before = engine.info().failures
        engine.observers = (*engine.observers, self)

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """Observe a batch that has run."""
        started = time.perf_counter()
        bad = not_finite_rows(outputs, self._axes, self._baseline.outputs, rows)
        with self._lock:
            self._frames += rows
            self._not_finite += bad
            if self._statistics and self._spent_s <= _SHARE * (started - self._started):
                self._statistics.add(outputs, rows)
                self._spent_s += time.perf_counter() - started

    @property
    def frames(self) -> int:
        """Frames the engine has received, failed ones included."""
        return self._frames + self.failures

    @property
    def failures(self) -> int:
        """Frames that have failed."""
        return self._engine.info().failures - self._failed_before

    @property
    def not_finite(self) -> int:
        """Frames with NaN or infinity in outputs where the author's samples had none."""
        return self._not_finite

    def shift(self) -> dict[str, float]:
        """Return the shift from the baseline by output, less the shift expected by chance."""
        with self._lock:
            return self._statistics.shift()

    def observations(self) -> Observations:
        """Return all observations."""
        return Observations(
            frames=self.frames,
            failures=self.failures,
            not_finite=self.not_finite,
            recent_s=self._engine.recent_s(),
            shift=self.shift(),
        )

    def stop(self) -> None:
        """Stop observing."""
        self._engine.observers = tuple(each for each in self._engine.observers if each is not self)
