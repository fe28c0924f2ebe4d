"""Distribution of a model to the nodes of one site, from peers, the region or a mirror: bytes and CPU time.

    python -m benchmarks.fleet.distribution nodes|region|web FILE     # one of its processes, configured by FILE

Uses real brokers, a real bridge and a real web server; a proxy between site and region counts bytes. Run it with
`make bench ONLY=distribution`.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import logging
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import structlog
import trustme

from benchmarks.harness.cells import Cell, Options, cell
from benchmarks.harness.process import ended
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.origins.origins import open_origins
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.config import OriginSection
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.manifest import File
from hedgerow.testing import Mosquitto, processes
from hedgerow.testing.faults import FaultProxy
from hedgerow.topics import Address

REGION: Final = "plant"
SITE: Final = "hall"
_WAN_DELAY_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where nodes fetch a model from.

    Attributes:
        neighbours: whether they serve each other's chunks.
        web: location of a web server with the repository, which they try first: `region`, `site`, or `down`; empty:
            none is configured.
    """

    neighbours: bool
    web: str = ""


DISTRIBUTIONS: Final = {
    "neighbours": Distribution(True),
    "region": Distribution(False),
    "region_each": Distribution(False, "region"),
    "mirror": Distribution(False, "site"),
    "mirror_away": Distribution(False, "down"),
    "mirror_away_neighbours": Distribution(True, "down"),
}
DESCRIPTIONS: Final = {
    "neighbours": "from peers",
    "region": "from the region, with chunks received by all nodes",
    "region_each": "from a web server in the region, each node separately",
    "mirror": "from a mirror at the site",
    "mirror_away": "with the mirror down",
    "mirror_away_neighbours": "from peers, with the mirror down",
}


@dataclass(slots=True)
class Cost:
    """Cost of a step: bytes, messages of the site's broker, and CPU time in milliseconds."""

    wan_bytes: int = 0
    lan_bytes: int = 0
    messages: int = 0
    nodes_ms: float = 0.0
    broker_ms: float = 0.0
    web_ms: float = 0.0
    region_ms: float = 0.0
    took_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(slots=True)
class Site:
    """A region and one site, with their counters."""

    wan: list[FaultProxy]
    lan: list[FaultProxy]
    processes: dict[str, psutil.Process]
    broker: dict[str, int] = field(default_factory=dict)
    ticks: int = 0

    def on_messages(self, messages: list[Message]) -> None:
        """Store the broker's counters ($SYS)."""
        for message in messages:
            name = message.topic.removeprefix("$SYS/broker/")
            if name == "uptime":
                self.ticks += 1
            else:
                self.broker[name] = int(bytes(message.payload))

    async def now(self) -> Cost:
        """Return the total cost so far, with current counters of the broker."""
        before = self.ticks
        async with asyncio.timeout(30):
            while self.ticks < before + 2:  # noqa: ASYNC110 - the broker publishes them once a second
                await asyncio.sleep(0.05)
        wan, lan = (sum(len(proxy.up) + len(proxy.down) for proxy in each) for each in (self.wan, self.lan))
        bridged = len(self.wan[0].up) + len(self.wan[0].down)
        total = self.broker["bytes/received"] + self.broker["bytes/sent"]
        times = {name: sum(one.cpu_times()[:2]) * 1e3 for name, one in self.processes.items()}
        return Cost(
            wan,
            lan + total - bridged,
            self.broker["messages/received"] + self.broker["messages/sent"],
            times["nodes"],
            times["broker"],
            times.get("web", 0.0),
            times["region"],
            time.monotonic(),
        )


def difference(after: Cost, before: Cost) -> Cost:
    """Return the cost between two totals."""
    return Cost(*(getattr(after, name) - getattr(before, name) for name in Cost.__slots__))


