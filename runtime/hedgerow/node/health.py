"""The node's health reports, built from the pipelines' tallies and published every few seconds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from hedgerow.bus.set_aside import messages as set_aside
from hedgerow.errors import published
from hedgerow.models.session.memory import resident_bytes
from hedgerow.pipeline.built_pipeline import REPLACED
from hedgerow.pipeline.intake.stream_key import sensor_topic
from hedgerow.text import visible
from hedgerow.topics import Channel
from hedgerow.wire.messages import Health, ModelHealth, OutboxHealth, PipelineHealth

if TYPE_CHECKING:
    from hedgerow.models.serving.served_model import ServedModel
    from hedgerow.node.link.announcer import Announcer
    from hedgerow.node.link.certificates import CertificateWatch
    from hedgerow.node.link.outbox import NodeOutbox
    from hedgerow.node.pipelines.pipelines import Pipelines
    from hedgerow.pipeline.crash_journal import CrashJournal
    from hedgerow.pipeline.runner import PipelineRunner
    from hedgerow.telemetry.clock import Clock

log = structlog.get_logger(__name__)

HEALTH_EVERY_S = 10.0
FIRST_HEALTH_S = 1.0

STUCK_AFTER_S: Final = 30.0
"""A stage that finishes no frame for longer, or for its `timeout_s`, makes the node `failing`."""

_CRASH_REPORTED_S: Final = 600.0

_LONGEST_TOPIC: Final = 200

_FEWEST_FRAMES: Final = 10
"""Fewest frames to judge a model by its share of NaN, or a sensor by its dead letters."""


@dataclass(slots=True)
class _PeriodStart:
    """A pipeline's counts at the start of the period."""

    at: float
    out: int
    latency: list[int]
    dead: Counter[str] = field(default_factory=Counter)
    sessions_lost: int = 0
    workers: Counter[str] = field(default_factory=Counter)


