"""A tool's way to the broker."""

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
    """A short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="hr") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("url", ["unix://{folder}/m", "unix://m"])
async def test_a_tool_finds_a_socket_where_a_node_finds_it(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path counts from where the process stands."""
    monkeypatch.chdir(folder)
    with Mosquitto(unix_socket=folder / "m"):
        async with connected(broker_section(url.format(folder=folder), None)) as client:
            await client.publish("a", b"x", qos=1)


async def test_who_is_stopped_while_connecting_ends_and_leaves_nothing_behind(broker: Mosquitto) -> None:
    """At whatever moment it comes: before, with or after the broker's answer."""
    section = BrokerSection(url=broker.url)

    async def for_ever() -> None:
        async for _ in receive_messages(section, ["#"], lambda _: None):
            pass

    before = asyncio.all_tasks()
    for moment in range(100):
        listening = asyncio.create_task(for_ever())
        await asyncio.sleep(moment / 10_000)  # not to wait for anything: to come at another moment each time
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(30):
                await listening
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)

    assert asyncio.all_tasks() == before