@asynccontextmanager
async def _site(
    distribution: Distribution, folder: Path, nodes: Sequence[str], file: File
) -> AsyncIterator[tuple[Site, Any]]:
    """Run a site whose nodes wait for their steps."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_context
        upper = enter(Mosquitto(config=["max_inflight_messages 1000"]))
        bridge = enter(FaultProxy("127.0.0.1", upper.port, record=True))
        bridge.delay(_WAN_DELAY_S)
        lower = enter(Mosquitto(config=["sys_interval 1", *_bridge(bridge.port)]))
        site = Site([bridge], [], {"broker": psutil.Process(lower.pid)})
        repository = str(folder / "repository")
        site.processes["region"], _ = _start(enter, "region", folder, {"url": upper.url, "repository": repository})
        sources = []
        if distribution.web:
            sources = [_start_web(enter, distribution, folder, site)]
        client = Client(ClientOptions(url=lower.url, client_id="observer"), site.on_messages)
        await stack.enter_async_context(client)
        kinds = ("bytes/received", "bytes/sent", "messages/received", "messages/sent", "uptime")
        await client.subscribe({f"$SYS/broker/{kind}": 0 for kind in kinds})
        client.resume()
        job = {
            "url": lower.url,
            "folder": str(folder / "nodes"),
            "nodes": list(nodes),
            "neighbours": distribution.neighbours,
            "sources": sources,
            "file": file.model_dump(mode="json"),
        }
        site.processes["nodes"], pipe = _start(enter, "nodes", folder, job)
        yield site, pipe


def _start_web(enter: Any, distribution: Distribution, folder: Path, site: Site) -> dict[str, str]:
    """Start a web server for the repository. Returns: its entry in the nodes' `fleet: sources`."""
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "web.pem")
    job = {"certificate": str(folder / "web.pem"), "repository": str(folder / "repository")}
    process, pipe = _start(enter, "web", folder, job)
    proxy = enter(FaultProxy("127.0.0.1", int(pipe.first["port"]), record=True))
    if distribution.web == "region":
        proxy.delay(_WAN_DELAY_S)
        site.wan.append(proxy)
    else:
        site.lan.append(proxy)
    if distribution.web == "down":
        proxy.cut()
    else:
        site.processes["web"] = process
    return {"url": f"https://127.0.0.1:{proxy.port}", "ca_file": str(folder / "ca.pem")}


class Pipe:
    """Connection to a process that replies to each line with a line; `first` is the line it printed when ready."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.first = self._read()

    def request(self, value: Any) -> Any:
        """Send a value and return the reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark exited; see its output above")
        return json.loads(line)


def _start(enter: Any, role: str, folder: Path, job: dict[str, Any]) -> tuple[psutil.Process, Pipe]:
    path = folder / f"{role}.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "benchmarks.fleet.distribution", role, str(path)]
    process = processes.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    enter(ended(process))
    return psutil.Process(process.pid), Pipe(process)


def _bridge(port: int) -> list[str]:
    base = f"hedgerow/v1/{REGION}/{SITE}"
    return [
        "max_inflight_messages 1000",
        "connection region",
        f"address 127.0.0.1:{port}",
        "bridge_protocol_version mqttv50",
        f"remote_clientid bridge/{SITE}",
        "restart_timeout 1",
        f"topic {base}/+/blob/ask/# out 1",
        f"topic {base}/~/blob/# in 1",
    ]


async def measure(distribution: Distribution, folder: Path, steps: Sequence[int], size: int) -> list[Cost]:
    """Measure fetches of a file.

    Args:
        steps: number of nodes that fetch it at the same time, step by step.
        size: of the file, bytes.
    Returns: the cost of each step.
    """
    repository = folder / "repository" / "blobs" / "sha256"
    (folder / "model").write_bytes(os.urandom(size))
    file = describe_file(folder / "model", "model")
    content, offset = (folder / "model").read_bytes(), 0
    for chunk in file.chunks:
        name = chunk.digest.removeprefix("sha256:")
        (repository / name[:2]).mkdir(parents=True, exist_ok=True)
        (repository / name[:2] / name).write_bytes(content[offset : offset + chunk.size])
        offset += chunk.size
    names = [f"n{number}" for number in range(sum(steps))]
    costs = []
    async with _site(distribution, folder, names, file) as (site, pipe):
        for step in steps:
            fetching, names = names[:step], names[step:]
            before = await site.now()
            took_s = (await asyncio.to_thread(pipe.request, fetching))["took_s"]
            cost = difference(await site.now(), before)
            cost.took_s = took_s
            costs.append(cost)
    return costs


