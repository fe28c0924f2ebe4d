"""Replaces the machine of a node: same place, same desired state, another key."""

from __future__ import annotations

from typing import Any

from hedgerow.region.enrolment.store import EnrolmentStore
from hedgerow.region.rollouts.operation import Operation
from hedgerow.region.store.life.identity import count_change
from hedgerow.region.store.outboxes.missing import declare_lost, node_counts


def replace_machine(operation: Operation) -> Any:
    """Note that a node gets another machine, and declare lost what waits on the disk of the old one, if the request says so."""
    fleet, node, lost = operation.fleet, operation.node, 0
    if not operation.dry_run:
        operation.require_reason()
        count_change(
            fleet.database
        )  # the collector, which has the ledgers in memory, stores nothing until this is done
    row = fleet.observed.ids[node]
    _, missing = node_counts(fleet.database, row)
    desired = fleet.desired.get(node)
    if not operation.dry_run:
        EnrolmentStore(fleet.database).free_place(node.site, node.node, operation.now, operation.by)
        if operation.request.args.get("declare_lost"):
            lost = declare_lost(fleet.database, row, "replaced", operation.now)
        fleet.store.audit(operation.by, "node-replaced", operation.now, node=str(node), missing=missing, lost=lost)
    return {
        "node": str(node),
        "dry_run": operation.dry_run,
        "missing": missing - lost,
        "lost": lost,
        "models": {} if desired is None else {name: str(ref) for name, ref in desired.document.models.items()},
    }
