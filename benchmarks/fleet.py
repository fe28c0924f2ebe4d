"""What a message costs a region, by the number of nodes: real brokers, real bridges, real sessions, light nodes.

A light node is simulated: it has its own session, numbers without holes, health and status, and hears acknowledgements, but
runs no pipeline and keeps nothing on a disk.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.cells import Cell, Options, cell, ratio
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outbox import Ack, Number
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import Health, Status

REGION = "fleet"
_PATIENCE_S = 240.0
_JSON = encode_properties([(Property.CONTENT_TYPE, "application/json")])


class LightNode:
    """A node as brokers and region see it.

    Attributes:
        sent: results so far.
        acked: the last number that the region says it has, with all before it.
    """

    def __init__(self, address: Address, url: str) -> None:
        self.address = address
        self.sent = 0
        self.acked = 0
        self.client = Client(ClientOptions(url=url, client_id=f"light/{address}"), self._take)

    async def start(self) -> None:
        """Say that it is there, and listen."""
        await self.client.subscribe({self.address.topic(Channel.ACK): 1})
        await self.client.wait_connected(60)
        said = Status(state="online", session="s", node=str(self.address), version="0", at=time.time())
        self.client.publish(self.address.topic(Channel.STATUS), said.encode(), qos=1, retain=True, properties=_JSON)
        health = Health(node=str(self.address), session="s", at=time.time(), uptime_s=1, state="ok")
        self.client.publish(self.address.topic(Channel.HEALTH), health.encode(), properties=_JSON)

    def send(self) -> None:
        """One result."""
        self.sent += 1
        now = time.time()
        frame = {"id": f"f{self.sent}", "stream": "door", "topic": "door", "sequence": self.sent, "captured_at": now}
        body = {"schema": "hedgerow.result/1", "id": f"f{self.sent}", "at": now, "frame": frame, "result": "x" * 200}
        number = str(Number("epoch", 0, self.sent))
        properties = _JSON + encode_properties([(Property.USER, ("number", number))])
        self.client.publish(
            self.address.topic(Channel.RESULT, "doors"), json.dumps(body).encode(), qos=1, properties=properties
        )

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            self.acked = max(self.acked, Ack.decode(message.payload).through.get(0, 0))
            self.client.ack(message)


class Fleet:
    """Sites with a broker each, bridged to a region's broker, light nodes, and a collector. `async with`."""

    def __init__(self, sites: int, nodes_a_site: int, folder: Path) -> None:
        self.nodes: list[LightNode] = []
        self._sites = sites
        self._nodes_a_site = nodes_a_site
        self._folder = folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        enter = self._stack.enter_context
        region = enter(Mosquitto())
        self.store = self._folder / "region.db"
        config = {
            "region": {"name": REGION},
            "broker": {"url": region.url},
            "store": {"url": str(self.store)},
            "metrics": {"enabled": False},
        }
        file = self._folder / "region.yaml"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "hedgerow", "region", "run", str(file)]
        self._begin(command)
        for site in range(self._sites):
            base = f"hedgerow/v1/{REGION}/s{site}/+"
            bridge = [
                "connection region",
                f"address 127.0.0.1:{region.port}",
                "bridge_protocol_version mqttv50",
                f"remote_clientid bridge/s{site}",
                "restart_timeout 1",
                *(f"topic {base}/{up} out 1" for up in ("status", "health", "event/#", "result/#", "reply/#")),
                *(f"topic {base}/{down} in 1" for down in ("ack", "command/#")),
            ]
            broker = enter(Mosquitto(config=bridge))
            for node in range(self._nodes_a_site):
                light = LightNode(Address(REGION, f"s{site}", f"n{node}"), broker.url)
                await self._stack.enter_async_context(light.client)
                self.nodes.append(light)
        for light in self.nodes:
            await light.start()
        await self._until(lambda: self.count("node") == len(self.nodes), "nodes known")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _begin(self, command: Sequence[str]) -> None:
        self._collector = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._stack.callback(self._end)
        self.process = psutil.Process(self._collector.pid)

    def _end(self) -> None:
        self._collector.kill()
        self._collector.wait()

    async def send(self, results: int, per_s: float) -> float:
        """Have the nodes send so many results, in turns. Returns: the collector's processor time, in seconds."""
        before, began = self._cpu(), time.monotonic()
        for number in range(results):
            self.nodes[number % len(self.nodes)].send()
            ahead_s = began + number / per_s - time.monotonic()
            if ahead_s > 0.01:
                await asyncio.sleep(ahead_s)
        await self._until(lambda: all(node.acked == node.sent for node in self.nodes), "all acknowledged")
        return self._cpu() - before

    def count(self, table: str) -> int:
        """Rows of a table of the store."""
        try:
            with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as database:
                return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.Error:  # not there yet
            return 0

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def _until(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():  # type: ignore[operator]
            if self._collector.poll() is not None:
                raise RuntimeError("the collector has ended")
            if time.monotonic() > deadline:
                behind = sum(node.sent - node.acked for node in self.nodes)
                raise TimeoutError(f"waited in vain for: {what}; {behind} results are not acknowledged")
            await asyncio.sleep(0.05)


async def cost(sites: int, nodes_a_site: int, results: int, per_s: float) -> float:
    """The collector's processor time a result, in µs."""
    with tempfile.TemporaryDirectory() as folder:
        async with Fleet(sites, nodes_a_site, Path(folder)) as fleet:
            return await fleet.send(results, per_s) / results * 1e6


def run(options: Options) -> list[Cell]:
    """The same number of results in the same time, from 10 and from 1,000 nodes."""
    sizes: Sequence[tuple[int, int]] = [(2, 2), (3, 4)] if options.smoke else [(1, 10), (50, 20)]
    results, per_s = (60, 200.0) if options.smoke else (3000, 600.0)
    costs: dict[int, list[float]] = {}
    for _ in range(options.repeats):
        for sites, nodes in sizes:
            costs.setdefault(sites * nodes, []).append(asyncio.run(cost(sites, nodes, results, per_s)))
    cells = [
        cell(f"fleet.cpu.{nodes}", f"{nodes:,} nodes: collector, a result", each, "µs") for nodes, each in costs.items()
    ]
    few, many = costs.values()
    return [*cells, ratio("fleet.many_per_few", "most nodes ÷ fewest: processor time a result", many, few)]
