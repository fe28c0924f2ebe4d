"""The fleet in memory: observed and desired state of the nodes, and the rollouts.

Changes are made within a transaction, both in the store and in memory. The state in memory is only a copy: after any error,
discard it and create a new `Fleet`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.observed import ObservedState
from hedgerow.region.rollouts.planning.desired import before, immediate, next_document
from hedgerow.region.rollouts.planning.gate import Listening, ObservedNode, Presence
from hedgerow.region.rollouts.planning.health_samples import NodeBaseline, baseline
from hedgerow.region.rollouts.planning.membership import effective_labels, relevant
from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Pause,
    Phase,
    RollBack,
    Rollout,
    Soak,
    StartWave,
    Step,
    UpdateTasks,
    apply_step,
)  # fmt: skip
from hedgerow.region.rollouts.planning.waves import Member
from hedgerow.region.rollouts.store import FleetStore, StoredDesired, StoredRollout
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.topics import Address

log = structlog.get_logger(__name__)


class Fleet:
    """The fleet. One thread uses it.

    Args:
        database: opened with `alongside`.
        config: the region's configuration.
    Attributes:
        observed: observed state of the nodes.
        desired: desired documents, by node.
        rollouts: those that still matter, by name.
        recheck_all: whether any node may have to join a rollout, since one has started or ended.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig) -> None:
        self.config = config
        self.database = database
        self.store = FleetStore(database)
        self._read()

    def reload(self) -> None:
        """Read everything again, since nodes have other addresses, or are gone."""
        self._read()
        self.observed.refresh(self.database)

    def _read(self) -> None:
        self.observed = ObservedState()
        self.desired = self.store.desired()
        self.rollouts = {stored.rollout.name: stored for stored in self.store.relevant()}
        self.recheck_all = True
        self._generation_floor = self.store.generation_floor()

    def active(self) -> list[StoredRollout]:
        """Return the rollouts that may have a next step, oldest first."""
        active = [
            stored for stored in self.rollouts.values() if not stored.rollout.phase.ended or _unfinished(stored.rollout)
        ]
        return sorted(active, key=lambda stored: stored.id)

    def labels(self, node: Address) -> dict[str, str]:
        """Return a node's labels: its address, those it reports, and those the region sets besides."""
        return effective_labels(node, self.observed.labels(node), self.labels_of_region(node))

    def labels_of_region(self, node: Address) -> dict[str, str]:
        """Return the labels that the region sets."""
        desired = self.desired.get(node)
        return {} if desired is None else desired.document.labels

    def pins(self, node: Address) -> Collection[str]:
        """Return the models that rollouts leave alone on a node."""
        desired = self.desired.get(node)
        return () if desired is None else desired.pins.keys()

    def member(self, node: Address, listening: Listening, now: float) -> Member:
        """Return a node as input for waves."""
        present = listening.presence(self.observed.nodes[node], now) is not Presence.ABSENT
        return Member(node, self.labels(node), present)

    def save_rollout(self, new: StoredRollout, old: StoredRollout) -> None:
        """Save a rollout that has changed."""
        self.store.save(new, old, self.observed.ids)
        self.rollouts[new.rollout.name] = new

    def next_desired(
        self, node: Address, now: float, *, rollout: str | None = None, pins: Any = None, **changes: Any
    ) -> StoredDesired:
        """Return a node's next desired document, without saving it. `changes` are those of `next_document`."""
        old = self.desired.get(node)
        reported = self.observed.nodes[node].reported
        document = next_document(
            old.document if old else None, node, reported, now, rollout=rollout, floor=self._generation_floor, **changes
        )
        if old is None:
            return StoredDesired(document, pins=pins or {})
        return replace(old, document=document, pins=old.pins if pins is None else pins)

    def save_desired(self, desired: Mapping[Address, StoredDesired]) -> None:
        """Save desired documents."""
        if desired:
            self.store.save_desired(desired, self.observed.ids)
            self.desired.update(desired)

    def execute(self, stored: StoredRollout, step: Step, by: Actor, now: float) -> Rollout:
        """Execute a step, within the caller's transaction. Returns: the rollout after it."""
        rollout = apply_step(stored.rollout, step, now)
        desired: dict[Address, StoredDesired] = {}
        if isinstance(step, StartWave | CatchUp):
            rollout, desired = self._assign(rollout, step.nodes, now)
        elif isinstance(step, RollBack):
            rollout, desired = self._roll_back(rollout, step.nodes, now)
        ended = rollout.phase.ended and not stored.rollout.phase.ended
        self.save_rollout(
            replace(stored, rollout=rollout, changed_at=now, ended_at=now if ended else stored.ended_at, waits=""),
            stored,
        )
        self.save_desired(desired)
        action, why, detail = _audit_entry(step, rollout, desired)
        self.store.audit(replace(by, why=by.why or why), action, now, rollout=rollout.name, **detail)
        if ended:
            self.recheck_all = True
            newest_first = sorted(self.rollouts.values(), key=lambda stored: -stored.id)
            names = {rollout.name for rollout in relevant(stored.rollout for stored in newest_first)}
            self.rollouts = {name: stored for name, stored in self.rollouts.items() if name in names}
        log.info(action, rollout=rollout.name, phase=rollout.phase.value, nodes=len(desired), why=why)
        return rollout

    def _assign(
        self, rollout: Rollout, nodes: Iterable[Address], now: float
    ) -> tuple[Rollout, dict[Address, StoredDesired]]:
        tasks, desired = dict(rollout.tasks), {}
        for node in nodes:
            observed, old = self.observed.nodes[node], self.desired.get(node)
            desired[node] = self.next_desired(
                node,
                now,
                rollout=rollout.name,
                models=rollout.models,
                withdraw=rollout.withdrawn,
                swap=rollout.plan.swap,
            )
            tasks[node] = replace(
                tasks[node],
                generation=desired[node].document.generation,
                assigned_at=now,
                before=before(old.document if old else None, observed.reported, rollout.models),
                baseline=_baseline(node, observed, rollout),
                rollback="no",
            )
        return replace(rollout, tasks=tasks), desired

    def _roll_back(
        self, rollout: Rollout, nodes: Iterable[Address], now: float
    ) -> tuple[Rollout, dict[Address, StoredDesired]]:
        tasks, desired = dict(rollout.tasks), {}
        for node in nodes:
            task, document = tasks[node], self.desired[node].document
            models = {
                name: task.before.get(name)
                for name, ref in rollout.models.items()
                if document.models.get(name) == ref  # otherwise a later change replaced it
            }
            swap = immediate(rollout.plan.swap)
            desired[node] = self.next_desired(node, now, rollout=rollout.name, models=models, swap=swap)
            tasks[node] = replace(task, rollback_generation=desired[node].document.generation)
        return replace(rollout, tasks=tasks), desired


