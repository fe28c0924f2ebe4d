"""A tool's way to the broker."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hedgerow.cli.base.connection import broker_section, connected
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
