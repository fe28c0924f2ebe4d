"""The writer thread of the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.region.conftest import eventually

from hedgerow.region.config import RegionConfig
from hedgerow.region.store import writer
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest


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
