"""What a rollout does next. Pure: no clock, no store, no broker; a restarted process decides the same again.

`next_step` says what is to be done, `after` what the rollout is when it is done. Who carries steps out writes both into the
store in one transaction: so a step is done once, whenever the process dies.

Rules:
- A node is given the change only when its wave has begun and it is heard. Who is not heard does not hold its wave up: it
  is late, and catches up when it returns.
- A wave is good when all who are not late are good, and at least one node of the rollout is.
- More failures than allowed end it. What failed goes back at once, whatever becomes of the rest.
- A pause begins nothing new; failures are still seen to.
- What has ended does not change any more, but that late nodes of one that succeeded catch up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, TypeAlias

from hedgerow.region.gate import Ear, Facts, Finding, Given, Verdict, examine, examine_back
from hedgerow.region.plan import RolloutPlan
from hedgerow.region.windows import opens_at
from hedgerow.topics import Address
from hedgerow.wire.fleet import JobState, ModelRef


class Phase(StrEnum):
    """How far a rollout is."""

    RUNNING = "in-progress"
    PAUSED = "paused"
    ROLLING_BACK = "rolling-back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing of it is under way."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED)


@dataclass(frozen=True, slots=True)
class Task:
    """A node's part in a rollout.

    Attributes:
        wave: which it is in, from 0.
        state: what it has come to.
        late: it was not heard when its wave came.
        generation, given_at: of the desired document it was given; 0: none.
        before: what it was to serve until then, by model; None: nothing that is known.
        p99_ms: its usual latency until then, by pipeline.
        back: whether it was put back, and whether that is proved.
        back_generation: of the document that put it back.
        code, reason: why it is not good.
    """

    wave: int
    state: JobState = "queued"
    late: bool = False
    generation: int = 0
    given_at: float = 0.0
    before: Mapping[str, ModelRef | None] = field(default_factory=dict)
    p99_ms: Mapping[str, float] = field(default_factory=dict)
    back: Literal["no", "asked", "proved"] = "no"
    back_generation: int = 0
    code: str = ""
    reason: str = ""

    @property
    def reached(self) -> bool:
        """Whether the node was ever given the change."""
        return self.generation > 0

    @property
    def failed(self) -> bool:
        """Whether it counts as a failure."""
        return self.state in ("failed", "timed-out", "rejected")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout, as it stands.

    Attributes:
        models: what it brings, by model's name in nodes' files.
        files: digests of the files of it that may serve, by the same name; none: any.
        wave: the one under way, from 0; -1: none has begun.
        waves: how they are called.
        soaking_since: Unix seconds since when all nodes of the wave are good; None: they are not yet.
        forgiven: failures that a person has seen and let pass.
        turned_at: when it began to go back.
        ending: what it will be when all are back.
        because: why it paused, goes back or ended.
    """

    name: str
    plan: RolloutPlan
    models: Mapping[str, ModelRef]
    waves: tuple[str, ...]
    tasks: Mapping[Address, Task]
    files: Mapping[str, frozenset[str]] = field(default_factory=dict)
    phase: Phase = Phase.RUNNING
    wave: int = -1
    soaking_since: float | None = None
    forgiven: int = 0
    turned_at: float | None = None
    ending: Phase | None = None
    because: str = ""

    @property
    def failed(self) -> int:
        """Nodes that failed."""
        return sum(task.failed for task in self.tasks.values())

    @property
    def begun(self) -> Iterator[tuple[Address, Task]]:
        """The tasks of waves that have begun."""
        return ((node, task) for node, task in self.tasks.items() if task.wave <= self.wave)


@dataclass(frozen=True, slots=True)
class Move:
    """What a node's job has come to."""

    state: JobState
    code: str = ""
    reason: str = ""
    back: Literal["proved"] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done now."""

    why: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """Write down what has become of nodes."""

    moves: Mapping[Address, Move]


@dataclass(frozen=True, slots=True)
class StartWave:
    """Begin with the next wave: give the change to those of it who are heard; the others are late."""

    wave: int
    nodes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Give the change to late nodes that are heard again."""

    nodes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Soak:
    """All nodes of the wave are good: look how they do for a while."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Put nodes back on what they served before.

    Attributes:
        ending: what the rollout will be when they are; None: it goes on without them.
    """

    nodes: tuple[Address, ...]
    because: str
    ending: Phase | None = None


