"""SQLite access of the outbox: opening, error translation, setting a damaged file aside.

The only module that uses sqlite3. It raises `OutboxError`s: `DiskTrouble` (may pass: retry), `Damaged` (the content cannot be
trusted) and `InUse`.
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
from hedgerow.disk import open_private

PAGE_BYTES: Final = 4096
_LOG_PAGES: Final = 1000
"""Size of the write-ahead log, in pages, that triggers a checkpoint."""
_FORMAT: Final = 3
_ROWS_PER_INSERT: Final = (256, 32, 4, 1)
"""A few fixed sizes, so that SQLite can cache the prepared statements."""
_COMPANIONS: Final = ("-wal", "-shm", "-journal")

_EPOCHS: Final = """CREATE TABLE epoch (
  turn INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE, bases TEXT NOT NULL, ends TEXT, former TEXT NOT NULL);"""
_KEPT: Final = """
CREATE TABLE kept (
  first INTEGER PRIMARY KEY, last INTEGER NOT NULL, store TEXT NOT NULL, position INTEGER NOT NULL, age_s REAL NOT NULL,
  records INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE kept_gap (
  first INTEGER PRIMARY KEY, last INTEGER NOT NULL, body BLOB NOT NULL, store TEXT NOT NULL, position INTEGER NOT NULL,
  age_s REAL NOT NULL);
CREATE TABLE region_store (
  store TEXT PRIMARY KEY, lost TEXT NOT NULL, turn INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0,
  resent INTEGER NOT NULL DEFAULT 0, complete INTEGER NOT NULL DEFAULT 1);
CREATE INDEX gaps ON entry (key) WHERE topic = '';"""
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE entry (
  key INTEGER PRIMARY KEY, last INTEGER NOT NULL, topic TEXT NOT NULL, pipeline TEXT NOT NULL,
  created_at REAL NOT NULL, expires_at REAL, crc INTEGER NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL);
CREATE TABLE recent (turn INTEGER PRIMARY KEY, origin INTEGER NOT NULL);
CREATE INDEX expiry ON entry (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE state (
  one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, numbers TEXT NOT NULL,
  age_s REAL NOT NULL, boot TEXT NOT NULL, boot_s REAL NOT NULL, clean INTEGER NOT NULL,
  machine TEXT NOT NULL DEFAULT '', identity TEXT NOT NULL DEFAULT '');
{_EPOCHS}
{_KEPT}
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


_FROM_FORMAT_1: Final = f"""
BEGIN IMMEDIATE;
ALTER TABLE state ADD COLUMN machine TEXT NOT NULL DEFAULT '';
ALTER TABLE state ADD COLUMN identity TEXT NOT NULL DEFAULT '';
{_EPOCHS}
INSERT INTO epoch SELECT 1, epoch, '[0,0,0,0,0,0,0,0,0,0]', NULL, '[]' FROM state;
{_KEPT}
PRAGMA user_version = {_FORMAT};
COMMIT;
"""  # noqa: S608 - our own names
"""In a file of format 1 there is one epoch, whose numbers are the sequences."""
_FROM_FORMAT_2: Final = f"""
BEGIN IMMEDIATE;
{_KEPT}
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class DiskTrouble(OutboxError):
    """The disk is full or failing; stored records are still there."""

    code = "outbox-disk"


class Damaged(OutboxError):
    """The database file is damaged."""

    code = "outbox-damaged"


class InUse(OutboxError):
    """Another process has the database open."""

    code = "outbox-in-use"


def _translate(error: sqlite3.Error, path: Path) -> OutboxError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InUse(
            f"{path} is in use by another process", remedy="Stop the other node, or give each node its own `state_dir`."
        )
    if code == sqlite3.SQLITE_FULL:
        return DiskTrouble(
            f"{path}: the disk is full", remedy="Free some disk space; the node then continues by itself."
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return DiskTrouble(
            f"Cannot write {path}: {error}", remedy="Check the folder, its permissions and the disk's health."
        )
    return Damaged(
        f"{path} is damaged: {error}", remedy="Check the disk's health. The file is set aside and a new one created."
    )


class OutboxDatabase:
    """An open database.

    Args:
        path: its file; the folder is created if missing.
    Raises: OutboxError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            open_private(path)  # SQLite gives its companions the same rights
        except OSError as error:
            raise DiskTrouble(f"Cannot create {path}: {error}", remedy="Check the path of the outbox.") from error
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
            "locking_mode = EXCLUSIVE",  # set before WAL: no shared memory, no other process
            "journal_mode = WAL",
            "synchronous = FULL",  # fsync at every commit
            f"wal_autocheckpoint = {_LOG_PAGES}",
            f"journal_size_limit = {_LOG_PAGES * PAGE_BYTES}",
            "cell_size_check = ON",
            "secure_delete = OFF",  # overwriting deleted rows, the default of some builds, needs space that a full disk lacks
        ):
            self.rows(f"PRAGMA {pragma}")
        version = self.value("PRAGMA user_version")
        self.is_new = version == 0
        if self.is_new:
            self._connection.executescript(_SCHEMA)
        elif version == 1:
            self._connection.executescript(_FROM_FORMAT_1)
        elif version == 2:
            self._connection.executescript(_FROM_FORMAT_2)
        elif version != _FORMAT:
            raise OutboxError(
                f"{self.path} has format {version}; this version of Hedgerow reads format {_FORMAT}",
                remedy="Run the newer version that wrote it, or move the file elsewhere.",
                code="outbox-format",
            )

    def check(self) -> None:
        """Check all pages.

        Raises: Damaged: a page is damaged.
        """
        with self._translating():
            problem = self.value("PRAGMA quick_check(1)")
        if problem != "ok":
            raise Damaged(f"{self.path} is damaged: {problem}", remedy="Check the disk's health.")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction; it is on disk when the block ends.

        Raises: OutboxError: it failed; nothing has changed.
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
        """Run a part of a transaction that may fail on its own."""
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
        """Run a statement and return all rows."""
        return self._connection.execute(sql, arguments).fetchall()

    def value(self, sql: str, arguments: Sequence[Any] = ()) -> Any:
        """Run a statement and return the first value."""
        return self._connection.execute(sql, arguments).fetchone()[0]

    def change(self, sql: str, arguments: Sequence[Any] = ()) -> int:
        """Run a statement. Returns: the number of changed rows."""
        return self._connection.execute(sql, arguments).rowcount

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows, many per statement.

        Every statement releases the interpreter lock, and reacquiring it from a busy thread takes 5 ms: one row per statement
        would mean 200 rows a second.
        """
        start = 0
        for size in _ROWS_PER_INSERT:
            sql = f"INSERT INTO {table} VALUES " + ",".join([f"({','.join('?' * len(rows[0]))})"] * size)  # noqa: S608 - our own names
            while len(rows) - start >= size:
                self._connection.execute(sql, list(itertools.chain.from_iterable(rows[start : start + size])))
                start += size

    def delete(self, table: str, keys: Sequence[int]) -> None:
        """Delete rows by their key."""
        self._connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])  # noqa: S608 - our own names

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Run reads outside a transaction, with error translation."""
        with self._translating():
            yield

    @property
    def used_bytes(self) -> int:
        """Size of the pages in use, in bytes."""
        return int(self.value("PRAGMA page_count") - self.value("PRAGMA freelist_count")) * PAGE_BYTES

    def truncate_log(self) -> None:
        """Checkpoint and truncate the write-ahead log, to free disk space."""
        with contextlib.suppress(sqlite3.Error):
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the database."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error


def set_aside(path: Path) -> Path:
    """Rename a damaged database and its companion files. One set aside earlier is deleted, to save disk space.

    Returns: its new path.
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
        raise DiskTrouble(f"Cannot rename {path}: {error}", remedy="Check the folder and the disk.") from error
    return aside
