"""State of a rollout, its possible steps, and their effect. Pure: no clock, store or broker.

`planner.next_step` chooses the step. `fleet.execute` writes its effect to the store in one transaction, so each step is
executed exactly once even if the process is killed.
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
    """Phase of a rollout."""

    RUNNING = "in-progress"
    PAUSED = "paused"
    ROLLING_BACK = "rolling-back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether the rollout has ended."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED)


@dataclass(frozen=True, slots=True)
class Task:
    """A node's part in a rollout.

    Attributes:
        wave: number of its wave, from 0.
        state: its state.
        late: it was not connected when its wave started.
        generation: of the desired document with the change; 0: none was sent.
        assigned_at: when that was created, or when the node last had to prove itself again.
        before: desired version before the change, by model; None: unknown.
        baseline: its normal behaviour before the change.
        rollback: whether it was rolled back, and whether its reports prove that; `kept`: it had no version to go back to, and
            serves this one on.
        rollback_generation: of the desired document that rolls it back.
        code, reason: why it is not good.
    """

    wave: int
    state: JobState = "queued"
    late: bool = False
    generation: int = 0
    assigned_at: float = 0.0
    before: Mapping[str, ModelRef | None] = field(default_factory=dict)
    baseline: NodeBaseline = field(default_factory=NodeBaseline)
    rollback: Literal["no", "asked", "proved", "kept"] = "no"
    rollback_generation: int = 0
    code: str = ""
    reason: str = ""

    @property
    def reached(self) -> bool:
        """Whether the node was sent the change."""
        return self.generation > 0

    @property
    def failed(self) -> bool:
        """Whether it counts as a failure."""
        return self.state in ("failed", "timed-out", "rejected")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout.

    Attributes:
        models: versions to roll out, by the model's name in the nodes' files; None: it is withdrawn.
        waves: titles of the waves.
        files: digests of the files that may serve them, by the same name; empty: any.
        wave: the current one, from 0; -1: none has started.
        soaking_since: Unix seconds since all nodes of the wave are good; None: they are not.
        forgiven: failures that an operator has accepted by resuming.
        rolling_back_since: Unix seconds; None: it is not rolling back.
        ending: its phase once the rollback is complete.
        reason: why it is paused, rolling back or ended.
    """

    name: str
    plan: RolloutPlan
    models: Mapping[str, ModelRef | None]
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
    def withdrawn(self) -> set[str]:
        """The models that it withdraws."""
        return {name for name, ref in self.models.items() if ref is None}

    @property
    def failed(self) -> int:
        """Number of nodes that failed."""
        return sum(task.failed for task in self.tasks.values())

    @property
    def begun(self) -> Iterator[tuple[Address, Task]]:
        """The tasks of waves that have started."""
        return ((node, task) for node, task in self.tasks.items() if task.wave <= self.wave)


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """New state of a task."""

    state: JobState
    code: str = ""
    reason: str = ""
    rollback: Literal["proved", "kept"] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for now."""

    why: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateTasks:
    """Update tasks from the findings about their nodes."""

    updates: Mapping[Address, TaskUpdate]


@dataclass(frozen=True, slots=True)
class StartWave:
    """Start the next wave: send the change to its present nodes; the others are late."""

    wave: int
    nodes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Send the change to late nodes that are present again."""

    nodes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Soak:
    """Start soaking: all nodes of the wave are good."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Roll nodes back to what they served before.

    Attributes:
        ending: the rollout's phase afterwards; None: it goes on without them.
    """

    nodes: tuple[Address, ...]
    reason: str
    ending: Phase | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause until an operator resumes or aborts."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the rollout."""

    phase: Phase
    reason: str


Step: TypeAlias = Wait | UpdateTasks | StartWave | CatchUp | Soak | RollBack | Pause | Finish


def apply_step(rollout: Rollout, step: Step, now: float) -> Rollout:
    """Return the rollout after a step. The caller adds the generations of the desired documents."""
    tasks = dict(rollout.tasks)
    match step:
        case UpdateTasks(updates):
            soaking = rollout.soaking_since
            for node, update in updates.items():
                task = replace(tasks[node], state=update.state, code=update.code, reason=update.reason)
                tasks[node] = task if update.rollback is None else replace(task, rollback=update.rollback)
                if update.state == "in-progress":  # it was good before
                    tasks[node] = replace(task, assigned_at=now)
                    soaking = None if task.wave == rollout.wave else soaking
            return replace(rollout, tasks=tasks, soaking_since=soaking)
        case StartWave(wave, nodes):
            present = set(nodes)
            for node, task in rollout.tasks.items():
                if task.wave == wave and task.state == "queued" and node not in present:
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
            tasks = {node: _canceled(task) for node, task in tasks.items()}
            return replace(
                rollout, tasks=tasks, phase=Phase.ROLLING_BACK, ending=ending, reason=reason, rolling_back_since=now
            )
        case Pause(reason):
            return replace(rollout, phase=Phase.PAUSED, reason=reason)
        case Finish(phase, reason):
            if phase is not Phase.SUCCEEDED:
                tasks = {node: _canceled(task) for node, task in tasks.items()}
            return replace(rollout, tasks=tasks, phase=phase, reason=reason)
    return rollout


def add_nodes(rollout: Rollout, nodes: Iterable[Address]) -> Rollout:
    """Add nodes to the last wave that match the target only since the start."""
    last = len(rollout.waves) - 1
    new = {node: Task(last, late=rollout.wave >= last) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **new})


def remove_nodes(rollout: Rollout, nodes: Iterable[Address], code: str, reason: str) -> Rollout:
    """Mark tasks as removed, because another rollout or a pin takes over."""
    gone = {node: replace(rollout.tasks[node], state="removed", code=code, reason=reason) for node in nodes}
    return replace(rollout, tasks={**rollout.tasks, **gone})


def resume(rollout: Rollout) -> Rollout:
    """Resume a paused rollout; the failures so far are forgiven."""
    return replace(rollout, phase=Phase.RUNNING, reason="", forgiven=rollout.failed)


def _canceled(task: Task) -> Task:
    """Cancel a task that is not finished."""
    return replace(task, state="canceled") if task.state in ("queued", "in-progress") else task