@dataclass(frozen=True, slots=True)
class Halt:
    """Pause, and wait for a person."""

    because: str


@dataclass(frozen=True, slots=True)
class Finish:
    """It has ended."""

    phase: Phase
    because: str


Step: TypeAlias = Wait | Settle | StartWave | CatchUp | Soak | TakeBack | Halt | Finish


def next_step(rollout: Rollout, findings: Mapping[Address, Finding], now: float) -> Step:
    """What is to be done now.

    Args:
        findings: of all nodes that are known, as `Facts` are examined for the task they have.
        now: Unix seconds.
    """
    if rollout.phase in (Phase.FAILED, Phase.CANCELED):
        return Wait("it has ended")
    if moves := dict(_moves(rollout, findings)):
        return Settle(moves)
    if rollout.phase is Phase.SUCCEEDED:
        return _strays(rollout) or _catch_up(rollout, findings, now) or Wait("it has ended")
    if rollout.phase is Phase.ROLLING_BACK:
        return _going_back(rollout, findings, now)
    return _failures(rollout) or _forward(rollout, findings, now)


def find(rollout: Rollout, facts: Mapping[Address, Facts], ear: Ear, now: float) -> dict[Address, Finding]:
    """What is to be thought of the nodes of a rollout, by what each was given."""
    unknown = Facts()
    return {node: _find(rollout, task, facts.get(node, unknown), ear, now) for node, task in rollout.tasks.items()}


def _find(rollout: Rollout, task: Task, facts: Facts, ear: Ear, now: float) -> Finding:
    if task.back == "asked":
        return examine_back(task.before, task.back_generation, facts, ear, now)
    if task.reached and task.state in ("in-progress", "succeeded"):
        given = Given(rollout.models, rollout.files, task.generation, task.given_at, task.p99_ms)
        return examine(given, facts, rollout.plan.gate, ear, now)
    return Finding(Verdict.UNKNOWN, task.state, heard=ear.hears(facts, now))


def _moves(rollout: Rollout, findings: Mapping[Address, Finding]) -> Iterator[tuple[Address, Move]]:
    """What has become of nodes that were given something."""
    for node, task in rollout.tasks.items():
        finding = findings.get(node)
        if finding is None or not task.reached:
            continue
        if task.back == "asked":
            if finding.verdict is Verdict.GOOD:
                yield node, Move(task.state, task.code, task.reason, back="proved")
        elif task.state == "in-progress" or (task.state == "succeeded" and not rollout.phase.ended):
            if finding.verdict is Verdict.BAD:
                yield node, Move(finding.state, finding.code, finding.reason)
            elif finding.verdict is Verdict.GOOD and task.state == "in-progress":
                yield node, Move("succeeded")


def _failures(rollout: Rollout) -> Step | None:
    """What is to be done about failures."""
    plan = rollout.plan
    reached = sum(task.reached for task in rollout.tasks.values())
    failed = rollout.failed - rollout.forgiven
    allowed = plan.allowed_failures(max(reached, 1))
    too_many = failed > allowed
    if not too_many and failed and not _open(rollout) and not _any_good(rollout):
        too_many = True  # all who were reached have failed: whatever is allowed, nothing speaks for it
    if too_many and plan.on_failure != "pause":
        wave_only = plan.on_failure == "roll-back-wave"
        return take_back(rollout, Phase.FAILED, f"{_failed(rollout)}; {allowed} may", wave_only=wave_only)
    if (step := _strays(rollout)) is not None:
        return step
    if too_many and rollout.phase is Phase.RUNNING:
        return Halt(f"{_failed(rollout)}; {allowed} may")
    return None


