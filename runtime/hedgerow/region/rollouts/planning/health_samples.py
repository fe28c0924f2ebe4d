"""Compares a node's health reports with its baseline before a change. Pure.

Counters restart with each session of a node; times are by the node's own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from hedgerow.region.rollouts.planning.spec import GateSection

MAX_SAMPLES: Final = 12
"""Health reports to keep of a node: two minutes."""
_NEGLIGIBLE_MS: Final = 1.0
"""A latency below this is never too slow, whatever the baseline."""


@dataclass(frozen=True, slots=True)
class PipelineSample:
    """A pipeline in a health report: counts since the node started, and its recent latency."""

    received: int = 0
    dead: int = 0
    dropped: int = 0
    p99_ms: float | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSample:
    """A model in a health report: digest of the running file, frames processed, drift."""

    digest: str
    frames: int = 0
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class HealthSample:
    """The part of a health report that gates need. `at` is by the node's clock."""

    at: float
    session: str
    state: str
    reasons: str = ""
    pipelines: Mapping[str, PipelineSample] = field(default_factory=dict)
    models: Mapping[str, ModelSample] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeBaseline:
    """Normal behaviour of a node before a change.

    Attributes:
        p99_ms: latency, by pipeline.
        memory_bytes: of its process; 0: unknown.
        dead_share: share of frames dead-lettered.
    """

    p99_ms: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    dead_share: float = 0.0


@dataclass(frozen=True, slots=True)
class _Shares:
    """Frames received, and the shares of them that were dead-lettered or dropped."""

    received: int
    dead: float
    dropped: float


def baseline(samples: Sequence[HealthSample], models: Collection[str]) -> NodeBaseline:
    """Compute a baseline: medians of the reports, and the share of dead frames between them.

    Args:
        samples: health reports, in order.
        models: only pipelines with these models count towards the share.
    """
    known: dict[str, list[float]] = {}
    for sample in samples:
        for name, pipeline in sample.pipelines.items():
            if pipeline.p99_ms is not None:
                known.setdefault(name, []).append(pipeline.p99_ms)
    memory = [sample.memory_bytes for sample in samples if sample.memory_bytes]
    shares = None
    if samples:
        first, last = samples[0], samples[-1]
        same_run = first is not last and first.session == last.session
        shares = _shares(_pipelines_with(last, models), first.pipelines if same_run else {}, last)
    return NodeBaseline(
        {name: round(median(values), 3) for name, values in known.items()},
        int(median(memory)) if memory else 0,
        0.0 if shares is None else round(shares.dead, 4),
    )


def count_restarts(samples: Sequence[HealthSample], files: Collection[str]) -> int:
    """Count a node's restarts since one of these files runs on it."""
    ran = {sample.session for sample in samples if any(one.digest in files for one in sample.models.values())}
    return max(0, len(ran) - 1)


def violated_limit(
    samples: Sequence[HealthSample], since: float, models: Collection[str], was: NodeBaseline, limits: GateSection
) -> tuple[str, str] | None:
    """Return the limit that a node breaks since new versions serve: code and reason; None: none.

    Args:
        samples: health reports, in order.
        since: when the versions began to serve.
        models: their models.
        was: the baseline.
        limits: of the gate.
    """
    after = [sample for sample in samples if sample.at >= since]
    if not after:
        return None
    last = after[-1]
    if last.state == "failing":
        return "failing", f"its health is failing: {last.reasons}".removesuffix(": ")
    grown, allowed = last.memory_bytes - was.memory_bytes, limits.max_growth_bytes
    if was.memory_bytes and allowed is not None and grown > allowed:
        return "memory-growth", f"its memory grew by {grown:,} bytes; {allowed:,} allowed"
    if (drifted := _drifted(last, models, limits)) is not None:
        return drifted
    names = _pipelines_with(last, models)
    shares = _shares(names, _base_counts(samples, after, since), last)
    if shares is not None and shares.received >= limits.min_frames:
        allowed_share = limits.max_error_share + was.dead_share
        if shares.dead > allowed_share:
            return (
                "error-rate",
                f"{shares.dead:.1%} of {shares.received:,} frames were dead-lettered; {allowed_share:.1%} allowed",
            )
        if limits.max_dropped_share is not None and shares.dropped > limits.max_dropped_share:
            share = limits.max_dropped_share
            return "dropped", f"{shares.dropped:.1%} of {shares.received:,} frames were dropped; {share:.1%} allowed"
    return _slow(names, after, was.p99_ms, limits)


def _drifted(last: HealthSample, models: Collection[str], limits: GateSection) -> tuple[str, str] | None:
    for name in models:
        drift = last.models[name].drift if name in last.models else None
        if limits.max_drift is not None and drift is not None and drift > limits.max_drift:
            return "drift", f"drift of {name} is {drift:.3g}; {limits.max_drift:.3g} allowed"
    return None


def _pipelines_with(sample: HealthSample, models: Collection[str]) -> list[str]:
    """Return the pipelines with one of these models; all, if none has any."""
    return [name for name, pipeline in sample.pipelines.items() if set(pipeline.models) & set(models)] or list(
        sample.pipelines
    )


def _base_counts(
    samples: Sequence[HealthSample], after: Sequence[HealthSample], since: float
) -> Mapping[str, PipelineSample]:
    """Return the counts to subtract: those before the change, or those of the only report so far."""
    last = after[-1]
    before = [sample for sample in samples if sample.at < since and sample.session == last.session]
    if before:
        return before[-1].pipelines
    if any(sample.session != last.session for sample in samples):
        return {}
    return after[0].pipelines


def _shares(names: Sequence[str], base: Mapping[str, PipelineSample], last: HealthSample) -> _Shares | None:
    """Return the shares of frames; None: none was received."""
    none = PipelineSample()
    pairs = [(base.get(name, none), last.pipelines[name]) for name in names]
    received = sum(max(0, new.received - old.received) for old, new in pairs)
    if not received:
        return None
    dead = sum(max(0, new.dead - old.dead) for old, new in pairs)
    dropped = sum(max(0, new.dropped - old.dropped) for old, new in pairs)
    return _Shares(received, dead / received, dropped / received)


def _slow(
    names: Sequence[str], after: Sequence[HealthSample], before_ms: Mapping[str, float], limits: GateSection
) -> tuple[str, str] | None:
    latest = after[-limits.slow_reports :]
    if limits.max_slowdown is None or len(latest) < limits.slow_reports:
        return None
    for name in names:
        before = before_ms.get(name)
        if not before:
            continue
        now = [sample.pipelines[name].p99_ms for sample in latest if name in sample.pipelines]
        known = [value for value in now if value is not None]
        allowed = max(limits.max_slowdown * before, _NEGLIGIBLE_MS)
        if len(known) == len(latest) and min(known) > allowed:
            return (
                "latency",
                f"p99 of {name} is {known[-1]:.1f} ms, was {before:.1f} ms; {allowed:.1f} ms allowed",
            )
    return None
