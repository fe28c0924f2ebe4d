"""The fleet as it stands, in memory: what is known of nodes, what they are to run, the rollouts; and how that is changed.

Changes are made within a transaction of the store, in the store and here. What is here is only a copy: after any error it
is thrown away and read anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.observed import ObservedState
from hedgerow.region.rollouts.planning.desired import at_once, before, renewed
from hedgerow.region.rollouts.planning.gate import Ear, Presence
from hedgerow.region.rollouts.planning.health_samples import usual
from hedgerow.region.rollouts.planning.membership import standing
from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Halt,
    Phase,
    Rollout,
    Settle,
    Soak,
    StartWave,
    Step,
    TakeBack,
    after,
)  # fmt: skip
from hedgerow.region.rollouts.planning.waves import Member
from hedgerow.region.rollouts.store import Actor, FleetStore, StoredDesired, StoredRollout
from hedgerow.region.store.database.database import Database
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

SERVICE: Final = "service"
"""Who does what nobody has asked for: the gates."""


class Fleet:
    """The fleet. One thread uses it.

    Args:
        database: opened to write beside the collector.
        config: the region's.
    Attributes:
        desired: what nodes are to run.
        rollouts: those that matter still, by name.
        reconsider: whether every node may have to be given something since rollouts have begun or ended.
    Raises: StoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig) -> None:
        self.config = config
        self.database = database
        self.store = FleetStore(database)
        self.knowledge = ObservedState()
        self.desired = self.store.desired()
        self.rollouts = {kept.rollout.name: kept for kept in self.store.standing()}
        self.reconsider = True

    def live(self) -> list[StoredRollout]:
        """Rollouts of which something may be to do, oldest first."""
        live = [kept for kept in self.rollouts.values() if not kept.rollout.phase.ended or _unfinished(kept.rollout)]
        return sorted(live, key=lambda kept: kept.id)

    def labels(self, node: Address) -> dict[str, str]:
        """What a node is chosen by."""
        wanted = self.desired.get(node)
        return {**self.knowledge.labels(node), **(wanted.document.labels if wanted is not None else {})}

    def pins(self, node: Address) -> Collection[str]:
        """Models that rollouts leave alone on a node."""
        wanted = self.desired.get(node)
        return () if wanted is None else wanted.pins.keys()

    def member(self, node: Address, ear: Ear, now: float) -> Member:
        """A node, as waves see it."""
        there = ear.presence(self.knowledge.facts[node], now) is not Presence.GONE
        return Member(node, self.labels(node), there)

    def keep(self, new: StoredRollout, old: StoredRollout) -> None:
        """Write a rollout that has changed."""
        self.store.save(new, old, self.knowledge.ids)
        self.rollouts[new.rollout.name] = new

    def want(
        self, node: Address, now: float, *, rollout: str | None = None, pins: Any = None, **changes: Any
    ) -> StoredDesired:
        """What a node is to run from now on; nothing is written yet. `changes` are those of `renewed`."""
        old = self.desired.get(node)
        reported = self.knowledge.facts[node].reported
        document = renewed(old.document if old else None, node, reported, now, rollout=rollout, **changes)
        if old is None:
            return StoredDesired(document, pins=pins or {})
        return replace(old, document=document, pins=old.pins if pins is None else pins)

    def save(self, wanted: Mapping[Address, StoredDesired]) -> None:
        """Write what nodes are to run."""
        if wanted:
            self.store.save_desired(wanted, self.knowledge.ids)
            self.desired.update(wanted)

    def carry(self, kept: StoredRollout, step: Step, by: Actor, now: float) -> Rollout:
        """Carry out a step, within a transaction. Returns: what the rollout is then."""
        rollout = after(kept.rollout, step, now)
        wanted: dict[Address, StoredDesired] = {}
        if isinstance(step, StartWave | CatchUp):
            rollout, wanted = self._give(rollout, step.nodes, now)
        elif isinstance(step, TakeBack):
            rollout, wanted = self._put_back(rollout, step.nodes, now)
        ended = rollout.phase.ended and not kept.rollout.phase.ended
        self.keep(
            replace(kept, rollout=rollout, changed_at=now, ended_at=now if ended else kept.ended_at, waits=""), kept
        )
        self.save(wanted)
        action, why, detail = _told(step, rollout, wanted)
        self.store.audit(replace(by, why=by.why or why), action, now, rollout=rollout.name, **detail)
        if ended:
            self.reconsider = True
            newest_first = sorted(self.rollouts.values(), key=lambda kept: -kept.id)
            matter = {rollout.name for rollout in standing(kept.rollout for kept in newest_first)}
            self.rollouts = {name: kept for name, kept in self.rollouts.items() if name in matter}
        log.info(action, rollout=rollout.name, phase=rollout.phase.value, nodes=len(wanted), why=why)
        return rollout

    def _give(
        self, rollout: Rollout, nodes: Iterable[Address], now: float
    ) -> tuple[Rollout, dict[Address, StoredDesired]]:
        tasks, wanted = dict(rollout.tasks), {}
        for node in nodes:
            facts, old = self.knowledge.facts[node], self.desired.get(node)
            wanted[node] = self.want(node, now, rollout=rollout.name, models=rollout.models, swap=rollout.plan.swap)
            tasks[node] = replace(
                tasks[node],
                generation=wanted[node].document.generation,
                given_at=now,
                before=before(old.document if old else None, facts.reported, rollout.models),
                usual=usual(facts.samples, rollout.models),
                back="no",
            )
        return replace(rollout, tasks=tasks), wanted

    def _put_back(
        self, rollout: Rollout, nodes: Iterable[Address], now: float
    ) -> tuple[Rollout, dict[Address, StoredDesired]]:
        tasks, wanted = dict(rollout.tasks), {}
        for node in nodes:
            task, document = tasks[node], self.desired[node].document
            models = {
                name: task.before.get(name)
                for name, ref in rollout.models.items()
                if document.models.get(name) == ref  # else somebody has had the last word since
            }
            swap = at_once(rollout.plan.swap)
            wanted[node] = self.want(node, now, rollout=rollout.name, models=models, swap=swap)
            tasks[node] = replace(task, back_generation=wanted[node].document.generation)
        return replace(rollout, tasks=tasks), wanted


