"""Canary analysis: decides whether to keep, roll back or further observe a version that serves. Pure.

Rules:
- A version is judged by its effect on live frames, against the policy's limits and the previous version.
- It is rolled back as soon as it exceeds a limit by more than further frames could compensate, and kept only after the
  observation period.
- Shifts of its outputs are judged only at the end of the period: consecutive frames are similar, so a few seconds of a
  stream may be all speech or all silence.
- A version without enough frames after ten periods is rolled back: it has not been tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from hedgerow.models.bundle.distributions import shift
from hedgerow.models.bundle.manifest import Distribution
from hedgerow.wire.fleet import SwapPolicy

CRASHED: Final = "crashed"
"""Code for a version that crashes processes."""

MAX_PERIODS: Final = 10
"""Observation periods after which a version with too few frames is rolled back."""

_MIN_BATCHES: Final = 16
"""Batches of one size needed to compare their duration."""

_CRASHES: Final = 2
"""Crashes of workers that are not accidental: a frame list that crashes a worker is run again, and crashes the next one."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measurements of a version so far.

    Attributes:
        elapsed_s: time since it started to serve.
        frames: frames it has run.
        failures: frames it failed on.
        failures_before: share of frames on which the previous version failed.
        not_finite: frames with NaN or infinity in outputs where the author's samples had none.
        crashes: crashes of workers that run it.
        crashes_before: crashes of workers that run the previous version, during the observation.
        slowdown: its time per frame relative to the previous version's; None: not enough batches of one of them.
        shift: by output, its shift from the baseline, less the previous version's shift and chance.
        growth_bytes: memory growth of the node and its workers.
        compared: outputs of a shadow that were compared.
        disagreed: compared outputs that differed by more than the tolerance.
    """

    elapsed_s: float = 0.0
    frames: int = 0
    failures: int = 0
    failures_before: float = 0.0
    not_finite: int = 0
    crashes: int = 0
    crashes_before: int = 0
    slowdown: float | None = None
    shift: Mapping[str, float] = field(default_factory=dict)
    growth_bytes: int = 0
    compared: int = 0
    disagreed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for events and reports."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """Decision about a version.

    Attributes:
        action: keep the version, roll it back, or wait and observe it further.
        code: the limit it exceeded, in kebab case; empty: none.
        reason: explanation with the numbers.
    """

    action: Literal["keep", "roll-back", "wait"]
    code: str = ""
    reason: str = ""


_WAIT: Final = CanaryVerdict("wait")


def judge(policy: SwapPolicy, measures: Measures, period_s: float | None = None) -> CanaryVerdict:
    """Decide on a version.

    Args:
        period_s: observation period; None: the policy's probation.
    """
    period_s = policy.probation_s if period_s is None else period_s
    exceeded = _exceeded_limit(policy, measures)
    if exceeded is not None:
        return exceeded
    if measures.elapsed_s < period_s:
        return _WAIT
    if measures.frames >= policy.min_frames:
        return _shifted(policy, measures) or CanaryVerdict("keep")
    if measures.elapsed_s < MAX_PERIODS * period_s:
        return _WAIT
    return CanaryVerdict(
        "roll-back",
        "too-few-frames",
        f"it ran {measures.frames} frames in {measures.elapsed_s:.0f} s, fewer than `min_frames: {policy.min_frames}`",
    )


def _exceeded_limit(policy: SwapPolicy, measures: Measures) -> CanaryVerdict | None:
    frames = max(measures.frames, policy.min_frames, 1)
    max_errors = policy.max_error_share * frames
    if measures.crashes >= _CRASHES and not measures.crashes_before:
        return CanaryVerdict(
            "roll-back", CRASHED, f"its workers crashed {measures.crashes} times, the previous version's did not"
        )
    if measures.not_finite > max_errors:
        return CanaryVerdict(
            "roll-back",
            "not-finite",
            f"outputs of {measures.not_finite} of {measures.frames} frames have NaN or infinity, "
            f"more than `max_error_share: {policy.max_error_share:g}` allows",
        )
    if measures.failures > max_errors + measures.failures_before * frames:
        return CanaryVerdict(
            "roll-back",
            "errors",
            f"it failed on {measures.failures} of {measures.frames} frames, more than "
            f"`max_error_share: {policy.max_error_share:g}` plus the previous version's {measures.failures_before:.2%}",
        )
    if measures.disagreed > policy.max_disagreement * max(measures.compared, policy.min_frames, 1):
        return CanaryVerdict(
            "roll-back",
            "disagrees",
            f"{measures.disagreed} of {measures.compared} outputs differ from the serving version's by more than the "
            f"tolerance; `max_disagreement: {policy.max_disagreement:g}`",
        )
    if measures.slowdown is not None and measures.slowdown > policy.max_slowdown:
        return CanaryVerdict(
            "roll-back",
            "slower",
            f"it takes {measures.slowdown:.1f} times as long as the previous version; "
            f"`max_slowdown: {policy.max_slowdown:g}`",
        )
    if measures.growth_bytes > policy.max_growth_bytes:
        return CanaryVerdict(
            "roll-back",
            "memory-growth",
            f"the node's memory grew by {measures.growth_bytes:,} bytes, more than "
            f"`max_growth_bytes: {policy.max_growth_bytes}`",
        )
    return None


def _shifted(policy: SwapPolicy, measures: Measures) -> CanaryVerdict | None:
    for name, moved in measures.shift.items():
        if moved > policy.max_shift:
            return CanaryVerdict(
                "roll-back",
                "shifted",
                f"values of {name} have shifted by {moved:.2f} from the baseline; `max_shift: {policy.max_shift:g}`",
            )
    return None


def slowdown(old: Mapping[int, Sequence[float]], new: Mapping[int, Sequence[float]]) -> float | None:
    """Return a version's time relative to the previous version's; None: not enough batches.

    The first quartile is compared for each batch size: a changed load, or other processes on the cores, slow down some
    batches, but a slow model slows down all of them. For a size that the previous version has not run, its time is
    overestimated.

    Args:
        old, new: seconds of batches, by rows.
    """
    known = {rows: _quartile(times) for rows, times in old.items() if len(times) >= _MIN_BATCHES}
    actual_s = expected_s = 0.0
    for rows, times in new.items():
        if len(times) >= _MIN_BATCHES and known:
            actual_s += _quartile(times) * len(times)
            expected_s += _expected_time(known, rows) * len(times)
    return actual_s / expected_s if expected_s else None


def _quartile(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 4]


def _expected_time(known: Mapping[int, float], rows: int) -> float:
    at_least = [size for size in known if size >= rows]
    if at_least:
        return known[min(at_least)]
    largest = max(known)
    return known[largest] * rows / largest


def excess_shift(baseline: Distribution, counts: Sequence[int], samples: int, frames: int) -> float:
    """Return the shift of values from a baseline, less the shift expected by chance.

    Args:
        counts: number of values by bin of the baseline.
        samples: number of samples behind the baseline.
        frames: number of frames behind the counts. Values of one frame are correlated, so frames count, not values.
    """
    if not samples or not frames or not sum(counts):
        return 0.0
    chance = (len(counts) - 1) * (1 / samples + 1 / frames)
    return max(0.0, shift(baseline, counts) - chance)
