"""Region store in an SQLite file."""

from __future__ import annotations

import fcntl
import os
import pwd
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow.disk import limit_mode, open_private
from hedgerow.region.store.database.database import (
    RegionStoreError,
    Row,
    StoreRefused,
    StoreTrouble,
    lease_lost,
    migrate,
    no_such_store,
    unfenced,
    unlike_schema,
)

log = structlog.get_logger(__name__)

_BUSY_S: Final = 5.0
"""Longest wait for a lock of another program."""
_LOG_PAGES: Final = 4000
"""Pages of the write-ahead log that trigger a checkpoint: 16 MB."""
SQLITE_COPY: Final = "store.db"
"""Name of the file that a dump writes."""
_BACKUP_PAGES: Final = 2000
_FENCE: Final = "UPDATE lease SET renewals = renewals + 1 WHERE fence = ?"
"""Only one transaction writes at a time, so each renews the lease too: a long one does not look like a dead leader."""


class Sqlite:
    """A store in a file.

    Args:
        path: of the file; its folder is created if necessary.
        write, alongside, group: as for `open_database`.
    Raises: RegionStoreError: it cannot be opened.
    """

    lock_grace_s = 0.0  # the system frees the lock when the process has ended, not before

    def __init__(self, path: Path, *, write: bool, alongside: bool = False, group: bool = False) -> None:
        self._path = path
        self._lock: int | None = None
        self._fence: int | None = None
        self._file: tuple[int, int] | None = None
        if not write and not path.exists():
            raise no_such_store(str(path))
        if not write and not os.access(path, os.R_OK | (os.W_OK if alongside else 0)):
            raise _private(path)
        if write:
            try:
                path.parent.mkdir(mode=0o750 if group else 0o700, parents=True, exist_ok=True)
                _close_to_others(path, 0o660 if group else 0o600)
            except OSError as error:
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
                    self._file = _identity(path)
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
        with self._translating(), self._writable():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if self._fence is not None and not self._connection.execute(_FENCE, (self._fence,)).rowcount:
                    raise lease_lost(str(self._path), self._fence)
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise

    def lead(self, fence: int) -> None:
        """See `Database.lead`."""
        self._fence = fence
        self._connection.execute("PRAGMA query_only = ON")

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Let a leader write: outside of transactions, which check its term, it cannot."""
        if self._fence is None:
            yield
            return
        self._connection.execute("PRAGMA query_only = OFF")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA query_only = ON")

    def try_lock(self) -> bool:
        """See `Database.try_lock`. Raises: StoreTrouble: the file is not the one that was opened any more."""
        if self._file != _identity(self._path):
            raise StoreTrouble(f"{self._path} has been replaced or moved", remedy="None: it is opened again.")
        if self._lock is not None:
            return True
        path = self._path.with_name(f"{self._path.name}.lock")
        file = None
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if file is not None:
                os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise RegionStoreError(
                f"{path} cannot be locked: {error.strerror}", remedy="Check the folder and its permissions."
            ) from error
        self._lock = file
        return True

    def unlock(self) -> None:
        """See `Database.unlock`."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def end_term(self, fence: int) -> None:
        """See `Database.end_term`: nobody can end the transaction of another process, so it is waited for."""

    def now(self) -> float:
        """See `Database.now`."""
        return time.time()

    def dump(self, folder: Path, advance: Callable[[int], None]) -> None:
        """See `Database.dump`."""
        done = 0

        def progress(_: int, left: int, total: int) -> None:
            nonlocal done
            advance(max(0, total - left - done) * page_bytes)
            done = total - left

        with self._translating():
            ((page_bytes,),) = self._connection.execute("PRAGMA page_size").fetchall()
            target = sqlite3.connect(folder / SQLITE_COPY, isolation_level=None)
            with closing(target), self._snapshot():
                self._connection.backup(target, pages=_BACKUP_PAGES, progress=progress)
                target.execute("PRAGMA journal_mode = DELETE")  # one file

    def _applied(self) -> set[int] | None:
        """Return the migrations that the file has; None if it is no store."""
        try:
            return {number for (number,) in self._connection.execute("SELECT number FROM migration")}
        except sqlite3.Error:
            return None

    def leave_log(self) -> None:
        """Move everything from the write-ahead log into the file. Raises: StoreTrouble: another connection has it open."""
        with self._translating():
            ((mode,),) = self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()
            if mode != "delete":
                raise StoreTrouble(f"{self._path} is open elsewhere", remedy="Close what has it open.")
            self._connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Read the state of one moment: otherwise a backup begins again with each change."""
        self._connection.execute("BEGIN")
        try:
            self._connection.execute("SELECT 1 FROM collector LIMIT 1").fetchall()
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection, and free the lock."""
        with suppress(AttributeError, sqlite3.Error):
            self._connection.close()
        self.unlock()

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
            if code == sqlite3.SQLITE_READONLY and self._fence is not None and not self._connection.in_transaction:
                raise unfenced(str(self._path)) from error
            remedy = "Check the disk and the file's permissions; the collector retries automatically."
            if "no such table" in str(error) or "no such column" in str(error):
                if (applied := self._applied()) is not None:
                    raise unlike_schema(applied, "sqlite", str(self._path), error) from error
                code = sqlite3.SQLITE_NOTADB
            if code == sqlite3.SQLITE_NOTADB:
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


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one that has been put in its place; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _close_to_others(path: Path, mode: int) -> None:
    """Let only the owner, and its group if so configured, use a store; SQLite gives its companions the rights of the file."""
    try:
        # Closing any descriptor of the file frees the locks of all connections of this process (POSIX): another service would take
        # itself for the last user, and delete the write-ahead log. So one that exists is not opened.
        changed = limit_mode(path, mode) if path.exists() else open_private(path, mode)
        for name in (f"{path.name}-wal", f"{path.name}-shm", f"{path.name}.lock"):
            with suppress(FileNotFoundError):
                changed |= limit_mode(path.with_name(name), mode)
    except (
        PermissionError
    ) as error:  # it belongs to another user; whether it can be written turns out when it is opened
        log.warning(
            "permissions-open", path=str(path), error=str(error), remedy=f"As its owner, `chmod go-rwx {path}*`."
        )
        return
    if changed:
        log.warning("permissions-mended", path=str(path), detail="other users of this machine could read it")


def _private(path: Path) -> RegionStoreError:
    try:
        owner = pwd.getpwuid(path.stat().st_uid).pw_name
    except KeyError:
        owner = str(path.stat().st_uid)
    return RegionStoreError(
        f"{path} belongs to user {owner}, and this user may not open it",
        remedy=f"Run the command as {owner} (`sudo -u {owner} hedgerow …`), or set `store: {{group_access: true}}` in the region's "
        "configuration and join the file's group.",
    )
