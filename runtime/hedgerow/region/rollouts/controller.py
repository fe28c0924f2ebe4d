"""Runs rollouts: reads the observed state, plans the next steps, and writes them to the store.

Rules:
- Every action is one transaction: the change to the rollout, the nodes' new desired documents, the audit log entry, and the
  reply to the operator. If the process is killed, either all of it is stored or nothing.
- What a node or a stored row makes fail stops only that node, or that rollout for a while.
- The controller knows no broker: `unpublished` returns the documents to publish.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.fleet import Fleet
from hedgerow.region.rollouts.handlers import handle_requests
from hedgerow.region.rollouts.planning.gate import Listening, Presence
from hedgerow.region.rollouts.planning.membership import joins
from hedgerow.region.rollouts.planning.planner import evaluate_nodes, next_step
from hedgerow.region.rollouts.planning.state import Wait, add_nodes
from hedgerow.region.store.audit import SERVICE, Actor
from hedgerow.region.store.database.database import Database, StoreTrouble
from hedgerow.region.store.life.identity import topics_cleared, topics_to_clear
from hedgerow.region.store.queries import iso
from hedgerow.topics import Address, Channel
from hedgerow.wire.fleet import Desired
from hedgerow.wire.messages import clean

_MAX_STEPS: Final = 20
"""Most steps of a rollout in one turn; the next turn continues."""
_RESEND_AFTER_S: Final = 60.0
_STALLED_S: Final = 60.0
"""How long a rollout that has failed because of a bug is set aside, so that it costs the others at most a turn."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PendingDocument:
    """A desired document to publish."""

    node: Address
    generation: int
    payload: bytes

    @property
    def topic(self) -> str:
        """Where it is published."""
        return self.node.topic(Channel.DESIRED)


@dataclass(frozen=True, slots=True)
class PendingClear:
    """A topic whose retained message is to be cleared, by an empty one."""

    topic: str
    payload: bytes = b""


class RolloutController:
    """Runs the rollouts of a fleet. One thread uses it.

    Args:
        database: opened with `alongside`.
        config: the region's configuration.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig) -> None:
        self.fleet = Fleet(database, config)
        self._sent: dict[Address, tuple[int, float]] = {}
        self._clearing: dict[str, float] = {}
        self._stalled: dict[str, float] = {}

    def turn(self, now: float, listening: Listening) -> bool:
        """Do everything that is due. Returns: whether a rollout is in progress.

        Raises: RegionStoreError: the store does not work; discard this controller.
        """
        fleet = self.fleet
        fleet.observed.refresh(fleet.database)
        handle_requests(fleet, now, listening)
        if listening.since is not None:
            self._join(now)
            fleet.observed.watch(fleet.database, {node for stored in fleet.active() for node in stored.rollout.tasks})
            for stored in fleet.active():
                if not self._advance_alone(stored.rollout.name, now, listening):
                    break  # the others go on in the next turn
        return bool(self.fleet.active())

    def unpublished(self, now: float, listening: Listening) -> list[PendingDocument]:
        """Return documents that the broker does not have, or that a node seems to have missed."""
        pending = []
        for node, desired in self.fleet.desired.items():
            generation = desired.document.generation
            sent_generation, at = self._sent.get(node, (0, 0.0))
            if desired.published >= generation and not self._missed(node, desired.document, now, listening):
                continue
            if sent_generation == generation and now - at < _RESEND_AFTER_S:
                continue  # in flight
            self._sent[node] = generation, now
            pending.append(PendingDocument(node, generation, desired.document.encode()))
        return pending

    def uncleared(self, now: float) -> list[PendingClear]:
        """Return the topics that the broker has not cleared yet.

        Raises: RegionStoreError: they cannot be read; discard this controller.
        """
        topics = topics_to_clear(self.fleet.database)
        self._clearing = {topic: at for topic in topics if (at := self._clearing.get(topic)) is not None}
        due = [topic for topic in topics if now - self._clearing.get(topic, 0.0) >= _RESEND_AFTER_S]
        self._clearing |= dict.fromkeys(due, now)
        return [PendingClear(topic) for topic in due]

    def cleared(self, topics: Collection[str]) -> None:
        """Record which topics the broker has cleared.

        Raises: RegionStoreError: it cannot be written; discard this controller.
        """
        if topics:
            with self.fleet.database.transaction():
                topics_cleared(self.fleet.database, topics)
            for topic in topics:
                self._clearing.pop(topic, None)

    def published(self, generations: Mapping[Address, int]) -> None:
        """Record which documents the broker has.

        Raises: RegionStoreError: it cannot be written; discard this controller.
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
        """Close the database."""
        self.fleet.database.close()

    def _missed(self, node: Address, document: Desired, now: float, listening: Listening) -> bool:
        """Whether a node that is present lacks its document: a broker may have lost its retained messages."""
        observed = self.fleet.observed.nodes.get(node)
        if observed is None or observed.reported is None or listening.presence(observed, now) is not Presence.PRESENT:
            return False
        seen = observed.reported.generation
        return seen < document.generation or seen == document.supersedes

    def _advance_alone(self, name: str, now: float, listening: Listening) -> bool:
        """Advance a rollout, unless it has just failed to. Returns: False if it fails now; it is tried again in a while.

        Raises: StoreTrouble: the store does not work.
        """
        if name in self._stalled and 0 <= now - self._stalled[name] < _STALLED_S:
            return True
        self._stalled.pop(name, None)
        try:
            self._advance(name, now, listening)
        except StoreTrouble:
            raise
        except Exception as error:
            log.exception("rollout-stalled", rollout=name)
            self._stalled[name] = now
            fleet = self.fleet
            self.fleet = Fleet(fleet.database, fleet.config)  # the one in memory may be ahead of the store
            with fleet.database.transaction():
                self.fleet.store.note(name, clean(f"set aside after an error: {type(error).__name__}: {error}", 300))
            return False
        return True

    def _advance(self, name: str, now: float, listening: Listening) -> None:
        """Execute a rollout's steps until it waits."""
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
        """Add new nodes, and nodes with new labels, to the rollouts that match them."""
        fleet = self.fleet
        nodes = set(fleet.observed.nodes) if fleet.recheck_all else fleet.observed.changed
        newest_first = [stored.rollout for stored in sorted(fleet.rollouts.values(), key=lambda stored: -stored.id)]
        joining: dict[str, list[Address]] = {}
        for node in sorted(nodes) if newest_first else ():
            try:
                found = joins(
                    node, fleet.labels(node), fleet.pins(node), fleet.observed.nodes[node].reported, newest_first
                )
            except Exception:
                log.exception("node-unreadable", node=str(node))
                continue
            for rollout in found:
                joining.setdefault(rollout.name, []).append(node)
        for name, new in joining.items():
            stored = fleet.rollouts[name]
            with fleet.database.transaction():
                fleet.save_rollout(replace(stored, rollout=add_nodes(stored.rollout, new), changed_at=now), stored)
                by = Actor(SERVICE, "they match its target")
                fleet.store.audit(by, "nodes-joined", now, rollout=name, nodes=[*map(str, new)])
        fleet.observed.changed.clear()
        fleet.recheck_all = False
