"""Forgets a node, and admits a forgotten one again.

A forgotten node is in no wave, inventory or count any more, and its messages are refused. What it has sent, and the audit log, stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hedgerow.region.enrolment.store import EnrolmentStore
from hedgerow.region.rollouts.fleet import Fleet
from hedgerow.region.rollouts.operation import Operation, find_node
from hedgerow.region.rollouts.planning.membership import FORGOTTEN, superseded
from hedgerow.region.rollouts.planning.state import remove_nodes
from hedgerow.region.rollouts.store import StoredDesired, StoredRollout
from hedgerow.region.store.life.identity import (
    Forgotten,
    admit_node,
    forget_node,
    forgotten_nodes,
    lock_changes,
    retained_topics,
)
from hedgerow.region.store.outboxes.missing import node_counts
from hedgerow.region.store.queries import iso
from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired


def forget(operation: Operation) -> Any:
    """Forget a node. A second time, only say that it is forgotten."""
    fleet = operation.fleet
    gone = forgotten_nodes(fleet.database)
    known = find_node([*fleet.observed.ids, *gone], operation.named)
    if known in gone:
        return _already(known, gone[known], operation)
    reply = {"node": str(known), "dry_run": operation.dry_run, "forgotten": not operation.dry_run, "already": False}
    reply["removes"] = _removes(fleet, known)
    if operation.dry_run:
        return reply
    operation.require_reason()
    lock_changes(fleet.database)
    by, now = operation.by, operation.now
    for stored in _rollouts(fleet, known):
        rollout = remove_nodes(stored.rollout, [known], FORGOTTEN, f"by {by.name}: {by.why}")
        fleet.save_rollout(replace(stored, rollout=rollout, changed_at=now), stored)
    withdraw_desired(fleet, known, now)
    EnrolmentStore(fleet.database).free_place(known.site, known.node, now, by)
    forget_node(fleet.database, known, fleet.observed.ids[known], now, f"on {iso(now)[:16]}Z by {by.name}: {by.why}")
    fleet.store.audit(by, "node-forgotten", now, node=str(known), removed=reply["removes"])
    fleet.reload()
    return reply


def admit(operation: Operation) -> Any:
    """Admit a forgotten node again."""
    fleet, gone = operation.fleet, forgotten_nodes(operation.fleet.database)
    operation.require_reason()
    if any(str(node) == operation.named for node in fleet.observed.ids):
        return {"node": operation.named, "admitted": False, "already": True}
    node = gone[find_node(gone, operation.named)]
    admit_forgotten(operation, node)
    return {"node": str(node.address), "admitted": True, "already": False}


def admit_forgotten(operation: Operation, node: Forgotten) -> None:
    """Admit a forgotten node: its messages are stored again, and rollouts that match it reach it."""
    fleet = operation.fleet
    admit_node(fleet.database, node)
    fleet.store.audit(operation.by, "node-admitted", operation.now, node=str(node.address), forgotten=node.because)
    fleet.reload()


def _already(node: Address, gone: Forgotten, operation: Operation) -> dict[str, Any]:
    return {
        "node": str(node),
        "dry_run": operation.dry_run,
        "forgotten": True,
        "already": True,
        "because": gone.because,
        "removes": {},
    }


def _removes(fleet: Fleet, node: Address) -> dict[str, Any]:
    """Return what forgetting a node removes, and what stays."""
    desired = fleet.desired.get(node)
    document = None if desired is None else desired.document
    results, missing = node_counts(fleet.database, fleet.observed.ids[node])
    return {
        "rollouts": [stored.rollout.name for stored in _rollouts(fleet, node)],
        "models": {} if document is None else {name: str(ref) for name, ref in document.models.items()},
        "labels": {} if document is None else document.labels,
        "pins": [] if desired is None else sorted(desired.pins),
        "topics": retained_topics(node),
        "missing": missing,
        "kept_results": results,
    }


def _rollouts(fleet: Fleet, node: Address) -> Iterator[StoredRollout]:
    """Yield the rollouts in which a node still has something to do."""
    for stored in list(fleet.rollouts.values()):
        if superseded(stored.rollout, stored.rollout.models, [node], also_in_progress=True):
            yield stored


def withdraw_desired(fleet: Fleet, node: Address, now: float) -> None:
    """Empty a node's desired document, and publish it no more; its generation stays, so that the next one is higher."""
    desired = fleet.desired.get(node)
    if desired is None:
        return
    old = desired.document
    empty = Desired(node=str(node), generation=old.generation + 1, at=now)
    fleet.save_desired({node: StoredDesired(empty)})
    fleet.store.published({fleet.observed.ids[node]: empty.generation})
