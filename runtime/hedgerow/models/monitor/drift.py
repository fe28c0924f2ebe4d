"""Whether a version that serves still does as its author saw it do: looks at some of its live frames for as long as it serves.

    batches ──now and then──▶ Lookout ──▶ Window (pure): values beside the baseline, and what is not finite, of late

Rules:
- It may take a hundredth of the time: after each look it rests a hundred times as long as that took, so no idle hour is
  saved up for a burst. A batch that comes meanwhile costs a glance at the clock, and none waits for another's look.
- What comes one after the other is alike: a few seconds of a stream may be all speech or all silence. So a drift is not
  known before a whole window has passed, and then it is of one window to two. What is not finite shows at once.
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
"""Shortest time that a drift is of."""

LEAST_FRAMES: Final = 100
"""Fewest frames that it is of; where frames are rare, it takes longer than the window."""

_SHARE: Final = 0.01
"""Of the time, that looking may take."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What was seen of a model of late.

    Attributes:
        looked_at: frames.
        not_finite: those of them whose outputs hold what the author's samples gave none of.
        drift: how far the values of the output that has moved most are from the baseline; None: not known.
        input_drift: the same of what came in.
    """

    looked_at: int = 0
    not_finite: int = 0
    drift: float | None = None
    input_drift: float | None = None


class _Half:
    """What was gathered since a moment."""

    def __init__(self, baseline: Baseline, signature: Signature, began: float) -> None:
        self.began = began
        self.frames = 0
        self.not_finite = 0
        self.inputs = OutputStatistics(baseline.inputs, baseline.samples, signature.axes)
        self.outputs = OutputStatistics(baseline.outputs, baseline.samples, signature.output_axes)


class DriftWindow:
    """The last frames of a model, beside its baseline: it is told the time. Pure.

    Two halves take turns. When the newer one has lasted long enough, it becomes the older one, and the older one goes.

    Args:
        signature: the model's batch axes.
        length_s, least_frames: how much makes a half.
    """

    def __init__(self, baseline: Baseline, signature: Signature, *, length_s: float, least_frames: int) -> None:
        self._baseline = baseline
        self._signature = signature
        self._length_s = length_s
        self._least_frames = least_frames
        self._older: _Half | None = None
        self._newer: _Half | None = None

    def add(self, at: float, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> None:
        """Take in a batch.

        Args:
            at: seconds of a clock that does not jump.
            rows: frames in it; what is more is padding.
        """
        half = self._newer
        if half is None or (at - half.began >= self._length_s and half.frames >= self._least_frames):
            self._older, half = half, _Half(self._baseline, self._signature, at)
            self._newer = half
        half.frames += rows
        half.not_finite += not_finite_rows(outputs, self._signature.output_axes, self._baseline.outputs, rows)
        half.inputs.add(batch, rows)
        half.outputs.add(outputs, rows)

    def seen(self) -> DriftReport:
        """What it has come to."""
        older, newer = self._older, self._newer
        if newer is None:
            return DriftReport()
        if older is None:
            return DriftReport(newer.frames, newer.not_finite)
        return DriftReport(
            older.frames + newer.frames,
            older.not_finite + newer.not_finite,
            _most(newer.outputs.shift(older.outputs)),
            _most(newer.inputs.shift(older.inputs)),
        )


class DriftMonitor:
    """An observer of an engine whose bundle has a baseline, for as long as it serves.

    Args:
        signature: the model's batch axes.
        clock: seconds that do not jump.
    """

    def __init__(
        self, baseline: Baseline, signature: Signature, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._baseline = baseline
        self._signature = signature
        self._clock = clock
        self._lock = threading.Lock()
        self._rests_until: float
        self.forget()

    def __call__(self, batch: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, took_s: float) -> None:
        """See one batch that ran, if it is time for it."""
        began = self._clock()
        if began < self._rests_until or not self._lock.acquire(blocking=False):
            return
        try:
            self._window.add(began, batch, outputs, rows)
            ended = self._clock()
            self._rests_until = ended + (ended - began) / _SHARE
        finally:
            self._lock.release()

    def seen(self) -> DriftReport:
        """What was seen of late."""
        with self._lock:
            return self._window.seen()

    def forget(self) -> None:
        """Begin anew: what it saw was a rehearsal."""
        with self._lock:
            self._window = DriftWindow(self._baseline, self._signature, length_s=WINDOW_S, least_frames=LEAST_FRAMES)
            self._rests_until = 0.0


def _most(shifts: Mapping[str, float]) -> float | None:
    return round(max(shifts.values()), 4) if shifts else None
