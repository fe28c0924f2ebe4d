"""Doors that were shut after a backup was made stay shut when it is put back.

Claims may have been revoked since, or used by a thief: all are revoked. Machines that were rejected, nodes that were forgotten, and
rollouts that were stopped since, stay so if the store that is replaced can tell; if there is none, only people know. A machine whose
request is older than the restore is approved by a person only (`Registrar`), and one whose certificate was revoked gets no other one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hedgerow.region.rollouts.planning.state import Phase
from hedgerow.region.store.database.database import Database, Row

_STOPPED: Final = (Phase.PAUSED.value, Phase.CANCELED.value, Phase.FAILED.value, Phase.ROLLING_BACK.value)
_BECAUSE: Final = "the store was put back to a backup; after that, this rollout was {}: {}"


@dataclass(slots=True)
class LaterDecisions:
    """What the store that is replaced knows and a backup may not.

    Attributes:
        rejected: machines: fingerprint, when, by whom, why.
        forgotten: nodes: id, region, site, name, when, why.
        stopped: rollouts: name, phase, why.
    """

    rejected: list[Row] = field(default_factory=list)
    forgotten: list[Row] = field(default_factory=list)
    stopped: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ShutDoors:
    """What was shut again: numbers of claims, machines, nodes and rollouts; `is_complete` if there was a store that could tell."""

    claims: int
    machines: int
    nodes: int
    rollouts: int
    is_complete: bool

    def detail(self) -> dict[str, Any]:
        """Return it for the audit log."""
        return {
            "claims_revoked": self.claims,
            "machines_rejected": self.machines,
            "nodes_forgotten": self.nodes,
            "rollouts_paused": self.rollouts,
            "later_decisions_known": self.is_complete,
        }


def read_decisions(database: Database) -> LaterDecisions:
    """Read what the store that is replaced knows."""
    marks = ", ".join("?" * len(_STOPPED))
    return LaterDecisions(
        database.rows("SELECT fingerprint, decided_at, who, reason FROM enrolment WHERE state = 'rejected'"),
        database.rows(
            "SELECT id, region, site, name, forgotten_at, forgotten_because FROM node WHERE forgotten_at IS NOT NULL"
        ),
        database.rows(f"SELECT name, phase, because FROM rollout WHERE phase IN ({marks})", _STOPPED),  # noqa: S608 - question marks
    )


def shut(database: Database, later: LaterDecisions | None, now: float) -> ShutDoors:
    """Shut in the restored store what was shut since, within the caller's transaction.

    Args:
        database: the restored store.
        later: None: there is no store that could tell.
        now: Unix seconds.
    """
    claims = database.run("UPDATE claim SET revoked_at = ? WHERE revoked_at IS NULL AND expires_at > ?", (now, now))
    machines = nodes = rollouts = 0
    known = later or LaterDecisions()
    for fingerprint, at, who, why in known.rejected:
        machines += database.run(
            "UPDATE enrolment SET state = 'rejected', decided_at = ?, who = ?, reason = ?, grant_text = '', signature = '' "
            "WHERE fingerprint = ? AND state <> 'rejected'",
            (at, who, why, fingerprint),
        )
    for node, region, site, name, at, why in known.forgotten:
        changed = database.run(
            "UPDATE node SET forgotten_at = ?, forgotten_because = ? "
            "WHERE id = ? AND region = ? AND site = ? AND name = ? AND forgotten_at IS NULL",
            (at, why, node, region, site, name),
        )
        if changed:
            open_ones = "SELECT id FROM rollout WHERE ended_at IS NULL"
            database.run(f"DELETE FROM rollout_node WHERE node = ? AND rollout IN ({open_ones})", (node,))  # noqa: S608 - our own text
        nodes += changed
    for name, phase, why in known.stopped:
        rollouts += database.run(
            "UPDATE rollout SET phase = ?, because = ?, changed_at = ?, waits = '' WHERE name = ? AND phase = ?",
            (Phase.PAUSED.value, _BECAUSE.format(phase, why)[:500], now, name, Phase.RUNNING.value),
        )
    return ShutDoors(claims, machines, nodes, rollouts, later is not None)
