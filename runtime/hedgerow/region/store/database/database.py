"""Database interface of the region's store, and migrations. `sqlite.py` and `postgres.py` implement it.

Statements are written once, with `?` for values; differences between the two are in the migrations and in these modules.
Errors are raised as `RegionStoreError`: `StoreTrouble` may be temporary (try again), `StoreRefused` concerns the values.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any, Literal, Protocol, TypeAlias

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


class Database(Protocol):
    """An open database."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement. Returns: the number of rows it changed."""

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Execute a statement for each row of values. Returns: the number of rows changed."""

    def transaction(self) -> AbstractContextManager[None]:
        """Run a transaction; it is on disk when this ends without an exception."""

    def close(self) -> None:
        """Close the connection."""


def migrate(database: Database, dialect: Literal["sqlite", "postgres"], name: str) -> None:
    """Apply the migrations that are new, each in a transaction.

    Raises: RegionStoreError: the database was written by a newer version.
    """
    database.run("CREATE TABLE IF NOT EXISTS migration (number INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)")
    done = {number for (number,) in database.rows("SELECT number FROM migration")}
    there = _migrations(dialect)
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


def no_such_store(name: str) -> RegionStoreError:
    """Return the error for a store that does not exist."""
    return RegionStoreError(
        f"There is no store at {name}",
        remedy="Give its address with --store, or its configuration with --config. `hedgerow region run` creates it.",
    )


def store_in_use(name: str) -> RegionStoreError:
    """Return the error for a store that another collector writes to."""
    return RegionStoreError(
        f"Another collector writes to {name}", remedy="Stop it, or set another store for this one.",
    )  # fmt: skip
