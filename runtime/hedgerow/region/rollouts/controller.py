"""Takes rollouts through the fleet: reads what is known, lets the pure deciders decide, writes what they decided.

Rules:
- Every action is one transaction: what changes in a rollout, the nodes' new desired documents, the line in the audit log,
  the answer to who asked for it. Whenever the process dies, all of it is there or nothing.
- Nothing here knows a broker: `unpublished` says what is to be published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.fleet import SERVICE, Fleet
from hedgerow.region.rollouts.handlers import handle_requests
from hedgerow.region.rollouts.planning.gate import Listening, Presence
from hedgerow.region.rollouts.planning.membership import joins
from hedgerow.region.rollouts.planning.planner import evaluate_nodes, next_step
from hedgerow.region.rollouts.planning.state import Wait, add_nodes
from hedgerow.region.rollouts.store import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.queries import iso
from hedgerow.topics import Address

_MAX_STEPS: Final = 20
"""Steps of a rollout in one turn; what is more comes with the next."""
_SAY_AGAIN_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PendingDocument:
    """A desired document to be published."""

    node: Address
    generation: int
    payload: bytes


class RolloutController:
    """Conducts a fleet. One thread uses it.

    Args:
        database: opened to write beside the collector.
        config: the region's.
    Raises: StoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig) -> None:
        self.fleet = Fleet(database, config)
        self._sent: dict[Address, tuple[int, float]] = {}

    def turn(self, now: float, listening: Listening) -> bool:
        """Do all that is to be done now. Returns: whether a rollout is under way.

        Raises: StoreError: the store does not work; this is to be thrown away.
        """
        fleet = self.fleet
        fleet.observed.refresh(fleet.database)
        handle_requests(fleet, now, listening)
        if listening.since is not None:
            self._join(now)
            fleet.observed.watch(fleet.database, {node for stored in fleet.active() for node in stored.rollout.tasks})
            for stored in fleet.active():
                self._advance(stored.rollout.name, now, listening)
        return bool(fleet.active())

    def unpublished(self, now: float, listening: Listening) -> list[PendingDocument]:
        """Documents that the broker does not have, and those that a node seems to have missed."""
        pending = []
        for node, desired in self.fleet.desired.items():
            generation = desired.document.generation
            sent_generation, at = self._sent.get(node, (0, 0.0))
            if desired.published >= generation and not self._missed(node, generation, now, listening):
                continue
            if sent_generation == generation and now - at < _SAY_AGAIN_AFTER_S:
                continue  # under way
            self._sent[node] = generation, now
            pending.append(PendingDocument(node, generation, desired.document.encode()))
        return pending

    def published(self, generations: Mapping[Address, int]) -> None:
        """Write down what the broker has.

        Raises: StoreError: it cannot be written; this is to be thrown away.
        """
        fleet = self.fleet
        new = {
            node: generation
            for node, generation in generations.items()
            if node in fleet.desired and generation > fleet.desired[node].published
        }
        if new:
            with fleet.database.transaction():
                fleet.store.published({fleet.observed.ids[node]: generation for node, generation in new.items()})
            for node, generation in new.items():
                fleet.desired[node] = replace(fleet.desired[node], published=generation)

    def close(self) -> None:
        """Close the store."""
        self.fleet.database.close()

    def _missed(self, node: Address, generation: int, now: float, listening: Listening) -> bool:
        """Whether a node that is heard does not know its document: a broker may have lost what it had retained."""
        observed = self.fleet.observed.nodes.get(node)
        if observed is None or observed.reported is None or listening.presence(observed, now) is not Presence.PRESENT:
            return False
        return observed.reported.generation < generation

    def _advance(self, name: str, now: float, listening: Listening) -> None:
        """Take a rollout as far as it goes now."""
        fleet = self.fleet
        for _ in range(_MAX_STEPS):
            stored = fleet.rollouts.get(name)
            if stored is None:  # it has ended
                return
            step = next_step(stored.rollout, evaluate_nodes(stored.rollout, fleet.observed.nodes, listening, now), now)
            if isinstance(step, Wait):
                waits = step.why if step.until is None else f"{step.why}, until {iso(step.until)}"
                if waits != stored.waits and not stored.rollout.phase.ended:
                    with fleet.database.transaction():
                        fleet.save_rollout(replace(stored, waits=waits), stored)
                return
            with fleet.database.transaction():
                fleet.execute(stored, step, Actor(SERVICE), now)

    def _join(self, now: float) -> None:
        """Let nodes that are new, or have new labels, have what they are to have."""
        fleet = self.fleet
        nodes = set(fleet.observed.nodes) if fleet.recheck_all else fleet.observed.changed
        newest_first = [stored.rollout for stored in sorted(fleet.rollouts.values(), key=lambda stored: -stored.id)]
        joining: dict[str, list[Address]] = {}
        if newest_first:
            for node in sorted(nodes):
                for rollout in joins(node, fleet.labels(node), fleet.pins(node), newest_first):
                    joining.setdefault(rollout.name, []).append(node)
        for name, new in joining.items():
            stored = fleet.rollouts[name]
            with fleet.database.transaction():
                fleet.save_rollout(replace(stored, rollout=add_nodes(stored.rollout, new), changed_at=now), stored)
                by = Actor(SERVICE, "they match its target")
                fleet.store.audit(by, "nodes-joined", now, rollout=name, nodes=[*map(str, new)])
        fleet.observed.changed.clear()
        fleet.recheck_all = False
