"""Database interface of the region's store, and migrations. `sqlite.py` and `postgres.py` implement it.

Statements are written once, with `?` for values; differences between the two are in the migrations and in these modules.
Errors are raised as `RegionStoreError`: `StoreTrouble` may be temporary (try again), `StoreRefused` concerns the values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from hedgerow.errors import HedgerowError

Row: TypeAlias = tuple[Any, ...]


class RegionStoreError(HedgerowError):
    """The region's store cannot be used; check the disk or the database server."""

    code = "store"


class StoreTrouble(RegionStoreError):
    """The store does not work at the moment; nothing was written."""

    code = "store-trouble"


class StoreRefused(RegionStoreError):
    """The store rejects these values."""

    code = "store-refused"


class StoreInUse(StoreTrouble):
    """Another service writes to the store."""

    code = "store-in-use"


class LeaseLost(StoreTrouble):
    """Another service leads now; nothing was written."""

    code = "lease-lost"


class Database(Protocol):
    """An open database.

    Attributes:
        lock_grace_s: how long a service may go on working after it has lost the store's lock, in seconds.
    """

    lock_grace_s: float

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement. Returns: the number of rows it changed."""

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Execute a statement for each row of values. Returns: the number of rows changed."""

    def transaction(self) -> AbstractContextManager[None]:
        """Run a transaction; it is on disk when this ends without an exception."""

    def lead(self, fence: int) -> None:
        """From now on, check in each transaction that the term with this number leads; if not, raise `LeaseLost`.

        Outside of transactions this connection can only read.
        """

    def try_lock(self) -> bool:
        """Take the store's lock, or keep it. It is freed when this connection is closed or its process ends.

        Returns: whether this connection has it.
        """

    def unlock(self) -> None:
        """Free the store's lock."""

    def end_term(self, fence: int) -> None:
        """End the connections of a term, where the database can; a leader that was stopped may hold locks."""

    def now(self) -> float:
        """Return the database's time: Unix seconds."""

    def dump(self, folder: Path, advance: Callable[[int], None]) -> None:
        """Write all tables, as they are at one moment, to files in a folder; others may go on writing.

        Args:
            folder: empty.
            advance: called with the bytes written since the last call.
        """

    def close(self) -> None:
        """Close the connection, and free the lock."""


class RestoreSteps(NamedTuple):
    """What a restore does besides putting rows back.

    Attributes:
        look: reads the store that is replaced, if there is one.
        finish: changes the restored one before it takes effect.
        advance: called with the bytes restored since the last call.
        id_step: how far the next ids of rows are above the highest.
        may_replace: whether a store that holds something may be replaced.
        migrations: those that the backup's store has.
    """

    look: Callable[[Database], None]
    finish: Callable[[Database], None]
    advance: Callable[[int], None]
    id_step: int
    may_replace: Callable[[Database], bool]
    migrations: Collection[int]


_CREATED: Final = re.compile(r"CREATE TABLE (\w+)")
_MADE: Final = re.compile(r"CREATE (TABLE|VIEW|TRIGGER) (\w+)")
_DROPPED: Final = re.compile(r"DROP (TABLE|VIEW|TRIGGER) (\w+)")
_HOLDS_SOMETHING: Final = ("node", "rollout", "result", "audit")


def table_names(dialect: Literal["sqlite", "postgres"]) -> list[str]:
    """Return the names of all tables; one that refers to another comes after it."""
    scripts = _migrations(dialect)
    return ["migration", *(name for number in sorted(scripts) for name in _CREATED.findall(scripts[number]))]


def made_by(migrations: Collection[int], dialect: Literal["sqlite", "postgres"]) -> set[tuple[str, str]]:
    """Return the kinds and names of the tables, views and triggers that a store with these migrations has."""
    made = {("table", "migration")}
    for number, script in sorted(_migrations(dialect).items()):
        if number in migrations:
            made |= {(kind.lower(), name) for kind, name in _MADE.findall(script)}
            made -= {(kind.lower(), name) for kind, name in _DROPPED.findall(script)}
    return made


def known_migrations(dialect: Literal["sqlite", "postgres"]) -> set[int]:
    """Return the migrations that this version knows."""
    return set(_migrations(dialect))


def check_replaceable(database: Database, name: str, steps: RestoreSteps) -> None:
    """Check that a restore may replace a store.

    Raises: RegionStoreError: it holds something, and may not be replaced.
    """
    tables = [table for table in _HOLDS_SOMETHING if database.rows(f"SELECT 1 FROM {table} LIMIT 1")]  # noqa: S608
    if tables and not steps.may_replace(database):
        raise RegionStoreError(
            f"{name} holds something already: {', '.join(tables)}",
            remedy="Back it up first; then `--replace` replaces it.",
        )