class HealthReporter:
    """Publishes health reports; rates and quantiles cover the time since `start_period`.

    Args:
        announcer: publishes the reports.
        pipelines: the node's pipelines.
        outbox: the node's outbox.
        clock: tells whether the machine's clock can be trusted.
        certificates: watches the node's certificates; None: it has none.
        journal: what ran when the previous process died.
    """

    def __init__(
        self,
        announcer: Announcer,
        pipelines: Pipelines,
        outbox: NodeOutbox,
        clock: Clock,
        certificates: CertificateWatch | None = None,
        journal: CrashJournal | None = None,
    ) -> None:
        self._announcer = announcer
        self._pipelines = pipelines
        self._outbox = outbox
        self._clock = clock
        self._certificates = certificates
        self._found = journal.found if journal is not None else []
        self._started_at = time.monotonic()
        self._period: dict[str, _PeriodStart] = {}
        self._lost: Counter[str] = Counter()
        self._state = "starting"

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """(any thread) Yield the node's status as of its last report: name, help, labels, value."""
        for state in ("starting", "ok", "degraded", "failing"):
            labels = {"node": str(self._announcer.address), "status": state}
            yield (
                "hedgerow_node_status",
                "1 for the node's status in its last health report.",
                labels,
                state == self._state,
            )

    async def run(self) -> None:
        """Publish reports until cancelled. A period ends with the report that tells of it."""
        await asyncio.sleep(FIRST_HEALTH_S)
        while True:
            health = self.report()
            self._state = health.state
            if health.state != "ok":
                log.warning("health", state=health.state, reasons=health.reasons)
            if await self._publish(health):
                self.start_period()
                await asyncio.sleep(HEALTH_EVERY_S)

    async def _publish(self, health: Health) -> bool:
        """Publish a report, or if the link is down, one as of its return. Returns: whether that was within a period.

        A copy of this node ends its link again and again: at a fixed time, it might never be up.
        """
        if not self._announcer.connected:
            try:
                async with asyncio.timeout(HEALTH_EVERY_S):
                    await self._announcer.wait_connected()
            except TimeoutError:
                return False
            health = self.report()
        self._announcer.publish(Channel.HEALTH, health.encode())
        return True

    def start_period(self) -> None:
        """Start a new period for rates and quantiles."""
        now, outbox = time.monotonic(), self._outbox.health()
        self._lost = Counter() if outbox is None else Counter(outbox.lost)
        self._period = {
            name: _PeriodStart(
                now,
                runner.tally.out,
                list(runner.tally.latency.counts),
                runner.tally.dead.copy(),
                runner.sessions_lost,
                runner.built.workers().ended,
            )
            for name, runner in self._pipelines.runners.items()
        }
        for runner in self._pipelines.runners.values():
            runner.losses.clear()

    def report(self) -> Health:
        """Return a current report."""
        findings = _Findings()
        if self._certificates is not None:
            findings.degraded(*self._certificates.reasons())
        if time.monotonic() - self._started_at < _CRASH_REPORTED_S:
            findings.degraded(*map(_crash, self._found))
        pipelines = self._report_pipelines(findings)
        if self._clock.doubtful:
            now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
            findings.degraded(f"the clock jumped, or is not set: it reads {now} UTC; set it, and check NTP")
        outbox = self._outbox.health()
        if outbox is not None:
            self._examine_outbox(outbox, findings)
        findings.degraded(*self._set_aside())
        findings.degraded(*self._announcer.twins())
        models = _report_models(self._pipelines.runners.values(), findings)
        return Health(
            node=str(self._announcer.address),
            session=self._announcer.session,
            at=time.time(),
            uptime_s=round(time.monotonic() - self._started_at, 3),
            state="failing" if findings.is_failing else "degraded" if findings.reasons else "ok",
            reasons=findings.reasons,
            pipelines=pipelines,
            models=models,
            outbox=outbox,
            instance=self._announcer.instance,
            memory_bytes=resident_bytes() + sum(pipeline.worker_memory_bytes for pipeline in pipelines.values()),
            cpu_s=round(time.process_time(), 3),
        )

    def _report_pipelines(self, findings: _Findings) -> dict[str, PipelineHealth]:
        pipelines = {}
        for name, error in self._pipelines.failures.items():
            message, remedy = published(error)
            findings.failing(f"pipeline {name}: {message}")
            pipelines[name] = PipelineHealth(state="failed", error=message, remedy=remedy)
        for name, waiting in self._pipelines.loading().items():
            reason = {} if waiting is None else dict(zip(("error", "remedy"), published(waiting), strict=True))
            pipelines[name] = PipelineHealth(state="loading", **reason)
        for name, runner in self._pipelines.runners.items():
            pipelines[name] = self._report_pipeline(name, runner)
            if not runner.connected and runner.state == "running":
                findings.degraded(f"pipeline {name}: not connected to the broker")
            findings.degraded(*self._dead_letters(name, runner))
            findings.failing(*refused_subscriptions(name, runner))
            findings.degraded(*self._frames_at_risk(name, runner), *_floods(name, runner))
            findings.failing(*hanging_stage(name, runner))
            findings.degraded(*self._worker_problems(name, runner))
            findings.degraded(*(f"pipeline {name}: stage {stage} keeps failing" for stage in runner.built.failing()))
        return pipelines

    def _report_pipeline(self, name: str, runner: PipelineRunner) -> PipelineHealth:
        tally, now = runner.tally, time.monotonic()
        before = self._period.get(name) or _PeriodStart(self._started_at, 0, [0] * len(tally.latency.counts))
        lost = runner.losses.most()
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
            worker_memory_bytes=sum(runner.built.workers().memory_bytes),
            most_lost=None if lost is None else _topic(lost, runner),
            most_lost_frames=0 if lost is None else lost[1],
        )

    def _dead_letters(self, name: str, runner: PipelineRunner) -> Iterator[str]:
        """Yield a reason if in this period more frames were dead-lettered than gave results, or one sensor's made a hundredth of all."""
        before = self._period.get(name)
        dead = runner.tally.dead - (before.dead if before else Counter())
        out = runner.tally.out - (before.out if before else 0)
        most = runner.losses.dead.most()
        of_one = most is not None and most[1] >= max(_FEWEST_FRAMES, (dead.total() + out) / 100)
        if dead and (dead.total() > out or of_one):
            (worst, _), *_ = dead.most_common(1)
            named = f", most from {_topic(most, runner)}" if most is not None and most[1] > dead.total() / 2 else ""
            yield f"pipeline {name}: {dead.total()} frames dead-lettered, most with {worst}{named}; {out} gave results"

    def _frames_at_risk(self, name: str, runner: PipelineRunner) -> Iterator[str]:
        """Yield a reason for each way in which the broker may lose, or has lost, QoS 1 frames."""
        for pattern, qos in runner.lowered.items():
            yield f"pipeline {name}: the broker grants only QoS {qos} for {pattern}, so frames can be lost"
        before = self._period.get(name)
        if runner.sessions_lost > (before.sessions_lost if before else 0):
            yield f"pipeline {name}: the broker forgot the session, and with it the QoS 1 frames that waited there"

    def _worker_problems(self, name: str, runner: PipelineRunner) -> Iterator[str]:
        if runner.built.isolated:
            yield (
                f"pipeline {name} runs in a worker: {runner.built.isolated}; "
                "mend the stage and change the pipeline's configuration to run it in the node again"
            )
        before = self._period.get(name)
        ended = runner.built.workers().ended - (before.workers if before else Counter())
        for reason, count in ended.items():
            if reason != REPLACED:
                yield f"pipeline {name}: {count} workers ended ({reason}); their stages' state was reset"

    def _set_aside(self) -> Iterator[str]:
        """Yield a reason while messages are set aside, until an operator has looked at them and deleted the files."""
        folder = self._pipelines.config.node.state_dir / set_aside.FOLDER
        if kept := set_aside.count(folder):
            yield f"{kept} messages are set aside in {folder}: the broker ended the link over each; see why, then delete them"

    def _examine_outbox(self, outbox: OutboxHealth, findings: _Findings) -> None:
        """Find out whether the outbox cannot store results, or gave any up in this period."""
        if outbox.failure is not None:
            findings.failing(f"outbox: {outbox.failure}")
        elif lost := Counter(outbox.lost) - self._lost:
            (worst, _), *_ = lost.most_common(1)
            findings.degraded(
                f"outbox: {lost.total()} results given up, most as {worst}; {outbox.entries} wait for the region"
            )
        if outbox.stuck:
            findings.degraded(
                f"outbox: {outbox.stuck} results do not reach the region although later ones do; compare their size and topic "
                "with the packet limits, rules and ACL of the bridge"
            )


