"""How a node is doing: from tallies to a health report, and whether it is alive and ready. Reads, never changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hedgerow.models.memory import resident_bytes
from hedgerow.wire.messages import Health, OutboxHealth, PipelineHealth

if TYPE_CHECKING:
    from hedgerow.bus.client import Client
    from hedgerow.errors import HedgerowError
    from hedgerow.models.served_model import ServedModel
    from hedgerow.pipeline.runner import PipelineRunner
    from hedgerow.telemetry.clock import Clock

STUCK_AFTER_S = 30.0
"""A list of frames that has been in a chain for longer makes the node unhealthy: a stage hangs."""


_ENOUGH = 10
"""Frames of a model after which most of them being NaN is no chance."""


@dataclass(slots=True)
class _Mark:
    at: float
    out: int
    latency: list[int]
    dead: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class HealthReporter:
    """Makes health reports; rates and quantiles are those of the period that `begin_period` began.

    Attributes:
        node: the node's address.
        session: the session its birth announced.
    """

    node: str
    session: str
    started_at: float = field(default_factory=time.monotonic)
    _marks: dict[str, _Mark] = field(default_factory=dict)
    _lost: Counter[str] = field(default_factory=Counter)

    def report(
        self,
        runners: dict[str, PipelineRunner],
        failures: dict[str, HedgerowError],
        loading: Mapping[str, HedgerowError | None],
        outbox: OutboxHealth | None,
        clock: Clock,
        certificates: Iterable[str] = (),
    ) -> Health:
        """A report of now.

        Args:
            loading: pipelines that do not run yet, and what each waits for, if for more than time.
            certificates: what is wrong with them.
        """
        reasons = [*certificates, *(f"pipeline {name}: {error}" for name, error in failures.items())]
        pipelines = {
            name: PipelineHealth(state="failed", error=str(error), remedy=error.remedy)
            for name, error in failures.items()
        }
        for name, awaited in loading.items():
            said = {} if awaited is None else {"error": str(awaited), "remedy": awaited.remedy}
            pipelines[name] = PipelineHealth(state="loading", **said)
        failing = bool(failures)
        for name, runner in runners.items():
            pipelines[name] = self._pipeline(name, runner)
            if not runner.connected and runner.state == "running":
                reasons.append(f"pipeline {name}: not connected to the broker")
            reasons += self._deaths(name, runner)
            if refusals := _refusals(name, runner):
                failing = True
                reasons += refusals
            if (stuck := runner.stuck_for_s()) > STUCK_AFTER_S:
                failing = True
                reasons.append(f"pipeline {name}: a stage has not come back for {stuck:.0f} s")
            reasons.extend(f"pipeline {name}: stage {stage} keeps failing" for stage in runner.built.failing())
        if clock.doubtful:
            reasons.append(
                f"the clock jumped, or is not set: it says {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
            )
        if outbox is not None:
            failing |= outbox.failure is not None
            reasons += self._losses(outbox)
        models = {}
        for info in serving(runners.values()).values():
            models[info.name] = info.as_health()
            if info.not_finite:
                reasons.append(_not_finite(info))
                failing |= info.looked_at >= _ENOUGH and info.not_finite > info.looked_at / 2
            if info.degraded:
                reasons.append(f"model {info.name}: {info.degraded}")
        return Health(
            node=self.node,
            session=self.session,
            at=time.time(),
            uptime_s=round(time.monotonic() - self.started_at, 3),
            state="failing" if failing else "degraded" if reasons else "ok",
            reasons=reasons,
            pipelines=pipelines,
            models=models,
            outbox=outbox,
            memory_bytes=resident_bytes(),
            cpu_s=round(time.process_time(), 3),
        )

    def _deaths(self, name: str, runner: PipelineRunner) -> list[str]:
        """What there is to say if more frames have died than given results since the last period began."""
        before = self._marks.get(name)
        dead = runner.tally.dead - (before.dead if before else Counter())
        out = runner.tally.out - (before.out if before else 0)
        if not dead or dead.total() <= out:
            return []
        (worst, _), *_ = dead.most_common(1)
        return [f"pipeline {name}: {dead.total()} frames died, most of {worst}; {out} gave results"]

    def _losses(self, outbox: OutboxHealth) -> list[str]:
        """What there is to say if the outbox cannot store, or has given up results since the last period began."""
        if outbox.failure is not None:
            return [f"outbox: {outbox.failure}"]
        lost = Counter(outbox.lost) - self._lost
        if not lost:
            return []
        (worst, _), *_ = lost.most_common(1)
        return [f"outbox: {lost.total()} results given up, most as {worst}; {outbox.entries} wait for the region"]

    def begin_period(self, runners: dict[str, PipelineRunner], outbox: OutboxHealth | None) -> None:
        """Let rates and quantiles count from now."""
        now = time.monotonic()
        self._lost = Counter() if outbox is None else Counter(outbox.lost)
        self._marks = {
            name: _Mark(now, runner.tally.out, list(runner.tally.latency.counts), runner.tally.dead.copy())
            for name, runner in runners.items()
        }

    def _pipeline(self, name: str, runner: PipelineRunner) -> PipelineHealth:
        tally, now = runner.tally, time.monotonic()
        before = self._marks.get(name) or _Mark(self.started_at, 0, [0] * len(tally.latency.counts))
        p50, p99 = (tally.latency.quantile(q, before.latency) for q in (0.5, 0.99))
        return PipelineHealth(
            state=runner.state,
            received=tally.received,
            bytes_in=tally.bytes_in,
            out=tally.out,
            dropped=dict(tally.dropped),
            dead=dict(tally.dead),
            in_flight=tally.in_flight,
            queued=runner.queued,
            streams=runner.streams,
            results=tally.results,
            rate=round((tally.out - before.out) / max(now - before.at, 1e-3), 2),
            latency_p50_ms=None if p50 is None else round(p50 * 1e3, 3),
            latency_p99_ms=None if p99 is None else round(p99 * 1e3, 3),
            last_result_at=tally.last_result_at,
            models=sorted({model.name for model in runner.built.models()}),
        )


def serving(runners: Iterable[PipelineRunner]) -> dict[str, ServedModel]:
    """The models that pipelines run, by name."""
    return {info.name: info for runner in runners for info in runner.built.models()}


def unready(
    runners: dict[str, PipelineRunner],
    failures: dict[str, HedgerowError],
    *,
    control_connected: bool,
    flow_timeout_s: float | None,
    started_at: float,
) -> list[str]:
    """Why the node is not ready: connected, models loaded, frames flowing; empty if it is.

    Args:
        flow_timeout_s: longest silence of a running pipeline; None: silence is fine.
        started_at: when the node started, Unix seconds: silence counts from then.
    """
    reasons = [f"pipeline {name} cannot run: {error}" for name, error in failures.items()]
    if not control_connected:
        reasons.append("not connected to the broker")
    for name, runner in runners.items():
        if not runner.connected and runner.state == "running":
            reasons.append(f"pipeline {name} is not connected to the broker")
        reasons += _refusals(name, runner)
        if runner.stuck_for_s() > STUCK_AFTER_S:
            reasons.append(f"pipeline {name}: a stage hangs")
        silent_s = time.time() - max(runner.tally.last_frame_at or 0.0, started_at)
        if flow_timeout_s is not None and runner.state == "running" and silent_s > flow_timeout_s:
            reasons.append(f"pipeline {name}: no frame for {silent_s:.0f} s")
    return reasons


def _not_finite(info: ServedModel) -> str:
    """What there is to say if some of a model's outputs are no numbers."""
    what = info.name if info.version is None else f"{info.name} {info.version}"
    return (
        f"model {what}: {info.not_finite} of the last {info.looked_at} frames looked at gave NaN or infinity: see what comes "
        "in with `hedgerow explain --last`, and if that is sound, roll out the version before"
    )