def migrate(database: Database, dialect: Literal["sqlite", "postgres"], name: str) -> None:
    """Apply the migrations that are new, each in a transaction.

    Raises:
        StoreInUse: there are some, but another service is running; it may be an older version.
        RegionStoreError: the database was written by a newer version.
    """
    there = _migrations(dialect)
    if applied_migrations(database) == there.keys():
        return
    if not database.try_lock():
        raise store_in_use(name)
    try:
        _apply(database, there, name)
    finally:
        database.unlock()


def applied_migrations(database: Database) -> set[int]:
    """Return the migrations that a store has; none if it is new."""
    try:
        return {number for (number,) in database.rows("SELECT number FROM migration")}
    except StoreTrouble:
        raise
    except RegionStoreError:  # there is no such table yet
        return set()


def _apply(database: Database, there: dict[int, str], name: str) -> None:
    database.run("CREATE TABLE IF NOT EXISTS migration (number INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)")
    done = applied_migrations(database)
    if newer := done - there.keys():
        raise RegionStoreError(
            f"{name} was written by a newer version of Hedgerow (migration {max(newer)})",
            remedy="Upgrade Hedgerow, or set another store.",
        )
    for number in sorted(there.keys() - done):
        with database.transaction():
            for statement in _statements(there[number]):
                database.run(statement)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            database.run("INSERT INTO migration VALUES (?, ?)", (number, now))


def _migrations(dialect: str) -> dict[int, str]:
    folder = files("hedgerow.region.store.database.sql") / dialect
    return {int(one.name[:4]): one.read_text("utf-8") for one in folder.iterdir() if one.name.endswith(".sql")}


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a migration, split at semicolons outside `$$ … $$`; no other literal contains one."""
    bare = "\n".join(line.partition("--")[0] for line in script.splitlines())
    parts = bare.split("$$")
    parts[1::2] = [body.replace(";", "\0") for body in parts[1::2]]
    yield from (one.strip().replace("\0", ";") for one in "$$".join(parts).split(";") if one.strip())


def data_statements(dialect: Literal["sqlite", "postgres"], numbers: Iterable[int]) -> list[str]:
    """Return the statements of migrations that change rows, for tables that have their form already."""
    scripts = _migrations(dialect)
    every = [statement for number in sorted(numbers) for statement in _statements(scripts[number])]
    return [one for one in every if one.split(None, 1)[0].upper() in ("INSERT", "UPDATE", "DELETE")]


def unlike_schema(
    applied: set[int], dialect: Literal["sqlite", "postgres"], name: str, error: Exception
) -> RegionStoreError:
    """Return the error for a query that needs a table or column that a store does not have.

    Args:
        applied: the migrations that it has; empty: it is none, or that is not known.
        error: the database's.
    """
    if newer := applied - known_migrations(dialect):
        return RegionStoreError(
            f"{name} was written by a newer version of Hedgerow (migration {max(newer)}): {error}",
            remedy="Use that version.",
        )
    if missing := known_migrations(dialect) - applied:
        return RegionStoreError(
            f"{name} was written by an earlier version of Hedgerow (without migration {min(missing)}): {error}",
            remedy="Restart the region's service with this version (`hedgerow region run`): it migrates the store. Until then, use the "
            "version that the service has.",
        )
    return RegionStoreError(
        f"{name} lacks what its migrations make: {error}",
        remedy="If it was changed by hand, restore a backup: `hedgerow region restore`. Else report this.",
    )


def no_such_store(name: str) -> RegionStoreError:
    """Return the error for a store that does not exist."""
    return RegionStoreError(
        f"There is no store at {name}",
        remedy="Give its address with --store, or its configuration with --config. `hedgerow region run` creates it.",
    )


def store_in_use(name: str) -> StoreInUse:
    """Return the error for a store that another service writes to."""
    return StoreInUse(
        f"Another service writes to {name}, which has to be upgraded for this version first",
        remedy="Stop the other service; this one then upgrades the store.",
    )


def service_running(name: str) -> StoreInUse:
    """Return the error for a store that is to be replaced, but that a service uses."""
    return StoreInUse(
        f"A service, or another program, uses {name}",
        remedy="Stop all services of this store, the standby too, and close what else has it open (`fuser` shows it).",
    )


def lease_lost(name: str, fence: int) -> LeaseLost:
    """Return the error for a transaction of a term that has ended."""
    return LeaseLost(
        f"Another service leads {name}: term {fence} has ended",
        remedy="None: this service waits as standby. `hedgerow region status` shows which one leads.",
    )


def unfenced(name: str) -> RegionStoreError:
    """Return the error for a write that no transaction checks: whoever makes it may lead no more."""
    return RegionStoreError(
        f"The service would have written to {name} without checking that it leads",
        remedy="Report this with the service's log.",
    )
