"""Region store in PostgreSQL, through psycopg 3. No other module imports psycopg."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from hedgerow.region.store.database.database import (
    RegionStoreError,
    RestoreSteps,
    Row,
    StoreInUse,
    StoreRefused,
    StoreTrouble,
    check_replaceable,
    lease_lost,
    migrate,
    no_such_store,
    service_running,
    table_names,
)

try:
    import psycopg
except ImportError as error:
    raise RegionStoreError(
        "A store in PostgreSQL needs psycopg, which is not installed",
        remedy="Run `pip install 'hedgerow[region]'`, or use an SQLite file as the store.",
    ) from error

_LOCK: Final = 0x68656467  # "hedg": the advisory lock of the service that leads
_CONNECT_S: Final = 10
_LONGEST_STATEMENT_MS: Final = 60_000
_LONGEST_PAUSE_MS: Final = 4_000
"""How long a leader may pause within a transaction: whatever it holds locked would delay the next leader."""
_COLUMNS: Final = "columns.json"
_IDENTITIES: Final = (
    "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = current_schema() AND is_identity = 'YES'"
)
_FENCE: Final = "SELECT 1 FROM lease WHERE fence = ? FOR KEY SHARE"
"""Whoever takes the lease changes its unique `fence`, so waits for all transactions that have checked it. A renewal does not."""


class Postgres:
    """A store in a PostgreSQL database.

    Args:
        url: address of the database.
        write, alongside: as for `open_database`.
    Raises: RegionStoreError: it cannot be opened.
    """

    lock_grace_s = 3.0  # a connection may be lost and its client not notice until it renews the lease

    def __init__(self, url: str, *, write: bool, alongside: bool = False) -> None:
        self._fence: int | None = None
        self._locked = False
        self._shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "…", url)
        try:
            self._connection = psycopg.connect(
                url, autocommit=True, connect_timeout=_CONNECT_S, application_name="hedgerow-region"
            )
        except (psycopg.Error, UnicodeError) as error:
            raise StoreTrouble(
                f"{self._shown} cannot be reached: {str(error).strip()}",
                remedy="Check the address, user and password (`~/.pgpass` or PGPASSWORD), and whether the server is running.",
            ) from error
        try:
            self.run(f"SET statement_timeout = {_LONGEST_STATEMENT_MS}")
            if write:
                migrate(self, "postgres", self._shown)
            else:
                if not alongside:
                    self.run("SET default_transaction_read_only = on")
                if self.rows("SELECT to_regclass('collector') IS NULL") == [(True,)]:
                    raise no_such_store(self._shown)
        except BaseException:
            self.close()
            raise

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""
        with self._translating():
            return self._connection.execute(_translated(sql), values or None).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement. Returns: the number of rows it changed."""
        with self._translating():
            return self._connection.execute(_translated(sql), values or None).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Execute a statement for each row of values, pipelined. Returns: the number of rows changed."""
        with self._translating(), self._connection.cursor() as cursor:
            cursor.executemany(_translated(sql), rows)
            return cursor.rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction; it is on disk when this ends without an exception."""
        with self._translating(), self._connection.transaction():
            if self._fence is not None and not self.rows(_FENCE, (self._fence,)):
                raise lease_lost(self._shown, self._fence)
            yield

    def lead(self, fence: int) -> None:
        """See `Database.lead`."""
        self._fence = fence
        self.rows("SELECT set_config('application_name', ?, false)", (_term(fence),))
        self.run(f"SET idle_in_transaction_session_timeout = {_LONGEST_PAUSE_MS}")

    def try_lock(self) -> bool:
        """See `Database.try_lock`."""
        self._locked = self._locked or self.rows(f"SELECT pg_try_advisory_lock({_LOCK})") == [(True,)]
        return self._locked

    def unlock(self) -> None:
        """See `Database.unlock`."""
        if self._locked:
            self._locked = False
            self.rows(f"SELECT pg_advisory_unlock({_LOCK})")

    def end_term(self, fence: int) -> None:
        """See `Database.end_term`; the sessions of another user go on until the server ends their transactions."""
        self.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = ? AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()",
            (_term(fence),),
        )

    def now(self) -> float:
        """See `Database.now`."""
        ((now,),) = self.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)

    def dump(self, folder: Path, advance: Callable[[int], None]) -> None:
        """See `Database.dump`."""
        with self._translating(), self._connection.transaction(), self._connection.cursor() as cursor:
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            self.run("SET LOCAL statement_timeout = 0")
            columns = {name: self.columns(name) for name in table_names("postgres")}
            (folder / _COLUMNS).write_text(json.dumps(columns), encoding="utf-8")
            for name, of_table in columns.items():
                statement = f"COPY {name} ({', '.join(of_table)}) TO STDOUT"
                with (folder / f"{name}.copy").open("wb") as out, cursor.copy(statement.encode()) as copy:
                    for block in copy:
                        out.write(block)
                        advance(len(block))

    def columns(self, table: str) -> list[str]:
        """Return the names of a table's columns."""
        rows = self.rows(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = ? "
            "ORDER BY ordinal_position",
            (table,),
        )
        return [name for (name,) in rows]

    def load(self, table: str, columns: Sequence[str], path: Path, advance: Callable[[int], None]) -> None:
        """Fill an empty table from a file that `dump` wrote, within the caller's transaction."""
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with (
            self._translating(),
            path.open("rb") as file,
            self._connection.cursor() as cursor,
            cursor.copy(statement.encode()) as copy,
        ):
            while block := file.read(1 << 18):
                copy.write(block)
                advance(len(block))

    def close(self) -> None:
        """Close the connection."""
        with suppress(psycopg.Error):
            self._connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (
            psycopg.DataError,
            psycopg.IntegrityError,
            psycopg.ProgrammingError,
            psycopg.errors.ProgramLimitExceeded,  # a value is too large for an index: trying again would not help
            UnicodeError,
            OverflowError,
        ) as error:
            raise StoreRefused(
                f"{self._shown} rejects the values: {str(error).strip()}",
                remedy="Check the privileges of the store's user; if they are right, report this with the service's log.",
            ) from error
        except psycopg.Error as error:
            raise StoreTrouble(
                f"{self._shown}: {str(error).strip()}",
                remedy="Check the server; the collector reconnects automatically.",
            ) from error


