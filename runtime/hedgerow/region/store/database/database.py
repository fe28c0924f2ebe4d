"""What a region's store needs of a database, and its migrations; the two it can have are in `sqlite.py` and `postgres.py`.

Statements are written once, with `?` for values; what differs between the two is in the migrations and in those modules.
Errors come out as `RegionStoreError`: `StoreTrouble` may pass (try again), `StoreRefused` does not take these very values.
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
    """The region's store cannot be used: look at the disk or the database server."""

    code = "store"


class StoreTrouble(RegionStoreError):
    """The store does not work just now; nothing of what was to be written is written."""

    code = "store-trouble"


class StoreRefused(RegionStoreError):
    """The store does not take these values."""

    code = "store-refused"


class Database(Protocol):
    """An open database."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows that a query gives."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement. Returns: rows it touched."""

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Carry out a statement for each. Returns: rows touched."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing; on the disk when it ends."""

    def close(self) -> None:
        """Close it."""


def migrate(database: Database, dialect: Literal["sqlite", "postgres"], name: str) -> None:
    """Carry out what is new among the migrations, each in a transaction.

    Raises: StoreError: the database was written by a newer version.
    """
    database.run("CREATE TABLE IF NOT EXISTS migration (number INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)")
    done = {number for (number,) in database.rows("SELECT number FROM migration")}
    there = _migrations(dialect)
    if newer := done - there.keys():
        raise RegionStoreError(
            f"{name} was written by a newer version (migration {max(newer)})",
            remedy="Run that version, or name another store.",
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
    """The statements of a migration; it has no semicolon anywhere else."""
    bare = "\n".join(line.partition("--")[0] for line in script.splitlines())
    yield from filter(None, map(str.strip, bare.split(";")))


def no_such_store(name: str) -> RegionStoreError:
    """There is no store to read."""
    return RegionStoreError(
        f"There is no store at {name}",
        remedy="`hedgerow region run region.yaml` makes it; name it with --store, or its configuration with --config.",
    )


def store_in_use(name: str) -> RegionStoreError:
    """Somebody else writes."""
    return RegionStoreError(
        f"Another collector writes to {name}", remedy="Stop it, or give this one a store of its own.",
    )  # fmt: skip