def _strays(rollout: Rollout) -> TakeBack | None:
    """What failed and is not back yet."""
    strays = tuple(node for node, task in rollout.tasks.items() if task.failed and task.reached and task.back == "no")
    return TakeBack(strays, "they failed") if strays else None


def take_back(rollout: Rollout, ending: Phase, because: str, *, wave_only: bool = False) -> TakeBack:
    """The step that puts back all nodes that were reached.

    Args:
        wave_only: only those of the wave under way, and who failed.
    """
    nodes = tuple(
        node
        for node, task in rollout.tasks.items()
        if task.reached
        and task.back == "no"
        and task.state != "removed"
        and (not wave_only or task.wave == rollout.wave or task.failed or task.state == "in-progress")
    )
    return TakeBack(nodes, because, ending)


def _forward(rollout: Rollout, findings: Mapping[Address, Finding], now: float) -> Step:
    """What is to be done when nothing is wrong."""
    if rollout.phase is Phase.PAUSED:
        return Wait(f"paused: {rollout.because}")
    if (step := _catch_up(rollout, findings, now)) is not None:
        return step
    waiting = _open(rollout)
    if waiting:
        return Wait(f"{_some(waiting)} not proved yet")
    if rollout.wave >= 0:
        late = [node for node, task in rollout.begun if task.state in ("queued", "in-progress")]
        if late and not _any_good(rollout):
            return Wait(f"nobody has proved it good yet; {_some(late)} late")
        wave = [node for node, task in rollout.begun if task.wave == rollout.wave and task.state == "succeeded"]
        if wave and rollout.soaking_since is None:
            return Soak()
        if rollout.soaking_since is not None and now < (until := rollout.soaking_since + rollout.plan.soak_s):
            return Wait("soaking", until)
        unsure = [node for node in wave if _verdict(findings, node) is not Verdict.GOOD]
        if unsure:
            return Wait(f"{_some(unsure)} not known to be good just now")
    if rollout.wave + 1 >= len(rollout.waves):
        return Finish(Phase.SUCCEEDED, _summary(rollout))
    if (opens := opens_at(rollout.plan.windows, now)) > now:
        return Wait("outside of its maintenance windows", opens)
    wave_number = rollout.wave + 1
    members = [node for node, task in rollout.tasks.items() if task.wave == wave_number and task.state == "queued"]
    return StartWave(wave_number, tuple(node for node in members if _heard(findings, node)))


def _catch_up(rollout: Rollout, findings: Mapping[Address, Finding], now: float) -> Step | None:
    late = tuple(node for node, task in rollout.begun if task.state == "queued" and _heard(findings, node))
    if not late or opens_at(rollout.plan.windows, now) > now:
        return None
    return CatchUp(late)


def _going_back(rollout: Rollout, findings: Mapping[Address, Finding], now: float) -> Step:
    asked = [node for node, task in rollout.tasks.items() if task.back == "asked"]
    deadline = (rollout.turned_at or now) + rollout.plan.gate.timeout_s
    if any(_heard(findings, node) for node in asked) and now < deadline:
        return Wait(f"{_some(asked)} not back yet", deadline)
    because = rollout.because
    if asked:
        because += f"; {_some(asked)} not proved to be back"
    return Finish(rollout.ending or Phase.FAILED, because)


