"""A site, its region and the region's parent: rendered brokers, certificates by `hedgerow pki apply`, and a real node.

Each level certifies its own clients, so certificates of another level or root are refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.e2e.conftest import until
from tests.fault.test_refusals import Certified, attack, refused_connections
from tests.topology.conftest import TIMEOUT_S, prepare

from hedgerow.pki.folder import Pki
from hedgerow.testing import processes
from hedgerow.topology.certify import certify

TOPOLOGY = """\
parent:
  name: world
  broker: mqtts://localhost:PORT
  regions: [south]
  roles: {viewer: [board], operator: [chief]}
region: {name: north, broker: 'mqtts://localhost:PORT'}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}
"""
NODE = "hedgerow/v1/north/hall/a"
BROKERS = ("world", "north", "hall")


class Applied(Certified):
    """Certified by the function behind `hedgerow pki apply`."""

    def certify_all(self) -> None:
        for folder in ("pki", "foreign"):
            done = certify(
                self.described.topology,
                Pki(self.folder / folder, lambda: datetime.now(UTC)),
                timedelta(days=1),
                init=True,
            )
            assert {one.action for one in done.certificates} == {"issued"}


@pytest.fixture(scope="module")
def levels() -> Iterator[Applied]:
    """Three brokers connected by two bridges. Folder `foreign` has certificates of another root for all names."""
    folder = Path(tempfile.mkdtemp(prefix="levels-"))
    running = prepare(folder, TOPOLOGY, Applied)
    assert isinstance(running, Applied)
    try:
        for name in BROKERS:
            running.start(name)
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def node(levels: Applied) -> AsyncIterator[None]:
    """Run the site's node with its rendered configuration."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
    with (levels.folder / "node.log").open("wb") as log:
        process = await processes.start_async(
            [sys.executable, "-m", "hedgerow", "node", "run", levels.out / "hall/nodes/a.yaml"],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_results_reach_the_parent_and_its_commands_reach_the_node(levels: Applied) -> None:
    """Each client uses its own certificate: camera, node, bridges, and two users of the parent."""
    async with (
        node(levels),
        levels.client("hall", "hall", "camera") as camera,
        levels.client("world", "world", "board") as board,
        levels.client("world", "world", "chief") as chief,
    ):
        await board.subscribe(f"{NODE}/result/doors", qos=1)
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            tasks.create_task(repeatedly(lambda: camera.publish("plant/1/door", b"[1, 2, 3]", qos=1), done))
            async for message in board.messages:
                assert json.loads(message.payload)["node"] == "north/hall/a"
                break
            done.set()

        await chief.subscribe(f"{NODE}/reply/#", qos=1)
        request = Properties(PacketTypes.PUBLISH)
        request.ResponseTopic = f"{NODE}/reply/up/world/1"
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            command = f"{NODE}/command/ping"
            tasks.create_task(repeatedly(lambda: chief.publish(command, b"{}", qos=1, properties=request), done))
            async for message in chief.messages:
                assert message.topic.value == request.ResponseTopic
                break
            done.set()


async def repeatedly(act: Callable[[], Awaitable[object]], done: asyncio.Event) -> None:
    """Act every 0.2 s until done, since messages sent before a bridge is connected may be lost."""
    while not done.is_set():
        await act()
        await asyncio.sleep(0.2)


async def test_each_channel_is_bridged_only_as_far_as_configured(levels: Applied) -> None:
    """Channels for the region end there, and channels of a site do not leave it."""
    up = ("status", "event/gap", "result/doors", "reported", "reply/up/world/1")
    async with levels.window("hall") as hall, levels.window("north") as north, levels.window("world") as world:
        await levels.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
        await levels.wait_for_bridge(hall, world, "hedgerow/v1/north/hall")
        for channel in (*up, "blob/ask/part", "dead/doors", "result/secrets", "reply/1", "reply/up/region/1"):
            await hall.client.publish(f"{NODE}/{channel}", "up", qos=1)
        await hall.client.publish(f"{NODE}/event/end", "up", qos=1)
        for window in (world, north):
            await window.wait_for(f"{NODE}/event/end", "up")

        assert world.topics("up") == {f"{NODE}/{channel}": 1 for channel in (*up, "event/end")}
        assert north.topics("up") == world.topics("up") | {f"{NODE}/blob/ask/part": 1, f"{NODE}/reply/up/region/1": 1}
        await world.client.publish(f"{NODE}/command/ping", "down", qos=1)
        await hall.wait_for(f"{NODE}/command/ping", "down")


async def test_another_region_can_publish_only_as_itself(levels: Applied) -> None:
    """Its bridge is certified by the parent, in the folder of the region that renders the parent."""
    async with levels.window("world") as world, levels.client("world", "world", "south") as south:
        for topic in (f"{NODE}/event/x", "hedgerow/v1/south/barn/a/event/x"):
            await south.publish(topic, "south", qos=1)
        await world.wait_for("hedgerow/v1/south/barn/a/event/x", "south")

        assert world.topics("south") == {"hedgerow/v1/south/barn/a/event/x": 1}


FOREIGN = [
    pytest.param(broker, f"../foreign/{authority}", name, id=f"another root's at {broker}")
    for broker, authority, name in (("world", "world", "north"), ("north", "region", "hall"), ("hall", "hall", "a"))
]
OTHER_LEVEL = [
    pytest.param("world", "region", "hall", id="a site's bridge at the parent"),
    pytest.param("world", "hall", "a", id="a node at the parent"),
    pytest.param("north", "world", "chief", id="a user of the parent at the region"),
    pytest.param("north", "hall", "a", id="a node at the region"),
    pytest.param("hall", "world", "north", id="the region's bridge at a site"),
    pytest.param("hall", "region", "collector", id="the region's service at a site"),
]


@pytest.mark.parametrize(("broker", "authority", "name"), [*FOREIGN, *OTHER_LEVEL])
async def test_a_foreign_certificate_is_refused_on_each_level(
    levels: Applied, broker: str, authority: str, name: str
) -> None:
    """Nothing it publishes is received, and the broker's log has a line for the attempt."""
    before = refused_connections(levels, broker)
    async with levels.window(broker) as window:
        assert await asyncio.to_thread(attack, levels, broker, name, authority) == b""
        await asyncio.to_thread(until, lambda: refused_connections(levels, broker) > before)
        await window.client.publish("end", f"{authority}/{name}", qos=1)
        await window.wait_for("end", f"{authority}/{name}")

        assert window.topics("attack") == {}


def test_pki_apply_issues_exactly_what_the_configurations_need(levels: Applied) -> None:
    """Afterwards no certificate is due, and none is unused."""
    pki = Pki(levels.folder / "pki", lambda: datetime.now(UTC))
    done = certify(levels.described.topology, pki, timedelta(days=1))

    assert {one.action for one in done.certificates} == {"kept"}
    assert (done.created, done.surplus) == ([], [])
