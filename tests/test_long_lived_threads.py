"""What long-lived threads do when code fails in a way that nobody expected: they report it, and go on."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from hedgerow.bus.outbox import Outbox, OutboxError, Record
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import PingRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.writer import StoreWriter, WriteReport, WriteRequest
from hedgerow.telemetry.metrics import ProbeServer
from hedgerow.topics import Address

Boom = ZeroDivisionError("a bug")


@pytest.fixture
def logged() -> Any:
    with capture_logs([structlog.processors.format_exc_info]) as lines:
        yield lines


def fails(times: int, usual: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails at first."""
    left = [times]

    def work(*args: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Boom
        return usual(*args, **more)

    return work


def outbox(folder: Path) -> Outbox:
    return Outbox(
        folder / "outbox.db",
        gap_topic="gaps",
        late=lambda topic: topic,
        publish=lambda *_, **__: None,
        on_event=lambda *_: None,
    )


async def append(outbox: Outbox, text: bytes) -> OutboxError | None:
    done: asyncio.Future[OutboxError | None] = asyncio.get_running_loop().create_future()
    outbox.append([Record("doors", "out/doors", text)], [], done.set_result)
    async with asyncio.timeout(60):
        return await done


@pytest.mark.parametrize("place", ["append", "expire", "read", "take_changes"])
async def test_the_outbox_survives_a_bug_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any], place: str
) -> None:
    async with outbox(tmp_path) as box:
        assert await append(box, b"before") is None
        box.link_changed(up=True)
        monkeypatch.setattr(OutboxStore, place, fails(1, getattr(OutboxStore, place)))

        first = await append(box, b"during")
        second = await append(box, b"after")

        assert second is None
        await until(lambda: any("ZeroDivisionError" in line.get("exception", "") for line in logged))
        assert first is None or (first.code == "internal" and "a bug" in str(first))
        assert box.status.entries == 3 - (first is not None)


async def test_an_outbox_that_cannot_be_opened_for_a_bug_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """Instead of keeping the node's start waiting for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(OutboxStore, "origins", fails(1, OutboxStore.origins))
        with pytest.raises(OutboxError, match="a bug"):
            async with asyncio.timeout(60):
                await outbox(tmp_path).__aenter__()

    async with outbox(tmp_path) as box:
        assert await append(box, b"after") is None


def ping(number: int) -> WriteRequest:
    return WriteRequest([PingRecord(Address("test", "hall", f"n{number}"), 0, 1e9, True, 0.1, 0.0)], [])


async def test_the_regions_writer_survives_a_bug_and_stores_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": f"{tmp_path}/r.db"}})
    reports: list[WriteReport] = []
    writer = StoreWriter(lambda: RegionStore(open_database(config.store.url, write=True), config), reports.append)
    writer.start()
    try:
        await until(lambda: reports)
        monkeypatch.setattr(RegionStore, "apply", fails(3, RegionStore.apply))
        writer.submit(ping(1))
        await until(lambda: any(report.outcomes for report in reports))
    finally:
        writer.close()
        await asyncio.to_thread(writer.join)

    failures = [report for report in reports if report.failure is not None]
    assert [(str(report.failure), report.fatal) for report in failures] == [("ZeroDivisionError: a bug", False)] * 3
    traces = [line for line in logged if "ZeroDivisionError" in line.get("exception", "")]
    assert len(traces) == 1, "it is tried again and again, and explained once"


async def test_a_bug_while_the_regions_store_opens_ends_the_service(tmp_path: Path, logged: list[Any]) -> None:
    reports: list[WriteReport] = []

    def open_store() -> RegionStore:
        raise Boom

    writer = StoreWriter(open_store, reports.append)
    writer.start()
    await asyncio.to_thread(writer.join)

    assert [(str(report.failure), report.fatal) for report in reports] == [("ZeroDivisionError: a bug", True)]


def test_probes_are_served_again_after_their_thread_failed(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    from hedgerow.telemetry.metrics import _Server

    monkeypatch.setattr("hedgerow.tasks.failures._PAUSE_S", (0.0, 0.0))
    monkeypatch.setattr(_Server, "service_actions", fails(2, _Server.service_actions))
    server = ProbeServer("127.0.0.1", 0, NoMetrics(), list, list)
    try:
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=60) as answer:
                assert answer.status == 200
    finally:
        server.close()

    assert [line["task"] for line in logged if line["event"] == "task-failed"] == ["probes"] * 2


class NoMetrics(Collector):
    def collect(self) -> Any:
        return []


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - threads report it
            await asyncio.sleep(0.005)
