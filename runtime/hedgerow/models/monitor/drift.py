"""Drift detection: samples live frames of a serving version and compares them with its baseline.

    batches ──some──▶ DriftMonitor ──▶ DriftWindow (pure): recent shift from the baseline, NaN and infinity

Rules:
- Sampling takes at most 1 % of the time: after each sampled batch it pauses a hundred times as long as that took. So idle
  hours do not add up to a burst. A batch during a pause costs a look at the clock, and no batch waits for another's
  sampling.
- Consecutive frames are similar: a few seconds of a stream may be all speech or all silence. So drift is not known before
  a full window has passed, and then covers one to two windows. NaN and infinity are reported at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hedgerow.frame import Array
from hedgerow.models.bundle.manifest import Baseline
from hedgerow.models.monitor.output_statistics import OutputStatistics, not_finite_rows
from hedgerow.models.session.signature import Signature

WINDOW_S: Final = 60.0
"""Shortest duration of a window."""

MIN_FRAMES: Final = 100
"""Fewest frames in a window; if frames are rare, windows last longer."""

_SHARE: Final = 0.01
"""Largest share of the time spent on sampling."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Recent observations of a model.

    Attributes:
        looked_at: number of sampled frames.
        not_finite: sampled frames with NaN or infinity in outputs where the author's samples had none.
        drift: largest shift of an output from the baseline; None: not known yet.
        input_drift: the same for inputs.
    """

    looked_at: int = 0
    not_finite: int = 0
    drift: float | None = None
    input_drift: float | None = None


class _HalfWindow:
    """Statistics since a point in time."""

    def __init__(self, baseline: Baseline, signature: Signature, started_at: float) -> None:
        self.started_at = started_at
        self.frames = 0
        self.not_finite = 0
        self.inputs = OutputStatistics(baseline.inputs, baseline.samples, signature.axes)
        self.outputs = OutputStatistics(baseline.outputs, baseline.samples, signature.output_axes)


class DriftWindow:
    """Statistics of a model's recent frames. Pure: the caller passes the time.

    It has two halves. When the newer one is complete, it replaces the older one.

    Args:
        signature: provides the batch axes.
        length_s, min_frames: size of a half.
    """

    def __init__(self, baseline: Baseline, signature: Signature, *, length_s: float, min_frames: int) -> None:
        self._baseline = baseline
        self._signature = signature
        self._length_s = length_s
        self._min_frames = min_frames
        self._older: _HalfWindow | None = None
        self._newer: _HalfWindow | None = None

    def add(self, at: float, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> None:
        """Add a batch.

        Args:
            at: seconds on a monotonic clock.
            rows: number of frames; further rows are padding.
        """
        half = self._newer
        if half is None or (at - half.started_at >= self._length_s and half.frames >= self._min_frames):
            self._older, half = half, _HalfWindow(self._baseline, self._signature, at)
            self._newer = half
        half.frames += rows
        half.not_finite += not_finite_rows(outputs, self._signature.output_axes, self._baseline.outputs, rows)
        half.inputs.add(batch, rows)
        half.outputs.add(outputs, rows)

    def report(self) -> DriftReport:
        """Return the observations of both halves."""
        older, newer = self._older, self._newer
        if newer is None:
            return DriftReport()
        if older is None:
            return DriftReport(newer.frames, newer.not_finite)
        return DriftReport(
            older.frames + newer.frames,
            older.not_finite + newer.not_finite,
            _largest(newer.outputs.shift(older.outputs)),
            _largest(newer.inputs.shift(older.inputs)),
        )


class DriftMonitor:
    """Observer of an engine whose bundle has a baseline, for as long as it serves.

    Args:
        signature: provides the batch axes.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self, baseline: Baseline, signature: Signature, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._baseline = baseline
        self._signature = signature
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until: float
        self.reset()

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """Sample a batch that has run, unless sampling is paused."""
        started = self._clock()
        if started < self._paused_until or not self._lock.acquire(blocking=False):
            return
        try:
            self._window.add(started, batch, outputs, rows)
            ended = self._clock()
            self._paused_until = ended + (ended - started) / _SHARE
        finally:
            self._lock.release()

    def report(self) -> DriftReport:
        """Return recent observations."""
        with self._lock:
            return self._window.report()

    def reset(self) -> None:
        """Discard all observations, as after a warm-up."""
        with self._lock:
            self._window = DriftWindow(self._baseline, self._signature, length_s=WINDOW_S, min_frames=MIN_FRAMES)
            self._paused_until = 0.0


def _largest(shifts: Mapping[str, float]) -> float | None:
    return round(max(shifts.values()), 4) if shifts else None
