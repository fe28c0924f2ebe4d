"""A region's cost per message by the number of nodes, with real brokers, bridges and sessions, and simulated nodes.

A light node has its own session, gapless numbers, status, and health (once); it receives acknowledgements and replies
to pings, but runs no pipeline and stores nothing on disk.

A small and a large fleet run side by side and are measured at the same time, once acknowledgements are as steady as
results: with the same total rate of results, and with the same rate per node, which is how a fleet grows.
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

import orjson

from benchmarks.harness.cells import Cell, Options, cell, ratio
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outbox import Ack, Number
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.collector.ack_pacing import MAX_DELAY_S
from hedgerow.region.collector.pinger import COMMAND
from hedgerow.testing import Mosquitto, processes
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import Health, Status

REGION = "fleet"
_PATIENCE_S = 240.0
_JSON = encode_properties([(Property.CONTENT_TYPE, "application/json")])


class LightNode:
    """A simulated node.

    Attributes:
        sent: results published.
        acked: highest number that the region has acknowledged.
        pings: replied to.
    """

    def __init__(self, address: Address, url: str) -> None:
        self.address = address
        self.sent = 0
        self.acked = 0
        self.pings = 0
        self.client = Client(ClientOptions(url=url, client_id=f"light/{address}"), self._receive)

    async def start(self) -> None:
        """Subscribe, and publish status and health."""
        filters = {self.address.topic(Channel.ACK): 1, self.address.topic(Channel.COMMAND, COMMAND): 1}
        await self.client.subscribe(filters)
        await self.client.wait_connected(60)
        status = Status(state="online", session="s", node=str(self.address), version="0", at=time.time())
        self.client.publish(self.address.topic(Channel.STATUS), status.encode(), qos=1, retain=True, properties=_JSON)
        health = Health(node=str(self.address), session="s", at=time.time(), uptime_s=1, state="ok")
        self.client.publish(self.address.topic(Channel.HEALTH), health.encode(), properties=_JSON)

    def send(self) -> None:
        """Publish a result."""
        self.sent += 1
        now = time.time()
        frame = {"id": f"f{self.sent}", "stream": "door", "topic": "door", "sequence": self.sent, "captured_at": now}
        body = {"schema": "hedgerow.result/1", "id": f"f{self.sent}", "at": now, "frame": frame, "result": "x" * 200}
        number = str(Number("epoch", 0, self.sent))
        properties = _JSON + encode_properties([(Property.USER, ("number", number))])
        self.client.publish(
            self.address.topic(Channel.RESULT, "doors"), json.dumps(body).encode(), qos=1, properties=properties
        )

    def _receive(self, messages: list[Message]) -> None:
        for message in messages:
            if (reply_to := message.properties.response_topic) is not None:
                self.pings += 1
                properties = encode_properties(
                    [(Property.CORRELATION_DATA, message.properties.correlation_data or b"")]
                )
                self.client.publish(
                    reply_to, orjson.dumps({"value": {"at": time.time()}}), qos=1, properties=properties
                )
            else:
                self.acked = max(self.acked, Ack.decode(message.payload).through.get(0, 0))
            self.client.ack(message)


class Fleet:
    """Sites with one broker each, bridged to a region's broker, light nodes, and a collector. `async with`."""

    def __init__(self, sites: int, nodes_a_site: int, folder: Path, **quotas: float) -> None:
        self.nodes: list[LightNode] = []
        self._quotas = quotas
        self._sites = sites
        self._nodes_a_site = nodes_a_site
        self._folder = folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        enter = self._stack.enter_context
        region = enter(Mosquitto())
        self.region_port, self.site_ports = region.port, list[int]()
        self.store = self._folder / "region.db"
        config = {
            "region": {"name": REGION},
            "broker": {"url": region.url},
            "store": {"url": str(self.store)},
            "quotas": self._quotas,
            "metrics": {"enabled": False},
        }
        file = self._folder / "region.yaml"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "hedgerow", "region", "run", str(file)]
        self._start(command)
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
            self.site_ports.append(broker.port)
            for node in range(self._nodes_a_site):
                light = LightNode(Address(REGION, f"s{site}", f"n{node}"), broker.url)
                await self._stack.enter_async_context(light.client)
                self.nodes.append(light)
        for light in self.nodes:
            await light.start()
        # A new node is pinged within a second, then once a minute.
        await self._until(lambda: all(node.pings for node in self.nodes), "pings to all nodes")
        await self._until(
            lambda: self.count("node WHERE answered_at IS NOT NULL") == len(self.nodes), "all replies to be stored"
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _start(self, command: Sequence[str]) -> None:
        self._collector = processes.start(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._stack.callback(self._end)

    def _end(self) -> None:
        self._collector.kill()
        self._collector.wait()

    @property
    def collector_pid(self) -> int:
        """Process id of the collector."""
        return self._collector.pid

    async def keep_sending(self, per_s: float) -> None:
        """Publish results from the nodes in turns, until cancelled."""
        began, number = time.monotonic(), 0
        while True:
            self.nodes[number % len(self.nodes)].send()
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))

    @property
    def sent(self) -> int:
        """Results published so far."""
        return sum(node.sent for node in self.nodes)

    async def send(self, results: int, per_s: float) -> None:
        """Publish this many results from the nodes in turns, and wait until all are acknowledged."""
        began = time.monotonic()
        for number in range(results):
            self.nodes[number % len(self.nodes)].send()
            ahead_s = began + number / per_s - time.monotonic()
            if ahead_s > 0.01:
                await asyncio.sleep(ahead_s)
        await self._until(lambda: all(node.acked == node.sent for node in self.nodes), "all acknowledgements")

    def cpu_s(self) -> float:
        """Return the collector's CPU time by the scheduler's clock, because psutil counts in hundredths of a second."""
        threads = Path(f"/proc/{self._collector.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def count(self, table: str) -> int:
        """Return the number of rows of a table of the store."""
        try:
            with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as database:
                return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.Error:  # not created yet
            return 0

    async def _until(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():  # type: ignore[operator]
            if self._collector.poll() is not None:
                raise RuntimeError(f"the collector exited with {self._collector.returncode}")
            if time.monotonic() > deadline:
                behind = sum(node.sent - node.acked for node in self.nodes)
                raise TimeoutError(f"timed out waiting for {what}; {behind} results are not acknowledged")
            await asyncio.sleep(0.05)


async def costs(options: Options) -> dict[str, dict[int, list[float]]]:
    """Return the collector's CPU time per result, in µs, by load and number of nodes."""
    sizes = ((2, 2), (3, 4)) if options.smoke else ((1, 10), (50, 20))
    warmup_s, seconds, together, each = (1.0, 0.5, 200.0, 20.0) if options.smoke else (MAX_DELAY_S, 4.0, 600.0, 1.0)
    costs_us: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            fleets = []
            for sites, nodes in sizes:
                fleet_folder = Path(folder) / str(sites)
                fleet_folder.mkdir()
                fleets.append(await stack.enter_async_context(Fleet(sites, nodes, fleet_folder)))
            for load, rates in (
                ("together", [together for _ in fleets]),
                ("each", [each * len(fleet.nodes) for fleet in fleets]),
            ):
                costs_us[load] = {len(fleet.nodes): [] for fleet in fleets}
                async with asyncio.TaskGroup() as group:
                    loads = [
                        group.create_task(fleet.keep_sending(rate)) for fleet, rate in zip(fleets, rates, strict=True)
                    ]
                    await asyncio.sleep(warmup_s)
                    for _ in range(options.repeats):
                        before = [(fleet.cpu_s(), fleet.sent) for fleet in fleets]
                        await asyncio.sleep(seconds)
                        for fleet, (cpu_s, sent) in zip(fleets, before, strict=True):
                            cost_us = (fleet.cpu_s() - cpu_s) / (fleet.sent - sent) * 1e6
                            costs_us[load][len(fleet.nodes)].append(cost_us)
                    for task in loads:
                        task.cancel()
            for fleet in fleets:
                await fleet.send(0, 1)
    return costs_us


def run(options: Options) -> list[Cell]:
    """10 and 1,000 nodes: 600 results per second in total, and one per second each."""
    costs_us = asyncio.run(costs(options))
    cells = []
    for load, what in (("together", "600 results/s in total"), ("each", "one result/s each")):
        few, many = costs_us[load].values()
        cells += [
            cell(f"fleet.{load}.cpu.{nodes}", f"{nodes:,} nodes, {what}: collector's CPU time per result", values, "µs")
            for nodes, values in costs_us[load].items()
        ]
        name = f"most nodes ÷ fewest, {what}: CPU time per result"
        cells.append(ratio(f"fleet.{load}.many_per_few", name, many, few, unit="cost ×"))
    return cells
