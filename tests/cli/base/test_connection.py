"""Connecting a tool to its broker."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hedgerow.cli.base.connection import broker_section, connected, receive_messages
from hedgerow.config import BrokerSection
from hedgerow.testing import Mosquitto


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="hr") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("url", ["unix://{folder}/m", "unix://m"])
async def test_a_unix_socket_is_found_by_absolute_and_relative_path(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is relative to the working directory, as for a node."""
    monkeypatch.chdir(folder)
    with Mosquitto(unix_socket=folder / "m"):
        async with connected(broker_section(url.format(folder=folder), None)) as client:
            await client.publish("a", b"x", qos=1)


async def test_cancelling_while_connecting_leaves_no_task_behind(broker: Mosquitto) -> None:
    """Whether it is cancelled before, with or after the broker's reply."""
    section = BrokerSection(url=broker.url)

    async def receive() -> None:
        async for _ in receive_messages(section, ["#"], lambda _: None):
            pass

    before = asyncio.all_tasks()
    for moment in range(100):
        listening = asyncio.create_task(receive())
        await asyncio.sleep(moment / 10_000)  # not to wait for anything, but to cancel at another moment each time
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(30):
                await listening
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)

    assert asyncio.all_tasks() == before
