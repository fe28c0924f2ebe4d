"""Outboxes that no node uses: what waits in one is counted, or copied to another."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hedgerow.bus.outbox.database import OutboxDatabase
from hedgerow.bus.outbox.kept import NOTHING, KeptEntries
from hedgerow.bus.outbox.records import PRIORITIES, Record, key_of, priority_of
from hedgerow.bus.outbox.store import OutboxStore, count_waiting

_PAGE: Final = 100


def count_entries(path: Path) -> int:
    """Return the number of records and gaps that wait in an outbox. Raises: OutboxError: it cannot be opened."""
    database = OutboxDatabase(path)
    try:
        with database.reading():
            return count_waiting(database)
    finally:
        database.close()


def copy_records(source: Path, target: Path) -> int:
    """Copy the records of an outbox that no node uses to a new one, where their numbers begin anew. Gaps stay behind.

    Args:
        source: file of the outbox.
        target: file of the new one, which must not exist.
    Returns: how many there were.
    Raises: OutboxError: one of them cannot be opened or written.
    """
    count = 0
    database = OutboxDatabase(source)
    try:
        store = OutboxStore(target, max_bytes=max(1 << 20, 8 * source.stat().st_size))
        try:
            with database.reading():
                age_s = float(database.value("SELECT age_s FROM state"))
                parts = list(KeptEntries(database, NOTHING).waiting(0, key_of(PRIORITIES, 0)))
            for start, end in parts:
                while records := _records(database, start, end, age_s):
                    with store.transaction():
                        store.append([record for _, record in records])
                    count, start = count + len(records), records[-1][0] + 1
        finally:
            store.close()
    finally:
        database.close()
    return count


def _records(database: OutboxDatabase, start: int, end: int, age_s: float) -> list[tuple[int, Record]]:
    with database.reading():
        rows = database.rows(
            "SELECT key, pipeline, topic, payload, properties, created_at, expires_at FROM entry "
            "WHERE key >= ? AND key < ? AND topic <> '' ORDER BY key LIMIT ?",
            (start, end, _PAGE),
        )
    return [
        (key, Record(pipeline, topic, payload, properties, priority_of(key), created_at, None if ends is None else ends - age_s))
        for key, pipeline, topic, payload, properties, created_at, ends in rows
    ]  # fmt: skip