def restore_postgres(url: str, folder: Path, steps: RestoreSteps) -> None:
    """See `restore_database`."""
    try:
        database = Postgres(url, write=True)
    except StoreInUse as error:
        raise service_running(url.partition("@")[2] or url) from error
    with closing(database):
        shown = url.partition("@")[2] or url
        if not database.try_lock() or database.rows("SELECT 1 FROM standby WHERE seen_at > ?", (database.now() - 15,)):
            raise service_running(shown)
        check_replaceable(database, shown, replace=steps.replace)
        steps.look(database)
        columns = _columns_of_backup(database, folder)
        with database.transaction():
            database.run("SET LOCAL statement_timeout = 0")
            database.run(f"TRUNCATE {', '.join(table_names('postgres'))}")
            for name in table_names("postgres"):
                database.run(f"ALTER TABLE {name} DISABLE TRIGGER USER")  # they would change who made a request
                database.load(name, columns[name], folder / f"{name}.copy", steps.advance)
                database.run(f"ALTER TABLE {name} ENABLE TRIGGER USER")
            for table, column in database.rows(_IDENTITIES):
                sequence = f"pg_get_serial_sequence('{table}', '{column}')"
                given = f"(SELECT coalesce(last_value, 0) FROM pg_sequences WHERE (schemaname || '.' || sequencename)::regclass = {sequence}::regclass)"  # noqa: S608
                last = f"greatest((SELECT coalesce(max({column}), 0) FROM {table}), {given})"  # noqa: S608
                database.rows(f"SELECT setval({sequence}, {last} + ?)", (steps.id_step,))
            steps.finish(database)


def _columns_of_backup(database: Postgres, folder: Path) -> dict[str, list[str]]:
    """Return the order of the columns in a backup's files. They become part of statements, so they have to be those of the tables."""
    columns: dict[str, list[str]] = json.loads((folder / _COLUMNS).read_text("utf-8"))
    for name in table_names("postgres"):
        found = columns.get(name) if isinstance(columns, dict) else None
        if not isinstance(found, list) or sorted(map(str, found)) != sorted(database.columns(name)):
            raise RegionStoreError(
                f"{folder / _COLUMNS} does not have the columns of {name}",
                remedy="Do not use the backup: somebody has changed it. Use an earlier one.",
            )
    return columns


def _term(fence: int) -> str:
    return f"hedgerow-region term {fence}"


@lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    """Return a statement with psycopg's placeholders; as bytes, since its text type allows only literals."""
    return sql.replace("?", "%s").encode()
