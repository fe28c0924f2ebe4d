"""`commit_every_s`: records wait for each other before they are written, and none is confirmed before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus.outbox import Outbox, OutboxError, Record
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.topics import late

HOUR_S = 3600.0
Eventually = Callable[..., Awaitable[None]]


class CountedOutbox(Outbox):
    """An outbox without a link that counts what is written."""

    def __init__(self, path: Path, **more: Any) -> None:
        def publish(*_: Any, **__: Any) -> None:
            raise AssertionError("the link is down")

        super().__init__(path, gap_topic="gaps", late=late, publish=publish, on_event=lambda *_: None, **more)
        self.confirmed: list[int] = []

    def append_numbers(self, numbers: range, size: int = 1) -> None:
        for number in numbers:

            def done(error: OutboxError | None, number: int = number) -> None:
                assert error is None
                self.confirmed.append(number)

            self.append([Record("doors", "out/doors", bytes(size))], [], done)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of records of each commit."""
    counts: list[int] = []
    append = OutboxStore.append

    def counted(self: OutboxStore, records: Any, origins: Any = ()) -> list[int]:
        counts.append(len(records))
        return append(self, records, origins)

    monkeypatch.setattr(OutboxStore, "append", counted)
    return counts


async def test_records_are_written_together_after_the_time_and_confirmed_then(
    tmp_path: Path, commits: list[int], eventually: Eventually
) -> None:
    async with CountedOutbox(tmp_path / "outbox.db", commit_every_s=2.0) as outbox:
        outbox.append_numbers(range(2))
        await asyncio.sleep(0)
        outbox.append_numbers(range(2, 5))
        await eventually(lambda: len(outbox.confirmed) == 5)

    assert outbox.confirmed == [0, 1, 2, 3, 4]
    assert commits == [5]


async def test_nothing_is_confirmed_before_it_is_written(
    tmp_path: Path, commits: list[int], eventually: Eventually
) -> None:
    """A QoS 1 frame is acknowledged only then: a crash before that loses nothing, as the broker sends it again."""
    async with CountedOutbox(tmp_path / "outbox.db", commit_every_s=HOUR_S) as outbox:
        outbox.append_numbers(range(3))
        await asyncio.to_thread(lambda: None)
        assert (outbox.confirmed, commits) == ([], [])
        outbox.hurry()
        await eventually(lambda: len(outbox.confirmed) == 3)
        outbox.append_numbers(range(3, 4))  # at once from now on
        await eventually(lambda: len(outbox.confirmed) == 4)


async def test_closing_writes_what_waits(tmp_path: Path, commits: list[int]) -> None:
    async with CountedOutbox(tmp_path / "outbox.db", commit_every_s=HOUR_S) as outbox:
        outbox.append_numbers(range(3))

    assert commits == [3]
    store = OutboxStore(tmp_path / "outbox.db", max_bytes=1 << 20)
    assert store.entries == 3
    store.close()


async def test_a_full_group_does_not_wait(tmp_path: Path, commits: list[int], eventually: Eventually) -> None:
    """Memory stays bounded, whatever the time."""
    async with CountedOutbox(tmp_path / "outbox.db", commit_every_s=HOUR_S) as outbox:
        outbox.append_numbers(range(5), size=1 << 20)
        await eventually(lambda: len(outbox.confirmed) == 4)

        assert commits == [2, 2]
