"""Runs hundreds of complete nodes: real sessions, brokers, bridges, signatures, stores and swaps, with a tiny model.

    python -m benchmarks.fleet.many_nodes FILE     # runs the nodes listed in FILE in one process

A node is an unmodified `hedgerow.node.Node`. Unlike in production, many share a process, and few frames flow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final

import orjson
import psutil  # type: ignore[import-untyped]
import structlog

from benchmarks.harness.process import ended
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.cli.demo.results import model_bytes
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.testing import Mosquitto, processes
from hedgerow.testing.ports import held_port
from hedgerow.topics import EVERY_NODE, Address, Channel
from hedgerow.wire.messages import Command, Reply

REGION: Final = "fleet"
_PATIENCE_S: Final = 900.0
_UP: Final = ("status", "health", "event/#", "result/#", "reply/#", "reported", "blob/ask/#")
_DOWN: Final = ("ack", "command/#", "desired")
_FRAME: Final = b"\0" * 1024
"""256 float32."""


class ManyNodes:
    """A region's service, sites with one broker each, and nodes that have joined the fleet. `async with`.

    Args:
        sites, nodes_a_site: number of sites, and of nodes per site.
        folder: for all files.
        repository: models that the region serves.
        root: root of trust.
        processes: number of processes that share the nodes.
        whole: further nodes, each in its own process, started by `hedgerow node run`.
        frames_every_s: period of a node's frames.
        health_every_s: period of health reports of nodes that share a process; in production 10 s.
    Attributes:
        addresses: of all nodes.
        store: path of the region's store.
    """

    def __init__(
        self,
        sites: int,
        nodes_a_site: int,
        folder: Path,
        repository: Path,
        root: Path,
        *,
        processes: int = 1,
        whole: int = 0,
        frames_every_s: float = 2.0,
        health_every_s: float = 10.0,
    ) -> None:
        self.addresses = [Address(REGION, f"s{n % sites}", f"n{n}") for n in range(sites * nodes_a_site + whole)]
        self.store = str(folder / "region.db")
        self._names = [f"s{n}" for n in range(sites)]
        self._folder = folder
        self._repository = repository
        self._root = root
        self._processes = processes
        self._whole = whole
        self._every_s = frames_every_s
        self._health_every_s = health_every_s
        self._stack = AsyncExitStack()
        self._brokers: dict[str, Mosquitto] = {}
        self._feeders: list[asyncio.Task[None]] = []
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    async def __aenter__(self) -> ManyNodes:
        enter = self._stack.enter_context
        self._region = enter(Mosquitto())
        self._metrics_port = enter(held_port())
        config = {
            "region": {"name": REGION},
            "broker": {"url": self._region.url},
            "store": {"url": self.store},
            "models": {"repository": str(self._repository)},
            "metrics": {"port": self._metrics_port},
        }
        file = self._folder / "region.yaml"
        file.write_text(json.dumps(config))
        self._service = self._start(file, "hedgerow", "region", "run")
        for name in self._names:
            self._brokers[name] = enter(Mosquitto(config=_bridge(name, self._region.port)))
        nodes = [self._node(address) for address in self.addresses]
        shared, alone = nodes[: len(nodes) - self._whole], nodes[len(nodes) - self._whole :]
        for number in range(self._processes):
            file = self._folder / f"host{number}.json"
            nodes_here = [str(path) for path in shared[number :: self._processes]]
            file.write_text(json.dumps({"nodes": nodes_here, "health_every_s": self._health_every_s}))
            self._start(file, "benchmarks.fleet.many_nodes")
        for path in alone:
            self._start(path, "hedgerow", "node", "run")
        for name, broker in self._brokers.items():
            client = Client(ClientOptions(url=broker.url, client_id=f"feed/{name}"), lambda _: None)
            await self._stack.enter_async_context(client)
            self._feeders.append(asyncio.create_task(self._feed(client, name)))
        await self.until(lambda: self._count("SELECT count(*) FROM said WHERE channel = 'reported'") == len(nodes), "all nodes to report")  # fmt: skip
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._feeders:
            task.cancel()
        await asyncio.gather(*self._feeders, return_exceptions=True)
        await self._stack.aclose()

    def _node(self, address: Address) -> Path:
        """Write a node's configuration."""
        config = {
            "node": {
                "region": REGION,
                "site": address.site,
                "name": address.node,
                "state_dir": str(self._folder / "nodes" / address.node),
                "threads": 1,
            },
            "broker": {"url": self._brokers[address.site].url},
            "metrics": {"enabled": False},
            "log": {"level": "error"},
            "fleet": {"root_file": str(self._root)},
            "models": {"door": {"path": "bundle:door", "threads": 1, "streams": 1}},
            "pipelines": {
                "doors": {
                    "subscribe": f"in/{address.node}",
                    "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}],
                }
            },
        }
        file = self._folder / f"{address.node}.yaml"
        file.write_text(json.dumps(config))
        return file

    def _start(self, file: Path, module: str, *words: str) -> psutil.Process:
        with (self._folder / f"{file.stem}.log").open("wb") as log:
            process = processes.start([sys.executable, "-m", module, *words, str(file)], stdout=log, stderr=log)
        self._stack.enter_context(ended(process))
        self._started.append((file.stem, process))
        return psutil.Process(process.pid)

    async def _feed(self, client: Client, site: str) -> None:
        nodes = [address.node for address in self.addresses if address.site == site]
        while True:
            for node in nodes:
                client.publish(f"in/{node}", _FRAME, qos=1)
                await asyncio.sleep(self._every_s / len(nodes))

    def open(self) -> Database:
        """Open the region's store for reading."""
        return open_database(self.store, write=False)

    async def roll_out(self, name: str, version: str, **plan: Any) -> dict[str, Any]:
        """Roll out a version of `door` and wait for the end. Returns: its status, as `rollout status` shows it."""
        from hedgerow.region.rollouts.progress import progress
        from hedgerow.region.rollouts.requests import send_request

        plan = {
            "rollout": name,
            "models": {"door": {"version": version}},
            "soak_s": 1,
            "gate": {"min_frames": 1, "max_slowdown": None},
            "swap": {"probation_s": 1, "min_frames": 1, "max_slowdown": 1000},
            **plan,
        }

        def start() -> None:
            with closing(open_database(self.store, write=False, alongside=True)) as database:
                send_request(
                    database,
                    "rollout-start",
                    {"rollout": name, "plan": plan, "dry_run": False},
                    who="a test",
                    why="a test",
                )

        def status() -> dict[str, Any]:
            with closing(self.open()) as database:
                return progress(database, name, every_node=True) or {}

        await asyncio.to_thread(start)
        await self.until(
            lambda: bool(status()["ended"]),
            lambda: f"the end of {name}: { ({**status(), 'tasks': status()['tasks'][:3]}) }",
        )
        return status()

    async def ping(self) -> list[float]:
        """Send every node a command. Returns: seconds until each reply, sorted."""
        replies: dict[str, float] = {}
        began = time.monotonic()

        def on_messages(messages: list[Message]) -> None:
            for message in messages:
                replies.setdefault(Reply.model_validate_json(bytes(message.payload)).node, time.monotonic() - began)
                client.ack(message)

        client = Client(ClientOptions(url=self._region.url, client_id="pinger"), on_messages)
        async with client:
            await client.wait_connected(10)
            await client.subscribe({Address(REGION, "+", EVERY_NODE).topic(Channel.REPLY, "bench"): 1})
            began = time.monotonic()
            for name in self._names:
                everyone = Address(REGION, name, EVERY_NODE)
                properties = encode_properties(
                    [
                        (Property.CONTENT_TYPE, "application/json"),
                        (Property.RESPONSE_TOPIC, everyone.topic(Channel.REPLY, "bench")),
                        (Property.CORRELATION_DATA, b"bench"),
                    ]
                )
                body = Command(args={}, expires_at=time.time() + 60).model_dump_json().encode()
                client.publish(everyone.topic(Channel.COMMAND, "ping"), body, qos=1, properties=properties)
            await self.until(
                lambda: len(replies) == len(self.addresses),
                lambda: f"replies of {len(self.addresses)} nodes, {len(replies)} received",
            )
        return sorted(replies.values())

    def running(self) -> dict[str, int]:
        """Return the number of nodes per reported version."""
        counts: dict[str, int] = {}
        for reported in self._reported():
            version = ((reported["models"].get("door") or {}).get("model") or {}).get("version", "none")
            counts[version] = counts.get(version, 0) + 1
        return counts

    async def wan_bytes(self) -> int:
        """Return the bytes of chunks that the region has sent to sites."""
        return await asyncio.to_thread(model_bytes, self._metrics_port)

    def cpu_s(self) -> float:
        """Return the CPU time of the region's service so far."""
        times = self._service.cpu_times()
        return float(times.user + times.system)

    async def until(self, condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
        """Wait for a condition.

        Raises: TimeoutError: it is not met within _PATIENCE_S; RuntimeError: a process exited.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not await asyncio.to_thread(condition):
            for name, process in self._started:
                if process.poll() is not None:
                    log = (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} exited with {process.returncode}:\n{log}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"timed out waiting for {what if isinstance(what, str) else what()}")
            await asyncio.sleep(0.25)

    def _reported(self) -> Iterator[dict[str, Any]]:
        with closing(self.open()) as database:
            for (payload,) in database.rows("SELECT payload FROM said WHERE channel = 'reported'"):
                yield orjson.loads(bytes(payload))

    def _count(self, query: str) -> int:
        try:
            with closing(self.open()) as database:
                return int(database.rows(query)[0][0])
        except Exception:  # noqa: BLE001 - the store does not exist yet
            return 0


def _bridge(site: str, port: int) -> list[str]:
    base = f"hedgerow/v1/{REGION}/{site}"
    return [
        "max_inflight_messages 1000",
        "connection region",
        f"address 127.0.0.1:{port}",
        "bridge_protocol_version mqttv50",
        f"remote_clientid bridge/{site}",
        "restart_timeout 1",
        *(f"topic {base}/+/{up} out 1" for up in _UP),
        *(f"topic {base}/+/{down} in 1" for down in _DOWN),
        f"topic {base}/~/blob/# in 1",
    ]


async def _host(files: Sequence[Path], health_every_s: float) -> None:
    """Run nodes until SIGTERM."""
    from hedgerow import configfile
    from hedgerow.node import health
    from hedgerow.node.node import Node

    health.HEALTH_EVERY_S = health_every_s
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(32))
    nodes = [Node(configfile.load(file), file) for file in files]
    running = [asyncio.create_task(node.run()) for node in nodes]
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    for node in nodes:
        node.stop()
    await asyncio.wait(running, timeout=10)


def main() -> None:
    """Run the nodes listed in a file."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    job = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(_host([Path(file) for file in job["nodes"]], job["health_every_s"]))


if __name__ == "__main__":
    main()
