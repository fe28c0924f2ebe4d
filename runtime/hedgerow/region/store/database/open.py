"""Opens a region's database: SQLite or PostgreSQL, depending on its address."""

from __future__ import annotations

from pathlib import Path

from hedgerow.region.config import on_postgres
from hedgerow.region.store.database.database import Database, RestoreSteps
from hedgerow.region.store.database.sqlite import Sqlite
from hedgerow.region.store.database.sqlite_restore import restore_sqlite


def open_database(url: str, *, write: bool, alongside: bool = False, group: bool = False) -> Database:
    """Open a store's database.

    Args:
        url: path of an SQLite file, or address of a PostgreSQL database.
        write: open it as the collector, its only writer; create and migrate it. Otherwise it is opened to read.
        alongside: write to the tables that are not the collector's, while the collector may be writing; not with `write`.
        group: let the group of an SQLite file use it, with `write`.
    Raises: RegionStoreError: it cannot be opened.
    """
    if on_postgres(url):
        from hedgerow.region.store.database.postgres import Postgres

        return Postgres(url, write=write, alongside=alongside)
    return Sqlite(Path(url), write=write, alongside=alongside, group=group)


def restore_database(url: str, folder: Path, steps: RestoreSteps, *, group: bool = False) -> None:
    """Replace a store by what `Database.dump` has written to a folder, in one step.

    Args:
        url, group: as for `open_database`.
        folder: with the files.
        steps: what is done besides.
    Raises:
        StoreInUse: a service or another program uses the store.
        RegionStoreError: it holds something, or cannot be written.
    """
    if on_postgres(url):
        from hedgerow.region.store.database.postgres import restore_postgres

        restore_postgres(url, folder, steps)
    else:
        restore_sqlite(Path(url), folder, steps, group=group)
