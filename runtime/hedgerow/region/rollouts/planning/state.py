"""What a rollout is, the steps it can take, and what it is after each. Pure: no clock, no store, no broker.

`decide.next_step` says which step is to be taken. Who carries a step out writes what is different after it into the store
in one transaction: so a step is taken once, whenever the process dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, TypeAlias

from hedgerow.region.rollouts.planning.health_samples import NodeBaseline
from hedgerow.region.rollouts.planning.spec import RolloutPlan
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
        generation: of the desired document it was given; 0: none.
        given_at: when it was given that, or has had to prove itself anew.
        before: what it was to serve until then, by model; None: nothing that is known.
        usual: how it usually was until then.
        back: whether it was put back, and whether that is proved.
        back_generation: of the document that put it back.
        code, reason: why it is not good.
    """

    wave: int
    state: JobState = "queued"
    late: bool = False
    generation: int = 0
    assigned_at: float = 0.0
    before: Mapping[str, ModelRef | None] = field(default_factory=dict)
    baseline: NodeBaseline = field(default_factory=NodeBaseline)
    rollback: Literal["no", "asked", "proved"] = "no"
    rollback_generation: int = 0
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
    rolling_back_since: float | None = None
    ending: Phase | None = None
    reason: str = ""

    @property
    def failed(self) -> int:
        """Nodes that failed."""
        return sum(task.failed for task in self.tasks.values())

    @property
    def begun(self) -> Iterator[tuple[Address, Task]]:
        """The tasks of waves that have begun."""
        return ((node, task) for node, task in self.tasks.items() if task.wave <= self.wave)


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """What a node's job has come to."""

    state: JobState
    code: str = ""
    reason: str = ""
    rollback: Literal["proved"] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done now."""

    why: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateTasks:
    """Write down what has become of nodes."""

    updates: Mapping[Address, TaskUpdate]


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
class RollBack:
    """Put nodes back on what they served before.

    Attributes:
        ending: what the rollout will be when they are; None: it goes on without them.
    """

    nodes: tuple[Address, ...]
    reason: str
    ending: Phase | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause, and wait for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """It has ended."""

    phase: Phase
    reason: str


Step: TypeAlias = Wait | UpdateTasks | StartWave | CatchUp | Soak | RollBack | Pause | Finish


def apply_step(rollout: Rollout, step: Step, now: float) -> Rollout:
    """What a rollout is when a step is done; who carries it out adds which generations nodes were given."""
    tasks = dict(rollout.tasks)
    match step:
        case UpdateTasks(updates):
            soaking = rollout.soaking_since
            for node, update in updates.items():
                task = replace(tasks[node], state=update.state, code=update.code, reason=update.reason)
                tasks[node] = task if update.rollback is None else replace(task, rollback=update.rollback)
                if update.state == "in-progress":  # it was good
                    tasks[node] = replace(task, assigned_at=now)
                    soaking = None if task.wave == rollout.wave else soaking
            return replace(rollout, tasks=tasks, soaking_since=soaking)
        case StartWave(wave, nodes):
            there = set(nodes)
            for node, task in rollout.tasks.items():
                if task.wave == wave and task.state == "queued" and node not in there:
                    tasks[node] = replace(task, late=True)
            tasks |= {node: replace(tasks[node], state="in-progress") for node in nodes}
            return replace(rollout, tasks=tasks, wave=wave, soaking_since=None)
        case CatchUp(nodes):
            tasks |= {node: replace(tasks[node], state="in-progress", late=True) for node in nodes}
            return replace(rollout, tasks=tasks)
        case Soak():
            return replace(rollout, soaking_since=now)
        case RollBack(nodes, reason, ending):
            for node in nodes:
                task = tasks[node]
                tasks[node] = replace(task, rollback="asked", state=task.state if task.failed else "canceled")
            if ending is None:
                return replace(rollout, tasks=tasks)
            tasks = {node: _left(task) for node, task in tasks.items()}
            return replace(
                rollout, tasks=tasks, phase=Phase.ROLLING_BACK, ending=ending, reason=reason, rolling_back_since=now
            )
        case Pause(reason):
            return replace(rollout, phase=Phase.PAUSED, reason=reason)
        case Finish(phase, reason):
            if phase is not Phase.SUCCEEDED:
                tasks = {node: _left(task) for node, task in tasks.items()}
            return replace(rollout, tasks=tasks, phase=phase, reason=reason)
    return rollout


def add_nodes(rollout: Rollout, nodes: Iterable[Address]) -> Rollout:
    """With nodes that came to be chosen while it is under way, or after it succeeded: they are in its last wave."""
    last = len(rollout.waves) - 1
    new = {node: Task(last, late=rollout.wave >= last) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **new})


def remove_nodes(rollout: Rollout, nodes: Iterable[Address], code: str, reason: str) -> Rollout:
    """Without the part of nodes that others have a say in now."""
    gone = {node: replace(rollout.tasks[node], state="removed", code=code, reason=reason) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **gone})


def resume(rollout: Rollout) -> Rollout:
    """As it is when a person lets it go on: failures so far are let pass."""
    return replace(rollout, phase=Phase.RUNNING, reason="", forgiven=rollout.failed)


def _left(task: Task) -> Task:
    """A task when nothing more will come of it."""
    return replace(task, state="canceled") if task.state in ("queued", "in-progress") else task
