"""SQLite, as the outbox uses it: how it is opened, what its errors mean, how a broken one is set aside.

The only module that knows sqlite3. Its errors come out as `OutboxError`s: `DiskTrouble` (it may pass: try again),
`Damaged` (what is stored cannot be trusted) and `InUse`.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from hedgerow.bus.outbox.records import OutboxError

PAGE_BYTES: Final = 4096
_LOG_PAGES: Final = 1000
"""Pages in the write-ahead log after which they are moved into the database."""
_FORMAT: Final = 1
_AT_ONCE: Final = (256, 32, 4, 1)
"""Rows of one statement; a few sizes, so that statements are prepared once."""
_COMPANIONS: Final = ("-wal", "-shm", "-journal")

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE entry (
  key INTEGER PRIMARY KEY, last INTEGER NOT NULL, topic TEXT NOT NULL, pipeline TEXT NOT NULL,
  created_at REAL NOT NULL, expires_at REAL, crc INTEGER NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL);
CREATE TABLE recent (turn INTEGER PRIMARY KEY, origin INTEGER NOT NULL);
CREATE INDEX expiry ON entry (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE state (
  one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, numbers TEXT NOT NULL,
  age_s REAL NOT NULL, boot TEXT NOT NULL, boot_s REAL NOT NULL, clean INTEGER NOT NULL);
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class DiskTrouble(OutboxError):
    """The disk is full or fails; what was stored before is still there."""

    code = "outbox-disk"


class Damaged(OutboxError):
    """The store's file is not what was written to it."""

    code = "outbox-damaged"


class InUse(OutboxError):
    """Another process has the store open."""

    code = "outbox-in-use"


def _translated(error: sqlite3.Error, path: Path) -> OutboxError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InUse(
            f"{path} is in use by another process", remedy="Stop the other node, or give each a folder of its own."
        )
    if code == sqlite3.SQLITE_FULL:
        return DiskTrouble(
            f"{path}: the disk is full", remedy="Make room there; the node goes on by itself and tries again."
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return DiskTrouble(
            f"{path} cannot be written: {error}", remedy="Check the folder, its permissions, and the disk's health."
        )
    return Damaged(
        f"{path} is damaged: {error}", remedy="Check the disk's health. The file is set aside, and a new one begun."
    )


class OutboxDatabase:
    """One open database.

    Args:
        path: of its file; the folder is made if need be.
    Raises: OutboxError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskTrouble(
                f"{path.parent} cannot be made: {error}", remedy="Check the path of the outbox."
            ) from error
        with self._translating():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        try:
            with self._translating():
                self._open()
        except OutboxError:
            self.close()
            raise

    def _open(self) -> None:
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "locking_mode = EXCLUSIVE",  # before WAL: no shared memory, and nobody else
            "journal_mode = WAL",
            "synchronous = FULL",  # fsync with every commit
            f"wal_autocheckpoint = {_LOG_PAGES}",
            f"journal_size_limit = {_LOG_PAGES * PAGE_BYTES}",
            "cell_size_check = ON",
            "secure_delete = OFF",  # some builds overwrite what is deleted, which a full disk has no room for
        ):
            self.rows(f"PRAGMA {pragma}")
        version = self.value("PRAGMA user_version")
        self.is_new = version == 0
        if self.is_new:
            self._connection.executescript(_SCHEMA)
        elif version != _FORMAT:
            raise OutboxError(
                f"{self.path} is of format {version}; this version knows {_FORMAT}",
                remedy="Run the newer version that wrote it, or move the file away.",
                code="outbox-format",
            )

    def check(self) -> None:
        """Look through all pages.

        Raises: Damaged: something is wrong.
        """
        with self._translating():
            said = self.value("PRAGMA quick_check(1)")
        if said != "ok":
            raise Damaged(f"{self.path} is damaged: {said}", remedy="Check the disk's health.")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; on the disk when it ends.

        Raises: OutboxError: it is not; nothing has changed.
        """
        with self._translating():
            self.rows("BEGIN IMMEDIATE")
            try:
                yield
                self.rows("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self.rows("ROLLBACK")
                raise

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """A part of a transaction that may fail by itself."""
        self.rows("SAVEPOINT part")
        try:
            yield
        except OutboxError:
            self.rows("ROLLBACK TO part")
            raise
        finally:
            if self._connection.in_transaction:
                self.rows("RELEASE part")

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and fetch all."""
        return self._connection.execute(sql, arguments).fetchall()

    def value(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """Run a statement and fetch the first value."""
        return self._connection.execute(sql, arguments).fetchone()[0]

    def change(self, sql: str, arguments: Sequence[Any] = ()) -> int:
        """Run a statement. Returns: how many rows it changed."""
        return self._connection.execute(sql, arguments).rowcount

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows, many with one statement.

        Each statement lets go of the interpreter lock, and where another thread is busy it takes 5 ms to get it back: a row
        a statement would be 200 rows a second.
        """
        start = 0
        for size in _AT_ONCE:
            sql = f"INSERT INTO {table} VALUES " + ",".join([f"({','.join('?' * len(rows[0]))})"] * size)  # noqa: S608 - our own names
            while len(rows) - start >= size:
                self._connection.execute(sql, list(itertools.chain.from_iterable(rows[start : start + size])))
                start += size

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read outside a transaction."""
        with self._translating():
            yield

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        return int(self.value("PRAGMA page_count") - self.value("PRAGMA freelist_count")) * PAGE_BYTES

    def shorten_log(self) -> None:
        """Move the write-ahead log into the database: what a full disk needs to go on."""
        with contextlib.suppress(sqlite3.Error):
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error


def set_aside(path: Path) -> Path:
    """Rename a database and its companions; an earlier one set aside is deleted, so that they do not fill the disk.

    Returns: where it is now.
    Raises: DiskTrouble: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        for old in path.parent.glob(f"{path.name}.damaged-*"):
            old.unlink()
        for end in _COMPANIONS:
            if (companion := path.with_name(path.name + end)).exists():
                companion.rename(aside.with_name(aside.name + end))
        path.rename(aside)
    except OSError as error:
        raise DiskTrouble(f"{path} cannot be set aside: {error}", remedy="Check the folder and the disk.") from error
    return aside
