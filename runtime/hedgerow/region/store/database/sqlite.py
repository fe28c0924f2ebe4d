"""Region store in an SQLite file."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from hedgerow.region.store.database.database import (
    RegionStoreError,
    Row,
    StoreRefused,
    StoreTrouble,
    migrate,
    no_such_store,
    store_in_use,
)

_BUSY_S: Final = 5.0
"""Longest wait for a lock of another program."""
_LOG_PAGES: Final = 4000
"""Pages of the write-ahead log that trigger a checkpoint: 16 MB."""


class Sqlite:
    """A store in a file.

    Args:
        path: of the file; its folder is created if necessary.
        write, alongside: as for `open_database`.
    Raises: RegionStoreError: it cannot be opened.
    """

    def __init__(self, path: Path, *, write: bool, alongside: bool = False) -> None:
        self._path = path
        self._lock: int | None = None
        if not write and not path.exists():
            raise no_such_store(str(path))
        if write:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._unlock()
                raise store_in_use(str(path)) from error
            except OSError as error:
                self._unlock()
                raise RegionStoreError(
                    f"{path} cannot be written: {error.strerror}", remedy="Check the folder and its permissions."
                ) from error
        try:
            with self._translating():
                target = path.resolve().as_uri() + ("" if write else "?mode=rw" if alongside else "?mode=ro")
                self._connection = sqlite3.connect(
                    target, uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
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
        """Return the rows of a query."""
        with self._translating():
            return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement. Returns: the number of rows it changed."""
        with self._translating():
            return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Execute a statement for each row of values. Returns: the number of rows changed."""
        with self._translating():
            return self._connection.executemany(sql, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction; it is on disk when this ends without an exception."""
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
        """Close the connection."""
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
            raise StoreRefused(
                f"{self._path} rejects the values: {error}", remedy="Report this with the service's log."
            ) from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = "Check the disk and the file's permissions; the collector retries automatically."
            if code == sqlite3.SQLITE_NOTADB or "no such table" in str(error):
                raise RegionStoreError(
                    f"{self._path} is not a region's store: {error}", remedy="Give the path of the store's file."
                ) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                remedy = (
                    "Another program holds a lock on it, such as a backup or a `sqlite3` shell (`fuser` shows which); the "
                    "collector retries automatically."
                )
            elif code == sqlite3.SQLITE_FULL:
                remedy = "Free disk space; the collector retries automatically."
            elif code == sqlite3.SQLITE_TOOBIG:
                raise StoreRefused(
                    f"{self._path} rejects the values: {error}", remedy="Report this with the service's log."
                ) from error
            raise StoreTrouble(f"{self._path}: {error}", remedy=remedy) from error
