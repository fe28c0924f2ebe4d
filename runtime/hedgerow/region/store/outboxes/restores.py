"""Restores from backups: what each has lost of a store, and which nodes have sent that again.

A restore puts the store back to an earlier position (see `StorePosition`). Acknowledgements say which positions are lost; outboxes keep
what was acknowledged for a while, and send again what they got acknowledged there. Nodes say in their health reports which restore they
know of, so one that was away, or is not in the backup, is told too.
"""

from __future__ import annotations

from typing import Any, Final

from hedgerow.bus.outbox.records import MAX_LOST, StorePosition
from hedgerow.region.store.database.database import Database, RegionStoreError
from hedgerow.region.store.twins.rows import store_id
from hedgerow.wire.messages import RegionStoreHealth

_NOTE: Final = (
    "INSERT INTO resent (node, counter, results, complete) VALUES (?, ?, ?, ?) ON CONFLICT (node) DO UPDATE SET "
    "counter = excluded.counter, results = excluded.results, complete = excluded.complete"
)
_TOLD: Final = (
    "SELECT n.region, n.site, n.name, r.results, r.complete FROM node n LEFT JOIN resent r ON r.node = n.id AND r.counter = ? "
    "WHERE n.forgotten_at IS NULL AND EXISTS (SELECT 1 FROM ledger l WHERE l.node = n.id) ORDER BY n.region, n.site, n.name"
)
"""Nodes with durable results; only those are acknowledged."""


class Restores:
    """The restores of a store, in memory.

    Args:
        database: the store.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._store = store_id(database)
        rows = database.rows("SELECT counter, lost_from, lost_to FROM restoration WHERE lost_to > 0 ORDER BY counter")
        lost = [(int(first), int(last)) for _, first, last in rows]
        if (more := len(lost) - MAX_LOST) > 0:  # the oldest ones as one: nodes then send more than they need to
            oldest = lost[: more + 1]
            lost[: more + 1] = [(min(first for first, _ in oldest), max(last for _, last in oldest))]
        self._lost = tuple(lost)
        self._counter = int(rows[-1][0]) if rows else 0
        self._mark = self.at(0).mark
        told = database.rows("SELECT node, results, complete FROM resent WHERE counter = ?", (self._counter,))
        self._told: dict[int, tuple[int, int]] = {
            node: (int(results), int(complete)) for node, results, complete in told
        }

    def at(self, position: int) -> StorePosition:
        """Return what acknowledgements say of a position."""
        return StorePosition(self._store, position, self._lost)

    def hear(self, node: int, said: RegionStoreHealth) -> bool:
        """Note what a node says of the store, within the batch's transaction. Returns: whether it knows of the last restore."""
        if said.mark != self._mark:
            return False
        told = (said.resent, int(said.complete))
        if self._counter and self._told.get(node) != told:
            self._told[node] = told
            self._database.run(_NOTE, (node, self._counter, *told))
        return True


def last_restore(database: Database) -> dict[str, Any] | None:
    """Return the last restore, and what nodes have sent again since; None: there was none.

    `incomplete` are nodes that keep less than was lost; `not_heard` those that have not said yet, or are of an earlier version.
    """
    try:
        rows = database.rows(
            "SELECT counter, at, backup_at, generation_floor, lost_to FROM restoration ORDER BY counter DESC LIMIT 1"
        )
    except RegionStoreError:  # the service has not been restarted since the upgrade: it creates the table
        return None
    if not rows:
        return None
    ((counter, at, backup_at, floor, lost_to),) = rows
    resent, results, incomplete, not_heard = 0, 0, [], []
    for region, site, name, count, complete in database.rows(_TOLD, (counter,)):
        node = f"{region}/{site}/{name}"
        if count is None:
            not_heard += [node] if lost_to else []
            continue
        resent, results = resent + bool(count), results + int(count)
        incomplete += [] if complete else [node]
    return {
        "counter": counter,
        "at": at,
        "backup_at": backup_at,
        "generation_floor": floor,
        "resent": {"nodes": resent, "results": results, "incomplete": incomplete, "not_heard": not_heard},
    }