def _unfinished(rollout: Rollout) -> bool:
    """Whether one that succeeded has late nodes."""
    return rollout.phase is Phase.SUCCEEDED and any(
        task.state in ("queued", "in-progress") or task.back == "asked" or (task.failed and task.back == "no")
        for task in rollout.tasks.values()
    )


def _told(step: Step, rollout: Rollout, wanted: Mapping[Address, StoredDesired]) -> tuple[str, str, dict[str, Any]]:
    """A step as the audit log has it: action, why, detail."""
    given = {str(node): one.document.generation for node, one in wanted.items()}
    match step:
        case Settle(moves):
            told = {
                str(node): [move.back or move.state, move.code, move.reason] if move.code else [move.back or move.state]
                for node, move in moves.items()
            }
            return "nodes-settled", "", {"nodes": told}
        case StartWave(wave):
            late = [str(node) for node, task in rollout.tasks.items() if task.wave == wave and task.late]
            return (
                "wave-started",
                f"wave {wave + 1} of {len(rollout.waves)}",
                {"wave": wave, "given": given, "late": late},
            )
        case CatchUp():
            return "nodes-caught-up", "they are heard again", {"given": given}
        case Soak():
            return "soak-started", f"all of wave {rollout.wave + 1} are good", {"wave": rollout.wave}
        case TakeBack(_, because):
            return "nodes-put-back", because, {"given": given}
        case Halt(because):
            return "rollout-paused", because, {}
        case Finish(phase, because):
            return f"rollout-{phase.value}", because, {}
    raise AssertionError(step)