def after(rollout: Rollout, step: Step, now: float) -> Rollout:
    """What a rollout is when a step is done; what nodes were given is noted by `given` and `put_back`."""
    tasks = dict(rollout.tasks)
    match step:
        case Settle(moves):
            for node, move in moves.items():
                task = replace(tasks[node], state=move.state, code=move.code, reason=move.reason)
                tasks[node] = task if move.back is None else replace(task, back=move.back)
            return replace(rollout, tasks=tasks)
        case StartWave(wave, nodes):
            there = set(nodes)
            for node, task in rollout.tasks.items():
                if task.wave == wave and task.state == "queued" and node not in there:
                    tasks[node] = _missed(task, rollout.plan)
            tasks |= {node: replace(tasks[node], state="in-progress") for node in nodes}
            return replace(rollout, tasks=tasks, wave=wave, soaking_since=None)
        case CatchUp(nodes):
            tasks |= {node: replace(tasks[node], state="in-progress", late=True) for node in nodes}
            return replace(rollout, tasks=tasks)
        case Soak():
            return replace(rollout, soaking_since=now)
        case TakeBack(nodes, because, ending):
            for node in nodes:
                task = tasks[node]
                tasks[node] = replace(task, back="asked", state=task.state if task.failed else "canceled")
            if ending is None:
                return replace(rollout, tasks=tasks)
            tasks = {node: _left(task) for node, task in tasks.items()}
            return replace(
                rollout, tasks=tasks, phase=Phase.ROLLING_BACK, ending=ending, because=because, turned_at=now
            )
        case Halt(because):
            return replace(rollout, phase=Phase.PAUSED, because=because)
        case Finish(phase, because):
            if phase is not Phase.SUCCEEDED:
                tasks = {node: _left(task) for node, task in tasks.items()}
            return replace(rollout, tasks=tasks, phase=phase, because=because)
    return rollout


def admit(rollout: Rollout, nodes: Iterable[Address]) -> Rollout:
    """With nodes that came to be chosen while it is under way, or after it succeeded: they are in its last wave."""
    last = len(rollout.waves) - 1
    new = {node: Task(last, late=rollout.wave >= last) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **new})


def remove(rollout: Rollout, nodes: Iterable[Address], code: str, reason: str) -> Rollout:
    """Without the part of nodes that others have a say in now."""
    gone = {node: replace(rollout.tasks[node], state="removed", code=code, reason=reason) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **gone})


def resume(rollout: Rollout) -> Rollout:
    """As it is when a person lets it go on: failures so far are let pass."""
    return replace(rollout, phase=Phase.RUNNING, because="", forgiven=rollout.failed)


def _left(task: Task) -> Task:
    """A task when nothing more will come of it."""
    return replace(task, state="canceled") if task.state in ("queued", "in-progress") else task


def _missed(task: Task, plan: RolloutPlan) -> Task:
    if plan.offline == "fail":
        return replace(task, state="failed", late=True, code="offline", reason="it was not heard when its wave came")
    return replace(task, late=True)


def _open(rollout: Rollout) -> list[Address]:
    """Nodes that hold the wave up."""
    return [node for node, task in rollout.begun if task.state == "in-progress" and not task.late]


def _any_good(rollout: Rollout) -> bool:
    return any(task.state == "succeeded" for task in rollout.tasks.values())


def _heard(findings: Mapping[Address, Finding], node: Address) -> bool:
    finding = findings.get(node)
    return finding is not None and finding.heard


def _verdict(findings: Mapping[Address, Finding], node: Address) -> Verdict:
    finding = findings.get(node)
    return Verdict.UNKNOWN if finding is None else finding.verdict


def _failed(rollout: Rollout) -> str:
    """Who failed and why, the first ones by name."""
    failed = [(node, task) for node, task in rollout.tasks.items() if task.failed]
    shown = "; ".join(f"{node.site}/{node.node}: {task.code}: {task.reason}" for node, task in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} failed ({shown}{more})"


def _some(nodes: list[Address]) -> str:
    shown = ", ".join(f"{node.site}/{node.node}" for node in nodes[:3])
    return (
        f"{shown}{f' and {len(nodes) - 3} more' if len(nodes) > 3 else ''}: {len(nodes)}" if len(nodes) > 1 else shown
    )


def _summary(rollout: Rollout) -> str:
    states = [task.state for task in rollout.tasks.values()]
    late = states.count("queued") + states.count("in-progress")
    parts = [f"{states.count('succeeded')} of {len(states)} nodes serve it"]
    parts += [f"{rollout.failed} failed"] if rollout.failed else []
    parts += [f"{late} late"] if late else []
    return ", ".join(parts)
