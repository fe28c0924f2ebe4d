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
from hedgerow.region.rollouts.handlers import answer_all
from hedgerow.region.rollouts.planning.gate import Ear, Presence
from hedgerow.region.rollouts.planning.membership import joins
from hedgerow.region.rollouts.planning.planner import find, next_step
from hedgerow.region.rollouts.planning.state import Wait, admit
from hedgerow.region.rollouts.store import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.queries import iso
from hedgerow.topics import Address

_MOST_STEPS: Final = 20
"""Steps of a rollout in one turn; what is more comes with the next."""
_SAY_AGAIN_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Parcel:
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
        self._given_out: dict[Address, tuple[int, float]] = {}

    def turn(self, now: float, ear: Ear) -> bool:
        """Do all that is to be done now. Returns: whether a rollout is under way.

        Raises: StoreError: the store does not work; this is to be thrown away.
        """
        fleet = self.fleet
        fleet.knowledge.refresh(fleet.database)
        answer_all(fleet, now, ear)
        if ear.since is not None:
            self._join(now)
            fleet.knowledge.watch(fleet.database, {node for kept in fleet.live() for node in kept.rollout.tasks})
            for kept in fleet.live():
                self._advance(kept.rollout.name, now, ear)
        return bool(fleet.live())

    def unpublished(self, now: float, ear: Ear) -> list[Parcel]:
        """Documents that the broker does not have, and those that a node seems to have missed."""
        parcels = []
        for node, wanted in self.fleet.desired.items():
            generation = wanted.document.generation
            given_out, at = self._given_out.get(node, (0, 0.0))
            if wanted.published >= generation and not self._missed(node, generation, now, ear):
                continue
            if given_out == generation and now - at < _SAY_AGAIN_AFTER_S:
                continue  # under way
            self._given_out[node] = generation, now
            parcels.append(Parcel(node, generation, wanted.document.encode()))
        return parcels

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
                fleet.store.published({fleet.knowledge.ids[node]: generation for node, generation in new.items()})
            for node, generation in new.items():
                fleet.desired[node] = replace(fleet.desired[node], published=generation)

    def close(self) -> None:
        """Close the store."""
        self.fleet.database.close()

    def _missed(self, node: Address, generation: int, now: float, ear: Ear) -> bool:
        """Whether a node that is heard does not know its document: a broker may have lost what it had retained."""
        facts = self.fleet.knowledge.facts.get(node)
        if facts is None or facts.reported is None or ear.presence(facts, now) is not Presence.HERE:
            return False
        return facts.reported.generation < generation

    def _advance(self, name: str, now: float, ear: Ear) -> None:
        """Take a rollout as far as it goes now."""
        fleet = self.fleet
        for _ in range(_MOST_STEPS):
            kept = fleet.rollouts.get(name)
            if kept is None:  # it has ended
                return
            step = next_step(kept.rollout, find(kept.rollout, fleet.knowledge.facts, ear, now), now)
            if isinstance(step, Wait):
                waits = step.why if step.until is None else f"{step.why}, until {iso(step.until)}"
                if waits != kept.waits and not kept.rollout.phase.ended:
                    with fleet.database.transaction():
                        fleet.keep(replace(kept, waits=waits), kept)
                return
            with fleet.database.transaction():
                fleet.carry(kept, step, Actor(SERVICE), now)

    def _join(self, now: float) -> None:
        """Let nodes that are new, or have new labels, have what they are to have."""
        fleet = self.fleet
        nodes = set(fleet.knowledge.facts) if fleet.reconsider else fleet.knowledge.changed
        newest_first = [kept.rollout for kept in sorted(fleet.rollouts.values(), key=lambda kept: -kept.id)]
        joining: dict[str, list[Address]] = {}
        if newest_first:
            for node in sorted(nodes):
                for rollout in joins(node, fleet.labels(node), fleet.pins(node), newest_first):
                    joining.setdefault(rollout.name, []).append(node)
        for name, new in joining.items():
            kept = fleet.rollouts[name]
            with fleet.database.transaction():
                fleet.keep(replace(kept, rollout=admit(kept.rollout, new), changed_at=now), kept)
                by = Actor(SERVICE, "they match its target")
                fleet.store.audit(by, "nodes-joined", now, rollout=name, nodes=[*map(str, new)])
        fleet.knowledge.changed.clear()
        fleet.reconsider = False