@dataclass(slots=True)
class _Findings:
    """What is wrong with the node."""

    reasons: list[str] = field(default_factory=list)
    is_failing: bool = False

    def degraded(self, *reasons: str) -> None:
        self.reasons += reasons

    def failing(self, *reasons: str) -> None:
        self.reasons += reasons
        self.is_failing |= bool(reasons)


def running_models(runners: Iterable[PipelineRunner]) -> dict[str, ServedModel]:
    """Return the models of running pipelines, by name."""
    return {info.name: info for runner in runners for info in runner.built.models()}


def refused_subscriptions(name: str, runner: PipelineRunner) -> list[str]:
    """Return a reason for each of a pipeline's subscriptions that the broker refuses."""
    return [f"pipeline {name}: the broker refuses {pattern}: {reason}" for pattern, reason in runner.refused.items()]


def _floods(name: str, runner: PipelineRunner) -> Iterator[str]:
    """Yield a reason if a topic sends more QoS 1 frames than the stages process: which, and what becomes of them."""
    if (found := runner.flooding) is not None:
        yield (
            f"pipeline {name}: {_topic(found, runner)} floods, {found[1]} of its frames wait, and those of others behind it at the "
            "broker; see `max_qos1_frames_per_topic`"
        )
    shed = runner.losses.shed.most()
    if runner.losses.limited and shed is not None:
        yield (
            f"pipeline {name}: {runner.losses.limited} QoS 1 frames dropped above `max_qos1_frames_per_topic`, most from "
            f"{_topic(shed, runner)}"
        )


def _topic(counted: tuple[str, int], runner: PipelineRunner) -> str:
    return visible(sensor_topic(counted[0], runner.built.config.stream)[:_LONGEST_TOPIC])


def _report_models(runners: Iterable[PipelineRunner], findings: _Findings) -> dict[str, ModelHealth]:
    models = {}
    for info in running_models(runners).values():
        models[info.name] = info.as_health()
        if info.not_finite:
            report = findings.failing if _mostly_not_finite(info) else findings.degraded
            report(_not_finite(info))
        if info.degraded:
            findings.degraded(f"model {info.name}: {info.degraded}")
    return models


def hanging_stage(name: str, runner: PipelineRunner) -> Iterator[str]:
    """(any thread) Yield a reason if a stage of a pipeline hangs."""
    hang = runner.hang()
    if hang is not None and (hang.expired or hang.waited_s > STUCK_AFTER_S):
        yield f"pipeline {name}: stage {hang.stage} has not returned for {hang.waited_s:.0f} s"


def _crash(found: Mapping[str, Any]) -> str:
    where = f"stage {found['stage']}" if found["stage"] else "a lane"
    return (
        f"the node ended unexpectedly before this start, while pipeline {found['pipeline']} was in {where}; all state "
        "of its stages was lost, and the frames that were in it run alone"
    )


def _mostly_not_finite(info: ServedModel) -> bool:
    return info.looked_at >= _FEWEST_FRAMES and info.not_finite > info.looked_at / 2


def _not_finite(info: ServedModel) -> str:
    what = info.name if info.version is None else f"{info.name} {info.version}"
    return (
        f"model {what}: {info.not_finite} of the last {info.looked_at} sampled frames gave NaN or infinity; "
        "check its input with `hedgerow explain --last`, and if that is sound, roll out the previous version"
    )
