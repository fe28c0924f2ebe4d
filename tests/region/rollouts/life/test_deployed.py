"""A node that moves, and is forgotten and admitted, with its results waiting: rendered topology, TLS, bridges, the region's service.

The node is a real outbox with real certificates; it runs no models.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import Gateway
from tests.topology.conftest import TIMEOUT_S, Running, Window, prepare

from hedgerow.region.config import load
from hedgerow.region.rollouts.requests import send_request
from hedgerow.region.store.database.open import open_database
from hedgerow.testing import processes
from hedgerow.topics import Address, Channel

pytestmark = pytest.mark.long

TOPOLOGY = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  roles: {collector: [collector]}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
sites:
  hall:
    broker: mqtts://localhost:PORT
    nodes: [a, b]
  yard:
    broker: mqtts://localhost:PORT
    nodes: [a, b]
"""
A, MOVED = Address("north", "hall", "a"), Address("north", "yard", "b")


class Plant:
    """The brokers, the region's service, and what is in its store."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.config = running.out / "north" / "service" / "region.yaml"
        self.store = Path(load(self.config).store.url)
        self._service: Any = None

    async def start_service(self) -> None:
        with (self.running.folder / "region.log").open("ab") as log:
            command = [sys.executable, "-m", "hedgerow", "region", "run", self.config]
            self._service = await processes.start_async(command, stdout=log, stderr=log)
        await eventually(lambda: self.store.exists() and bool(self.rows("SELECT 1 FROM collector WHERE connected = 1")))

    async def kill_service(self) -> None:
        self._service.kill()
        await self._service.wait()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(self.store)) as database:
                return database.execute(sql).fetchall()
        except sqlite3.OperationalError:  # it is being created
            return []

    def stored(self, node: Address) -> list[int]:
        """Return how often each number of a node is stored."""
        named = f"site = '{node.site}' AND node = '{node.node}'"
        return [count for (count,) in self.rows(f"SELECT count(*) FROM results WHERE {named} GROUP BY epoch, sequence")]

    async def ask(self, verb: str, **args: Any) -> Any:
        def send() -> Any:
            with closing(open_database(str(self.store), write=False, alongside=True)) as database:
                return send_request(database, verb, args, who="eve", why="a test")

        return await asyncio.to_thread(send)

    @asynccontextmanager
    async def node(self, address: Address, outbox: str) -> AsyncIterator[Gateway]:
        """Run a node with its own certificate, and the outbox of any name."""
        own = self.running.folder / "pki" / address.site / "issued" / address.node
        tls = {"ca_file": own / "trust.crt", "cert_file": own / "tls.crt", "key_file": own / "tls.key"}
        url = f"mqtts://localhost:{self.running.port(address.site)}"
        async with Gateway(url, address, self.running.folder, answers=False, file=outbox, tls=tls) as node:
            yield node

    def clear_of(self, window: Window, address: Address) -> bool:
        """Whether the broker has been told to forget what it retained of a node."""
        return all(
            window.seen[address.topic(channel), ""] for channel in (Channel.STATUS, Channel.REPORTED, Channel.DESIRED)
        )


async def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
def plant() -> Iterator[Plant]:
    folder = Path(tempfile.mkdtemp(prefix="life-"))
    running = prepare(folder, TOPOLOGY)
    try:
        for name in ("north", "hall", "yard"):
            running.start(name)
        yield Plant(running)
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_node_moves_with_its_results_waiting_and_is_forgotten_and_admitted(plant: Plant) -> None:
    await plant.start_service()
    async with plant.node(A, "a") as node:
        node.status(session="at hall")
        node.send(20, pipeline="doors")
        await eventually(lambda: len(plant.stored(A)) == 20)
        await plant.ask("node-label", node="hall/a", labels={"ring": "early"})
        await plant.kill_service()
        node.send(20, pipeline="doors")  # they wait: the region does not acknowledge them
        await eventually(lambda: node.entries >= 20)
    await plant.start_service()
    async with plant.running.window("north") as region:
        await plant.ask("node-rename", node="hall/a", site="yard", name="b", new_site=True)
        await eventually(lambda: plant.clear_of(region, A))
        await plant.kill_service()
        async with plant.node(MOVED, "a") as node:
            node.status(session="at yard")
            node.send(10, pipeline="doors")
            await plant.start_service()
            await eventually(lambda: node.entries == 0)
        assert plant.stored(MOVED) == [1] * 50
        # The site's broker still has the old status, and its bridge brings it back with each connection.
        plant.running.stop("hall")
        plant.running.start("hall")
        async with plant.running.window("hall") as hall:
            await plant.running.wait_for_bridge(hall, region, "hedgerow/v1/north/hall")
        assert plant.stored(A) == []
        assert not plant.rows("SELECT 1 FROM node WHERE site = 'hall' AND name = 'a'")

        await plant.ask("node-forget", node="yard/b")
        await eventually(lambda: plant.clear_of(region, MOVED))
        async with plant.node(MOVED, "a") as node:
            node.send(5, pipeline="doors")
            await eventually(lambda: plant.rows("SELECT 1 FROM refusal WHERE reason = 'forgotten' AND count >= 5"))
            assert node.entries == 5
            await plant.ask("node-admit", node="yard/b")
            await eventually(lambda: node.entries == 0)
        assert plant.stored(MOVED) == [1] * 55
    await plant.kill_service()
