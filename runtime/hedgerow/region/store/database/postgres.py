"""A region's store in PostgreSQL, through psycopg 3: the only module that knows it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
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

try:
    import psycopg
except ImportError as error:
    raise RegionStoreError(
        "A store in PostgreSQL needs psycopg, which is not installed",
        remedy="`pip install 'hedgerow[region]'`, or name an SQLite file as the store.",
    ) from error

_LOCK: Final = 0x68656467  # "hedg": an advisory lock that tells who may write
_LET_GO_S: Final = 3.0  # the server may notice only now that the last writer has hung up
_CONNECT_S: Final = 10
_LONGEST_STATEMENT_MS: Final = 60_000


class Postgres:
    """A store in a PostgreSQL database.

    Args:
        url: its address.
        write, alongside: as for `open_database`.
    Raises: StoreError: it cannot be opened.
    """

    def __init__(self, url: str, *, write: bool, alongside: bool = False) -> None:
        self._shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "…", url)
        try:
            self._connection = psycopg.connect(
                url, autocommit=True, connect_timeout=_CONNECT_S, application_name="hedgerow-region"
            )
        except (psycopg.Error, UnicodeError) as error:
            raise StoreTrouble(
                f"{self._shown} cannot be reached: {str(error).strip()}",
                remedy="Check the address, user and password (`~/.pgpass` or PGPASSWORD), and that the server runs.",
            ) from error
        try:
            self.run(f"SET statement_timeout = {_LONGEST_STATEMENT_MS}")
            if write:
                self._become_writer()
                migrate(self, "postgres", self._shown)
            else:
                if not alongside:
                    self.run("SET default_transaction_read_only = on")
                if self.rows("SELECT to_regclass('collector') IS NULL") == [(True,)]:
                    raise no_such_store(self._shown)
        except BaseException:
            self.close()
            raise

    def _become_writer(self) -> None:
        deadline = time.monotonic() + _LET_GO_S
        while self.rows(f"SELECT pg_try_advisory_lock({_LOCK})") != [(True,)]:
            if time.monotonic() > deadline:
                raise store_in_use(self._shown)
            time.sleep(0.02)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows that a query gives."""
        with self._translating():
            return self._connection.execute(_translated(sql), values or None).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement. Returns: rows it touched."""
        with self._translating():
            return self._connection.execute(_translated(sql), values or None).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Carry out a statement for each, without waiting for each. Returns: rows touched."""
        with self._translating(), self._connection.cursor() as cursor:
            cursor.executemany(_translated(sql), rows)
            return cursor.rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; on the disk when it ends."""
        with self._translating(), self._connection.transaction():
            yield

    def close(self) -> None:
        """Close it."""
        with suppress(psycopg.Error):
            self._connection.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, UnicodeError) as error:
            raise StoreRefused(
                f"{self._shown} does not take this: {str(error).strip()}",
                remedy="See the log; check the user's rights.",
            ) from error
        except psycopg.Error as error:
            raise StoreTrouble(
                f"{self._shown}: {str(error).strip()}",
                remedy="Check the server; the collector connects again by itself.",
            ) from error


@lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    """With the placeholders that psycopg knows; as bytes, since it takes only literals as text."""
    return sql.replace("?", "%s").encode()
