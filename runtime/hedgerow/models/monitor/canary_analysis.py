"""Whether a version that serves is to be kept, taken back, or watched for longer. Pure.

Rules:
- What it is judged by is what it does to live frames, against limits that the policy sets and the version before it.
- It is taken back as soon as a limit is broken beyond what more frames could mend, and kept no sooner than its time is over.
- How its outputs are spread is looked at when its time is over: what comes one after the other is alike, so a few seconds of
  a stream may be all speech or all silence.
- A version that too few frames have gone through has shown nothing: after ten times its time it is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from hedgerow.models.bundle.distributions import shift
from hedgerow.models.bundle.manifest import Distribution
from hedgerow.wire.fleet import SwapPolicy

CRASHED: Final = "crashed"
"""The code of a version that brings processes down."""

PATIENCE: Final = 10
"""Times its probation that a version is waited for to be given frames."""

_LEAST_BATCHES: Final = 16
"""Batches of one size that say how long it takes."""

_CRASHES: Final = 2
"""Crashes of workers that are no accident: a list that brings a worker down is run again, and does so once more."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What a version has done so far.

    Attributes:
        elapsed_s: since it began to serve.
        frames: frames it has run.
        failures: frames it failed on.
        failures_before: share of its frames that the version before failed on.
        not_finite: frames whose outputs hold NaN or infinity where the author's samples had none.
        crashes: times that workers which run it ended.
        crashes_before: times that those of the version before did, since they were watched.
        slowdown: times the old one's time a frame; None: too little is known of one of them.
        shift: by output, how far its distribution is from the baseline, above what the old one and chance explain.
        growth_bytes: memory that the node has gained meanwhile, its workers among it.
        compared: outputs of a shadow that were compared.
        disagreed: those of them that differed by more than the tolerance.
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
        """For a report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """What is to be done: `keep` it, `take-back`, or `wait`.

    Attributes:
        code: which limit it broke, kebab-case; empty if none.
        reason: that in a sentence, with the numbers.
    """

    action: Literal["keep", "roll-back", "wait"]
    code: str = ""
    reason: str = ""


_WAIT: Final = CanaryVerdict("wait")


def judge(policy: SwapPolicy, measures: Measures, period_s: float | None = None) -> CanaryVerdict:
    """Decide on a version.

    Args:
        period_s: how long it is to be watched; None: the policy's probation.
    """
    period_s = policy.probation_s if period_s is None else period_s
    broken = _broken(policy, measures)
    if broken is not None:
        return broken
    if measures.elapsed_s < period_s:
        return _WAIT
    if measures.frames >= policy.min_frames:
        return _shifted(policy, measures) or CanaryVerdict("keep")
    if measures.elapsed_s < PATIENCE * period_s:
        return _WAIT
    return CanaryVerdict(
        "roll-back",
        "too-few-frames",
        f"it was given {measures.frames} frames in {measures.elapsed_s:.0f} s, fewer than `min_frames: {policy.min_frames}`",
    )


def _broken(policy: SwapPolicy, measures: Measures) -> CanaryVerdict | None:
    frames = max(measures.frames, policy.min_frames, 1)
    most = policy.max_error_share * frames
    if measures.crashes >= _CRASHES and not measures.crashes_before:
        return CanaryVerdict(
            "roll-back", CRASHED, f"workers that run it crashed {measures.crashes} times, and not before"
        )
    if measures.not_finite > most:
        return CanaryVerdict(
            "roll-back",
            "not-finite",
            f"outputs of {measures.not_finite} of {measures.frames} frames hold NaN or infinity",
        )
    if measures.failures > most + measures.failures_before * frames:
        return CanaryVerdict(
            "roll-back",
            "errors",
            f"it failed on {measures.failures} of {measures.frames} frames, "
            f"with `max_error_share: {policy.max_error_share:g}` and {measures.failures_before:.2%} before",
        )
    if measures.disagreed > policy.max_disagreement * max(measures.compared, policy.min_frames, 1):
        return CanaryVerdict(
            "roll-back",
            "disagrees",
            f"{measures.disagreed} of {measures.compared} outputs differ from the serving version's by more than the tolerance",
        )
    if measures.slowdown is not None and measures.slowdown > policy.max_slowdown:
        return CanaryVerdict(
            "roll-back",
            "slower",
            f"it takes {measures.slowdown:.1f} times as long as the version before, with `max_slowdown: {policy.max_slowdown:g}`",
        )
    if measures.growth_bytes > policy.max_growth_bytes:
        return CanaryVerdict(
            "roll-back",
            "memory-growth",
            f"the node has gained {measures.growth_bytes:,} bytes, more than `max_growth_bytes: {policy.max_growth_bytes}`",
        )
    return None


def _shifted(policy: SwapPolicy, measures: Measures) -> CanaryVerdict | None:
    for name, moved in measures.shift.items():
        if moved > policy.max_shift:
            return CanaryVerdict(
                "roll-back",
                "shifted",
                f"values of {name} are {moved:.2f} away from the baseline, with `max_shift: {policy.max_shift:g}`",
            )
    return None


def slowdown(old: Mapping[int, Sequence[float]], new: Mapping[int, Sequence[float]]) -> float | None:
    """How many times as long a version takes as the one before; None: too little is known.

    The quickest quarter is compared, batch size by batch size: another load, or neighbours that take the cores, make some
    batches slow, and a slow model makes all of them slow. For a size that the old one has not seen, what it would have
    taken is guessed high.

    Args:
        old, new: seconds of batches, by rows.
    """
    known = {rows: _quick(times) for rows, times in old.items() if len(times) >= _LEAST_BATCHES}
    took = expected = 0.0
    for rows, times in new.items():
        if len(times) >= _LEAST_BATCHES and known:
            took += _quick(times) * len(times)
            expected += _expected(known, rows) * len(times)
    return took / expected if expected else None


def _quick(times: Sequence[float]) -> float:
    """What a quarter of these does not take longer than."""
    return sorted(times)[len(times) // 4]


def _expected(known: Mapping[int, float], rows: int) -> float:
    as_large = [size for size in known if size >= rows]
    if as_large:
        return known[min(as_large)]
    largest = max(known)
    return known[largest] * rows / largest


def excess_shift(baseline: Distribution, counts: Sequence[int], samples: int, frames: int) -> float:
    """How far values are from a baseline, above what chance explains.

    Args:
        counts: values by bin of the baseline.
        samples: the author's, that the baseline is of.
        frames: that the counts are of. The values of one frame have much in common, so frames count, not values.
    """
    if not samples or not frames or not sum(counts):
        return 0.0
    chance = (len(counts) - 1) * (1 / samples + 1 / frames)
    return max(0.0, shift(baseline, counts) - chance)
