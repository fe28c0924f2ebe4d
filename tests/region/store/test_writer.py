"""The writer thread of the store."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.region.conftest import eventually

from hedgerow.region.config import RegionConfig
from hedgerow.region.store import writer
from hedgerow.region.store.database import sqlite
from hedgerow.region.store.database.database import Database, StoreTrouble
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_store_that_another_program_has_locked_is_opened_once_it_is_free(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """A backup may take minutes; the writer's own lock from a failed attempt must not stop the next one."""
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)
    monkeypatch.setattr(writer, "_RETRY_S", (0.05, 0.05))
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": sqlite_url}})
    if not is_new:
        RegionStore(open_database(sqlite_url, write=True), config).close()
    backup = sqlite3.connect(sqlite_url, isolation_level=None)
    backup.execute("PRAGMA journal_mode = WAL")
    backup.execute("BEGIN IMMEDIATE")
    reports: list[WriteReport] = []
    thread = StoreWriter(lambda: RegionStore(open_database(sqlite_url, write=True), config), reports.append)

    thread.start()
    try:
        await eventually(lambda: len(reports) >= 3 or not thread.is_alive(), lambda: reports)
        failures = [report.failure for report in reports[:3]]
        assert {type(failure) for failure in failures} == {StoreTrouble}, failures
        assert "such as a backup" in str(failures[0] and failures[0].remedy)
        backup.execute("ROLLBACK")
        await eventually(lambda: any(report.opened is not None for report in reports), lambda: reports)
    finally:
        thread.close()
        await asyncio.to_thread(thread.join)
        backup.close()


async def test_a_change_of_the_connection_is_written_at_once(
    sqlite_url: str, reading: Callable[[str], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not just with the next heartbeat: until then `hedgerow region status` would be outdated."""
    monkeypatch.setattr(writer, "BEAT_EVERY_S", 3600.0)
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": sqlite_url}})
    reports: list[WriteReport] = []
    thread = StoreWriter(lambda: RegionStore(open_database(sqlite_url, write=True), config), reports.append)

    def collector() -> Any:
        return status(reading(sqlite_url), time.time())["collector"]

    thread.start()
    try:
        await eventually(lambda: reports)
        for connected in (True, False):
            thread.connected = connected
            thread.submit(WriteRequest([], []))
            await eventually(lambda connected=connected: collector()["connected"] is connected)
    finally:
        thread.close()
        await asyncio.to_thread(thread.join)
