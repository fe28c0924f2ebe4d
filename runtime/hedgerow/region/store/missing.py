"""Numbers missing from the outboxes of a node: not received although later ones were. Counted, and declared lost."""

from __future__ import annotations

from collections.abc import Iterator

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.ledgers import json_text, ledger_of


def count_missing(epoch: str, state: str) -> int:
    """Count the missing numbers of a ledger; 0 if it cannot be read, which the service reports."""
    try:
        ledger = ledger_of(epoch, state)
    except Exception:  # noqa: BLE001 - one row must not hide all others
        return 0
    return sum(last - first + 1 for _, first, last in _missing(ledger))


def node_counts(database: Database, node: int) -> tuple[int, int]:
    """Return how many results of a node are stored, and how many are missing, by the id of its row."""
    ((results,),) = database.rows("SELECT count(*) FROM result WHERE node = ?", (node,))
    ledgers = database.rows("SELECT epoch, state FROM ledger WHERE node = ?", (node,))
    return int(results), sum(count_missing(epoch, state) for epoch, state in ledgers)


def declare_lost(database: Database, node: int, reason: str, now: float) -> int:
    """Declare what is missing from a node lost, within the caller's transaction, in which nothing else may write ledgers.

    Args:
        node: the id of its row.
        reason: a code, for the gaps.
        now: Unix seconds.
    Returns: how many results.
    """
    lost = 0
    for row, epoch, state in database.rows("SELECT id, epoch, state FROM ledger WHERE node = ? ORDER BY id", (node,)):
        ledger = ledger_of(epoch, state)
        for priority, first, last in list(_missing(ledger)):
            count = last - first + 1
            ledger.ranges(priority).add(first, last)
            database.run(
                "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
                "VALUES (?, ?, ?, ?, ?, ?, '[]', ?) ON CONFLICT DO NOTHING",
                (row, priority, first, last, count, json_text({reason: count}), now),
            )
            lost += count
        database.run("UPDATE ledger SET state = ? WHERE id = ?", (json_text(ledger.state()), row))
    return lost


def _missing(ledger: Ledger) -> Iterator[tuple[int, int, int]]:
    """Yield the missing numbers as ranges: priority, first, last."""
    for priority, ranges in ledger.state().items():
        for first, last in ledger.ranges(priority).missing(ranges[-1][1]):
            yield priority, first, last
