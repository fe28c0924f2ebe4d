"""Deletes what exceeds the limits of a store in age or size, a little at a time."""

from __future__ import annotations

from typing import Final

from hedgerow.region.config import RetentionSection
from hedgerow.region.store.batch import ROW_BYTES
from hedgerow.region.store.database.database import Database

PRUNE_BATCH: Final = 500
_LEDGER_DAYS: Final = 30
"""How long closed ledgers are kept if results are kept by size only."""


def prune(database: Database, limits: RetentionSection, stored_bytes: int, now: float) -> tuple[int, bool]:
    """Delete up to `PRUNE_BATCH` old rows of each table, within the caller's transaction.

    Args:
        database: the database.
        limits: age and size.
        stored_bytes: current size of results.
        now: Unix seconds.
    Returns: bytes of results freed, and whether there may be more to delete.
    """
    more = False
    oldest = database.rows(
        f"SELECT ingest, received_at, size FROM result ORDER BY ingest LIMIT {PRUNE_BATCH}"  # noqa: S608
    )
    surplus = 0 if limits.max_bytes is None else stored_bytes - limits.max_bytes
    last = freed = 0
    for ingest, received_at, size in oldest:
        too_old = limits.days is not None and received_at < now - limits.days * 86_400
        if not too_old and freed >= surplus:
            break
        last, freed = ingest, freed + size + ROW_BYTES
    if last:
        more = last == oldest[-1][0]
        database.run("DELETE FROM result WHERE ingest <= ?", (last,))
        database.run("UPDATE collector SET stored_bytes = stored_bytes - ?", (freed,))
    for table, days in (("event", limits.days), ("gap", limits.days), ("health", limits.health_days)):
        if days is not None:
            more |= _prune_table(database, table, now - days * 86_400)
    return freed, more


def _prune_table(database: Database, table: str, before: float) -> bool:
    oldest = f"SELECT ingest, received_at FROM {table} ORDER BY ingest LIMIT {PRUNE_BATCH}"  # noqa: S608
    rows = database.rows(oldest)
    last = max((ingest for ingest, received_at in rows if received_at < before), default=0)
    if last:
        database.run(f"DELETE FROM {table} WHERE ingest <= ?", (last,))  # noqa: S608
    return last > 0 and last == rows[-1][0]


def prune_ledgers(database: Database, limits: RetentionSection, now: float) -> int:
    """Delete up to `PRUNE_BATCH` closed ledgers of which nothing is left, within the caller's transaction.

    Returns: how many were deleted.
    """
    days = limits.days if limits.days is not None else _LEDGER_DAYS
    database.run("DELETE FROM renumbered WHERE received_at < ?", (now - days * 86_400,))
    query = (
        "SELECT id FROM ledger l WHERE closed_at < ? AND NOT EXISTS (SELECT 1 FROM result WHERE ledger = l.id) "
        "AND NOT EXISTS (SELECT 1 FROM gap WHERE ledger = l.id) AND NOT EXISTS (SELECT 1 FROM ledger c WHERE c.clash_of = l.id) "
        "AND NOT EXISTS (SELECT 1 FROM renumbered WHERE ledger = l.id) LIMIT ?"
    )
    rows = database.rows(query, (now - days * 86_400, PRUNE_BATCH))
    return database.many("DELETE FROM ledger WHERE id = ?", rows) if rows else 0