def run(options: Options) -> list[Cell]:
    """Each distribution: all nodes of a site at once and then one more; one node and then the others."""
    size, site, keys = 8 << 20, 10, list(DISTRIBUTIONS)
    if options.smoke:
        size, site, keys = 1 << 18, 2, ["mirror_away_neighbours"]  # which uses all parts
    cells = []
    for key in keys:
        costs: dict[str, list[Cost]] = {"at_once": [], "late": [], "waves": []}
        for _ in range(options.repeats):
            for steps in ((site, 1), (1, site - 1)):
                with tempfile.TemporaryDirectory() as folder:
                    first, second = asyncio.run(measure(DISTRIBUTIONS[key], Path(folder), steps, size))
                if steps[0] == site:
                    costs["at_once"].append(first)
                    costs["late"].append(second)
                else:
                    costs["waves"].append(first + second)
        cases = {"at_once": f"{site} nodes at once", "late": "one more, later", "waves": f"one node, then {site - 1}"}
        for case, measured in costs.items():
            cells += _cells(f"distribution.{key}.{case}", f"{DESCRIPTIONS[key]}, {cases[case]}", measured, size)
    return cells


def _cells(ident: str, name: str, costs: Sequence[Cost], size: int) -> list[Cell]:
    return [
        cell(f"{ident}.wan", f"{name}: bytes over the WAN ÷ model", [one.wan_bytes / size for one in costs], "cost ×"),
        cell(f"{ident}.lan", f"{name}: bytes in the site ÷ model", [one.lan_bytes / size for one in costs], "cost ×"),
        cell(f"{ident}.messages", f"{name}: messages of the site's broker", [one.messages for one in costs], "messages"),
        cell(f"{ident}.nodes", f"{name}: CPU time of all nodes", [one.nodes_ms for one in costs], "ms"),
        cell(f"{ident}.broker", f"{name}: CPU time of the site's broker", [one.broker_ms for one in costs], "ms"),
        cell(f"{ident}.web", f"{name}: CPU time of the web server", [one.web_ms for one in costs], "ms"),
        cell(f"{ident}.region", f"{name}: CPU time of the region's service", [one.region_ms for one in costs], "ms"),
        cell(f"{ident}.took", f"{name}: until all have fetched it", [one.took_s * 1e3 for one in costs], "ms"),
    ]  # fmt: skip


# Roles, each in its own process


async def _nodes(job: dict[str, Any]) -> None:
    """Run the nodes' model stores; each input line names the nodes that fetch."""
    sections = [OriginSection.model_validate(one) for one in job["sources"]]
    file = File.model_validate(job["file"])
    async with AsyncExitStack() as stack:
        fetchers = {}
        for name in job["nodes"]:
            fetcher = BlobFetcher(
                ClientOptions(url=job["url"], client_id=name),
                Address(REGION, SITE, name),
                BlobStore(Path(job["folder"]) / name, 1 << 30),
                serve_neighbours=job["neighbours"],
                sources=open_origins(sections),
            )
            fetchers[name] = await stack.enter_async_context(fetcher)
        for fetcher in fetchers.values():
            await fetcher.client.wait_connected(60)
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            began = time.monotonic()
            await asyncio.gather(*(fetchers[name].fetch([file]) for name in json.loads(line)))
            print(json.dumps({"took_s": time.monotonic() - began}), flush=True)


async def _region(job: dict[str, Any]) -> None:
    """Serve the region's blob channel."""
    async with BlobServer(ClientOptions(url=job["url"]), REGION, Path(job["repository"])) as server:
        await server.client.wait_connected(60)
        print("{}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


def _serve_web(job: dict[str, Any]) -> None:
    """Serve the repository over HTTPS."""
    handler = functools.partial(_Handler, directory=job["repository"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(job["certificate"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    server.serve_forever()


def main() -> None:
    """Run one of the processes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    role, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if role == "web":
        _serve_web(job)
    else:
        asyncio.run({"nodes": _nodes, "region": _region}[role](job))


if __name__ == "__main__":
    main()
