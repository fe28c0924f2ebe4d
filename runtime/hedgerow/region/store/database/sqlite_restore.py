"""Replaces a store in an SQLite file by a copy."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Final

from hedgerow import disk
from hedgerow.region.store.database.database import (
    RegionStoreError,
    RestoreSteps,
    StoreInUse,
    check_replaceable,
    made_by,
    service_running,
)
from hedgerow.region.store.database.sqlite import SQLITE_COPY, Sqlite
from hedgerow.text import visible

_LARGEST: Final = (1 << 63) - 1


def restore_sqlite(path: Path, folder: Path, steps: RestoreSteps, *, group: bool) -> None:
    """See `restore_database`."""
    new = path.with_name(f".{path.name}.restoring")
    remove_sqlite(new)  # of a run that was killed
    try:
        before = Sqlite(path, write=True, group=group) if path.exists() else None
    except StoreInUse as error:
        raise service_running(str(path)) from error
    try:
        if before is not None:
            if not before.try_lock():
                raise service_running(str(path))
            check_replaceable(before, str(path), steps)
            steps.look(before)
        _copy(folder / SQLITE_COPY, new, path, 0o660 if group else 0o600, steps.advance)
        _check_whole(new, folder, steps.migrations)
        with closing(Sqlite(new, write=True, group=group)) as database:
            with database.transaction():
                _raise_sequences(database, before, steps.id_step)
                steps.finish(database)
            if database.rows("PRAGMA quick_check") != [("ok",)]:
                raise RegionStoreError(f"{folder}/{SQLITE_COPY} is damaged", remedy="Use another backup.")
            database.leave_log()
        if before is not None:
            try:
                before.leave_log()  # a log that is left behind would be applied to the new file
            except RegionStoreError as error:
                raise service_running(str(path)) from error
        disk.sync(path.parent)
        new.replace(path)
        disk.sync(path.parent)
    finally:
        if before is not None:
            before.close()
        remove_sqlite(new)


def _check_whole(copy: Path, folder: Path, migrations: Collection[int]) -> None:
    """Check, before anything is written to a copy, that it has the tables of a store, and no statements of its own that would run then."""
    try:
        with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = set(
                database.execute("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view', 'trigger')")
            )
            applied = {number for (number,) in database.execute("SELECT number FROM migration")}
    except (sqlite3.Error, ValueError) as error:
        raise RegionStoreError(f"{folder}/{SQLITE_COPY} is no store: {error}", remedy="Use another backup.") from error
    made = made_by(migrations, "sqlite")
    wrong = sorted((found ^ made) - {each for each in found if each[1].startswith("sqlite_")})
    if wrong or applied != set(migrations):
        names = ", ".join(f"{kind} {visible(str(name)[:80])}" for kind, name in wrong[:3]) or "migrations"
        raise RegionStoreError(
            f"{folder}/{SQLITE_COPY} is not as Hedgerow makes a store: {names}",
            remedy="Do not use the backup: somebody has changed it. Use an earlier one.",
        )


def remove_sqlite(path: Path) -> None:
    """Remove a file, and the companions that SQLite gives it."""
    for suffix in ("", "-wal", "-shm", "-journal", ".lock"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _copy(source: Path, target: Path, like: Path, mode: int, advance: Callable[[int], None]) -> None:
    """Copy a file, for the owner of another file or of its folder: root may restore what a service's user must write."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as file, os.fdopen(descriptor, "wb") as out:
        owner = (like if like.exists() else like.parent).stat()
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fchmod(descriptor, mode)
        while chunk := file.read(1 << 20):
            out.write(chunk)
            advance(len(chunk))


def _raise_sequences(database: Sqlite, before: Sqlite | None, step: int) -> None:
    """Go on above all ids that were given, also in the store that is replaced."""
    tables = database.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'")
    there: dict[str, int] = {name: 0 for (name,) in tables}
    for one in (database, before):
        for name, last in one.rows("SELECT name, seq FROM sqlite_sequence") if one is not None else ():
            if not isinstance(last, int) or last + step > _LARGEST:
                raise RegionStoreError(
                    f"The last id of {name}, {str(last)[:30]}, leaves none to go on with",
                    remedy="Use an earlier backup.",
                )
            there[name] = max(there.get(name, 0), last)
    database.run("DELETE FROM sqlite_sequence")
    rows = [(name, last + step) for name, last in there.items()]
    database.many("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", rows)
