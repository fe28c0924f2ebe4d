"""Numbers missing from the outboxes of a node: not received although later ones were, or were given. Counted, and declared lost."""

from __future__ import annotations

from hedgerow.region.store.database.database import Database
from hedgerow.region.store.outboxes.ledgers import ended_of, json_text, ledger_of, missing_ranges


def count_missing(epoch: str, state: str, ended: str) -> int:
    """Count the missing numbers of a ledger; 0 if it cannot be read, which the service reports."""
    try:
        ledger, lasts = ledger_of(epoch, state), ended_of(ended) or {}
    except Exception:  # noqa: BLE001 - one row must not hide all others
        return 0
    return sum(last - first + 1 for _, first, last in missing_ranges(ledger, lasts))


def node_counts(database: Database, node: int) -> tuple[int, int]:
    """Return how many results of a node are stored, and how many are missing, by the id of its row."""
    ((results,),) = database.rows("SELECT count(*) FROM result WHERE node = ?", (node,))
    ledgers = database.rows("SELECT epoch, state, ended FROM ledger WHERE node = ? AND closed_at IS NULL", (node,))
    return int(results), sum(count_missing(epoch, state, ended) for epoch, state, ended in ledgers)


def declare_lost(database: Database, node: int, reason: str, now: float) -> int:
    """Declare what is missing from a node lost, within the caller's transaction, in which nothing else may write ledgers.

    Args:
        node: the id of its row.
        reason: a code, for the gaps.
        now: Unix seconds.
    Returns: how many results.
    """
    lost = 0
    query = "SELECT id, epoch, state, ended FROM ledger WHERE node = ? AND closed_at IS NULL ORDER BY id"
    for row, epoch, state, ended in database.rows(query, (node,)):
        ledger, lasts = ledger_of(epoch, state), ended_of(ended) or {}
        for priority, first, last in list(missing_ranges(ledger, lasts)):
            count = last - first + 1
            ledger.ranges(priority).add(first, last)
            database.run(
                "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
                "VALUES (?, ?, ?, ?, ?, ?, '[]', ?) ON CONFLICT DO NOTHING",
                (row, priority, first, last, count, json_text({reason: count}), now),
            )
            lost += count
        database.run("UPDATE ledger SET state = ?, closed_at = ? WHERE id = ?", (json_text(ledger.state()), now, row))
    return lost
