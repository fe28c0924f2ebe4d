"""A whole node, and the tools, over WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trial_site import Site

from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.diagnosis import diagnose
from hedgerow.cli.base.client import payload_of
from hedgerow.cli.base.connection import connected
from hedgerow.config import BrokerSection
from hedgerow.testing import Mosquitto


@pytest.fixture
async def websocket_site(tmp_path: Path, held_port: int) -> AsyncIterator[tuple[Site, str]]:
    config = [f"listener {held_port}", "protocol websockets", "allow_anonymous true"]
    with Mosquitto(config=config) as broker:
        async with Site(broker.port, tmp_path) as site:
            yield site, f"ws://127.0.0.1:{held_port}/mqtt"


async def test_frames_results_and_commands_go_over_websocket(websocket_site: tuple[Site, str]) -> None:
    site, url = websocket_site
    async with site.node(broker={"url": url}) as node:
        await site.frames(range(50))
        await site.wait_results(50)
        assert (await site.command("ping"))["ok"]
        assert node.health().state == "ok"

    assert site.numbers() == list(range(50))


async def test_tools_use_it_too(websocket_site: tuple[Site, str]) -> None:
    _, url = websocket_site
    async with connected(BrokerSection(url=url)) as client:
        await client.subscribe("a", qos=1)
        await client.publish("a", b"x", qos=1)
        assert payload_of(await anext(aiter(client.messages))) == b"x"
    assert await diagnose(ClientOptions(url=url)) is None
