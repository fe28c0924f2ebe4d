"""Opens the database behind a region's store: SQLite or PostgreSQL, as its address says."""

from __future__ import annotations

from pathlib import Path

from hedgerow.region.config import on_postgres
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.sqlite import Sqlite


def open_database(url: str, *, write: bool, alongside: bool = False) -> Database:
    """Open a store's database.

    Args:
        url: path of an SQLite file, or address of a PostgreSQL database.
        write: make and migrate it, and be the collector that writes. Else it is only read, while somebody writes or not.
        alongside: write beside the collector, into tables that are not the collector's; `write` is false then.
    Raises: StoreError: it cannot be opened.
    """
    if on_postgres(url):
        from hedgerow.region.store.database.postgres import Postgres

        return Postgres(url, write=write, alongside=alongside)
    return Sqlite(Path(url), write=write, alongside=alongside)
