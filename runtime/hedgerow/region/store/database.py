"""The database behind a region's store, as little of it as is needed: SQLite, or PostgreSQL in `postgres.py`.

Statements are written once, with `?` for values; what differs between the two is in the migrations and here. Errors come
out as `RegionStoreError`: `StoreTrouble` may pass (try again), `StoreRefused` does not take these very values.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from hedgerow.errors import HedgerowError
from hedgerow.region.config import on_postgres

Row: TypeAlias = tuple[Any, ...]
_LOG_PAGES: Final = 4000
"""Pages in the write-ahead log after which they are moved into the database: 16 MB."""


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


def open_database(url: str, *, write: bool, beside: bool = False) -> Database:
    """Open a store's database.

    Args:
        url: path of an SQLite file, or address of a PostgreSQL database.
        write: make and migrate it, and be the collector that writes. Else it is only read, while somebody writes or not.
        beside: write beside the collector, into tables that are not the collector's; `write` is false then.
    Raises: StoreError: it cannot be opened.
    """
    if on_postgres(url):
        from hedgerow.region.store.postgres import Postgres

        return Postgres(url, write=write, beside=beside)
    return Sqlite(Path(url), write=write, beside=beside)


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
    folder = files("hedgerow.region.store.sql") / dialect
    return {int(one.name[:4]): one.read_text("utf-8") for one in folder.iterdir() if one.name.endswith(".sql")}


def _statements(script: str) -> Iterator[str]:
    """The statements of a migration; it has no semicolon anywhere else."""
    bare = "\n".join(line.partition("--")[0] for line in script.splitlines())
    yield from filter(None, map(str.strip, bare.split(";")))


def not_there(name: str) -> RegionStoreError:
    """There is no store to read."""
    return RegionStoreError(
        f"There is no store at {name}",
        remedy="`hedgerow region run region.yaml` makes it; name it with --store, or its configuration with --config.",
    )


def in_use(name: str) -> RegionStoreError:
    """Somebody else writes."""
    return RegionStoreError(
        f"Another collector writes to {name}", remedy="Stop it, or give this one a store of its own.",
    )  # fmt: skip


class Sqlite:
    """A store in a file.

    Args:
        path: of the file; its folder is made if need be.
        write, beside: as for `open_database`.
    Raises: StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, *, write: bool, beside: bool = False) -> None:
        self._path = path
        self._lock: int | None = None
        if not write and not path.exists():
            raise not_there(str(path))
        if write:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._unlock()
                raise in_use(str(path)) from error
            except OSError as error:
                self._unlock()
                raise RegionStoreError(
                    f"{path} cannot be written: {error.strerror}", remedy="Check the folder and who may write there."
                ) from error
        try:
            with self._translating():
                target = path.resolve().as_uri() + ("" if write else "?mode=rw" if beside else "?mode=ro")
                self._connection = sqlite3.connect(
                    target, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False
                )
                if write:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    self._connection.execute("PRAGMA synchronous = FULL")  # fsync with every commit
                    self._connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
                    self._connection.execute("PRAGMA cache_size = -32000")
                    migrate(self, "sqlite", str(path))
                else:
                    self._connection.execute("PRAGMA synchronous = FULL")
                    self._connection.execute("SELECT 1 FROM collector LIMIT 1")
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows that a query gives."""
        with self._translating():
            return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement. Returns: rows it touched."""
        with self._translating():
            return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Carry out a statement for each. Returns: rows touched."""
        with self._translating():
            return self._connection.executemany(sql, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; on the disk when it ends."""
        with self._translating():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close it."""
        with suppress(AttributeError, sqlite3.Error):
            self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (
            sqlite3.DataError,
            sqlite3.IntegrityError,
            sqlite3.ProgrammingError,
            OverflowError,
            UnicodeError,
        ) as error:
            raise StoreRefused(f"{self._path} does not take this: {error}", remedy="See the log.") from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = "Check the disk, and who may write there; the collector goes on by itself when it works again."
            if code == sqlite3.SQLITE_NOTADB or "no such table" in str(error):
                raise RegionStoreError(
                    f"{self._path} is no store of a region: {error}", remedy="Name its file."
                ) from error
            if code == sqlite3.SQLITE_FULL:
                remedy = "Make room on the disk; the collector goes on by itself then."
            elif code == sqlite3.SQLITE_TOOBIG:
                raise StoreRefused(f"{self._path} does not take this: {error}", remedy="See the log.") from error
            raise StoreTrouble(f"{self._path}: {error}", remedy=remedy) from error