def _baseline(node: Address, observed: ObservedNode, rollout: Rollout) -> NodeBaseline:
    """Compute a node's baseline; an empty one if its reports cannot be evaluated, so that the wave starts without it."""
    try:
        return baseline(observed.samples, rollout.models)
    except Exception:
        log.exception("node-unreadable", node=str(node))
        return NodeBaseline()


def _unfinished(rollout: Rollout) -> bool:
    """Whether a rollout that succeeded still has late nodes."""
    return rollout.phase is Phase.SUCCEEDED and any(
        task.state in ("queued", "in-progress") or task.rollback == "asked" or (task.failed and task.rollback == "no")
        for task in rollout.tasks.values()
    )


def _audit_entry(
    step: Step, rollout: Rollout, desired: Mapping[Address, StoredDesired]
) -> tuple[str, str, dict[str, Any]]:
    """Return a step's audit log entry: action, reason, detail."""
    given = {str(node): one.document.generation for node, one in desired.items()}
    match step:
        case UpdateTasks(updates):
            outcomes = {
                str(node): [update.rollback or update.state, update.code, update.reason]
                if update.code
                else [update.rollback or update.state]
                for node, update in updates.items()
            }
            return "nodes-settled", "", {"nodes": outcomes}
        case StartWave(wave):
            late = [str(node) for node, task in rollout.tasks.items() if task.wave == wave and task.late]
            return (
                "wave-started",
                f"wave {wave + 1} of {len(rollout.waves)}",
                {"wave": wave, "given": given, "late": late},
            )
        case CatchUp():
            return "nodes-caught-up", "they are connected again", {"given": given}
        case Soak():
            return "soak-started", f"all nodes of wave {rollout.wave + 1} are good", {"wave": rollout.wave}
        case RollBack(_, reason):
            return "nodes-put-back", reason, {"given": given}
        case Pause(reason):
            return "rollout-paused", reason, {}
        case Finish(phase, reason):
            return f"rollout-{phase.value}", reason, {}
    raise AssertionError(step)