def _refusals(name: str, runner: PipelineRunner) -> list[str]:
    return [f"pipeline {name}: the broker refuses {pattern}: {reason}" for pattern, reason in runner.refused.items()]


def gauges(runners: dict[str, PipelineRunner], control: Client) -> Iterator[tuple[str, str, dict[str, str], float]]:
    """What /metrics shows beside the pipelines' counts: name, help, labels, value."""
    yield "hedgerow_connected", "Whether the broker can be reached.", {"link": "node"}, control.connected
    refused = control.refused_publishes
    yield "hedgerow_refused_publishes", "QoS 1 messages that the broker did not take.", {"link": "node"}, refused
    for name, runner in runners.items():
        yield "hedgerow_connected", "Whether the broker can be reached.", {"link": name}, runner.connected
        refused = runner.refused_publishes
        yield "hedgerow_refused_publishes", "QoS 1 messages that the broker did not take.", {"link": name}, refused
        yield "hedgerow_frames_queued", "Frames that wait.", {"pipeline": name}, runner.queued
        yield "hedgerow_streams", "Streams known.", {"pipeline": name}, runner.streams
        yield "hedgerow_reconnects", "Times the link was made anew.", {"pipeline": name}, runner.reconnects
    for info in serving(runners.values()).values():
        labels = {
            "model": info.name,
            "version": info.version or "",
            "digest": info.digest.removeprefix("sha256:")[:12],
            "backend": info.backend,
            "device": info.device,
        }
        yield "hedgerow_model_frames", "Frames a model has seen.", labels, info.frames
        yield "hedgerow_model_inferences", "Inferences a model has run.", labels, info.inferences
        yield "hedgerow_model_degraded", "Whether it runs on another device than asked.", labels, bool(info.degraded)
        if info.looked_at:
            share = info.not_finite / info.looked_at
            yield (
                "hedgerow_model_not_finite_share",
                "Frames looked at of late that gave NaN or infinity.",
                labels,
                share,
            )
        if info.drift is not None:
            yield "hedgerow_model_drift", "How far its outputs are from its author's samples.", labels, info.drift
        if info.input_drift is not None:
            yield "hedgerow_model_input_drift", "How far what comes in is from them.", labels, info.input_drift
