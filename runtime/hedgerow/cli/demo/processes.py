"""A region and its sites as processes on this machine, all from one topology: what the demos run on.

    sensors ──▶ site broker ──▶ nodes ──▶ site broker ══ bridge, TLS ══▶ WAN ══▶ region's broker ──▶ region's service

The WAN is simulated: a TCP proxy between each site's bridge and the region's broker. All else is as in earnest: brokers,
access lists and nodes' configurations are rendered, everybody has a certificate.
"""

from __future__ import annotations

import asyncio
import getpass
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from string import Template
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

from hedgerow.cli.demo.prepare import without
from hedgerow.errors import HedgerowError
from hedgerow.testing.ports import held_port
from hedgerow.testing.processes import end, start
from hedgerow.topics import Address

if TYPE_CHECKING:
    from hedgerow.config import BrokerSection
    from hedgerow.testing.faults import FaultProxy
    from hedgerow.topology.model import Topology

_START_S: Final = 240.0
_LIFE: Final = timedelta(days=1)

Say = Callable[[str], None]


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass
class SiteProcesses:
    """One site.

    Attributes:
        nodes: addresses of its nodes.
        broker: how an operator of the site reaches its broker, by certificate.
        sensors: how sensors on the broker's machine do.
        wan: between its bridge and the region's broker.
        health: each node's last report of itself, by its name.
    """

    name: str
    nodes: tuple[Address, ...]
    broker: BrokerSection
    sensors: BrokerSection
    wan: FaultProxy
    health: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pipelines(self) -> list[dict[str, Any]]:
        """What its nodes last said of their pipelines."""
        return [each for health in self.health.values() for each in health.get("pipelines", {}).values()]


class DemoProcesses:
    """Region and sites as processes. `with` starts and stops them.

    Args:
        folder: where all files go; what an earlier estate left there is removed. The base file lies there already.
        template: the topology, in `templates/`; $REGION_PORT, $SITES and $USER are filled in here. Its region has a
            collector called `collector`.
        sites: the names of each site's nodes, by the site's.
        say: tells what is going on.
        node: what every node's configuration has beside what the base file says.
        region: what the configuration of the region's service has beside what it must.
        skipped: pipelines that the template names and the base file lacks.
    Attributes:
        region_file: the configuration of the region's service.
        store: its store, an SQLite file.
    """

    def __init__(
        self,
        folder: Path,
        template: str,
        sites: Mapping[str, Sequence[str]],
        say: Say,
        *,
        node: Mapping[str, Any] | None = None,
        region: Mapping[str, Any] | None = None,
        skipped: Collection[str] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.sites: list[SiteProcesses] = []
        self.region_file = self.folder / "region.yaml"
        self.store = self.folder / "region.db"
        self._template = template
        self._names = sites
        self._say = say
        self._node = node or {}
        self._region = region or {}
        self._skipped = skipped
        self._stack = ExitStack()
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> DemoProcesses:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        for old in ("rendered", "pki", "state", "nodes"):
            shutil.rmtree(self.folder / old, ignore_errors=True)
        for old_file in self.folder.glob("region.db*"):
            old_file.unlink()
        self._say("Rendering brokers, nodes and access lists from topology.yaml…")
        topology = self._render()
        self._say("Making certificates: a root, an authority for each site, one for everybody…")
        self._certify(topology)
        metrics_port = self._port()
        self._write_region(topology, metrics_port)
        self._broker(topology.region.name)
        self.run("collector", "region", "run", str(self.region_file), until="region-started")
        for name in topology.sites:
            self._site(topology, name)
        count = sum(len(site.nodes) for site in self.sites)
        self._say(f"Starting {count} nodes… (logs: {self.folder / 'logs'})")
        for site in self.sites:
            for node in site.nodes:
                self.run(f"node-{site.name}-{node.node}", "node", "run", f"rendered/{site.name}/nodes/{node.node}.yaml")
        self._say(f"The region's metrics: http://127.0.0.1:{metrics_port}/metrics")

    def _port(self) -> int:
        """A port that is the estate's until it ends."""
        return self._stack.enter_context(held_port())

    def _render(self) -> Topology:
        from ruamel.yaml import YAML

        from hedgerow.configfile import merge
        from hedgerow.topology import files as rendered_files
        from hedgerow.topology.load import load
        from hedgerow.topology.render import render

        override: dict[str, Any] = {"metrics": {"port": 0}}
        merge(override, self._node)
        sites = {
            name: {
                "broker": f"mqtts://localhost:{self._port()}",
                "loopback_port": self._port(),
                "roles": {"operator": ["operator"]},
                "nodes": {node: {"override": override} for node in nodes},
            }
            for name, nodes in self._names.items()
        }
        written = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(sites, written)
        template = files("hedgerow.cli.demo.templates").joinpath(self._template).read_text("utf-8")
        text = Template(without(template, self._skipped)).substitute(
            REGION_PORT=self._port(),
            SITES=indent(written.getvalue(), "  "),
            USER=getpass.getuser(),
        )
        (self.folder / "topology.yaml").write_text(text, "utf-8")
        described = load(self.folder / "topology.yaml")
        out = self.folder / "rendered"
        rendered_files.write(render(described), described.source, out)
        rendered_files.copy_models(described.models, out)
        return described.topology

    def _certify(self, topology: Topology) -> None:
        from hedgerow.pki.folder import Pki
        from hedgerow.topology.certify import certify

        certify(topology, Pki(topology.machine.pki, lambda: datetime.now(UTC)), _LIFE, init=True)

    def _write_region(self, topology: Topology, metrics_port: int) -> None:
        from hedgerow.configfile import merge
        from hedgerow.topology.nodes import tls
        from hedgerow.wire.messages import encode_json

        config = {
            "region": {"name": topology.region.name},
            "broker": {"url": topology.region.broker, "tls": tls(topology, "region", "collector")},
            "store": {"url": str(self.store)},
            "ping": {"every_s": 2},
            "metrics": {"port": metrics_port},
        }
        merge(config, self._region)
        self.region_file.write_bytes(encode_json(config))  # which is YAML

    def _site(self, topology: Topology, name: str) -> None:
        """Start a site's broker, with its bridge led over a WAN that can be cut."""
        from hedgerow.config import BrokerSection
        from hedgerow.testing.faults import FaultProxy
        from hedgerow.topology.nodes import tls

        place = topology.sites[name]
        port = int(topology.region.broker.rpartition(":")[2])
        wan = self._stack.enter_context(FaultProxy("127.0.0.1", port))
        conf = self.folder / "rendered" / name / "mosquitto.conf"
        text, led = re.subn(rf"^address localhost:{port}$", f"address localhost:{wan.port}", conf.read_text("utf-8"), flags=re.MULTILINE)  # fmt: skip
        assert led == 1  # noqa: S101 - the template's region is on localhost
        conf.write_text(text, "utf-8")
        self._broker(name)
        nodes = tuple(Address(topology.region.name, name, node) for node in place.nodes)
        operator = BrokerSection.model_validate({"url": place.broker, "tls": tls(topology, name, "operator")})
        sensors = BrokerSection(url=f"mqtt://127.0.0.1:{place.loopback_port}")
        self.sites.append(SiteProcesses(name, nodes, operator, sensors, wan))

    def _broker(self, name: str) -> None:
        from hedgerow.testing.mosquitto import find_mosquitto

        (self.folder / "state" / name / "broker").mkdir(parents=True, exist_ok=True)
        binary = Path(find_mosquitto())  # Debian has it where PATH may not lead
        path = f"{binary.parent}:{os.environ.get('PATH', os.defpath)}"
        script = self.folder / "rendered" / name / "broker.sh"
        self._start(f"broker-{name}", ["sh", str(script)], until=" running", environment={"PATH": path})

    def run(self, name: str, *arguments: str, until: str | None = None) -> None:
        """Start `hedgerow ARGUMENTS…` in the folder; it goes on until the estate ends.

        Args:
            name: of its log.
            until: what it logs when it has started, if that is to be waited for.
        Raises: HedgerowError: it, or anything else of the estate, has ended or does not start.
        """
        self._start(name, [sys.executable, "-m", "hedgerow", *arguments], until=until)

    def _start(
        self, name: str, command: Sequence[str], until: str | None, environment: Mapping[str, str] | None = None
    ) -> None:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as log:
            process = start(
                command,
                cwd=self.folder,
                env=os.environ | (environment or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append((name, process))
        self._stack.callback(end, process)
        deadline = time.monotonic() + _START_S
        while until is not None and until not in path.read_text("utf-8", errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise HedgerowError(f"{name} does not start", remedy=f"See {path}.")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises: HedgerowError: a process has ended."""
        for name, process in self._processes:
            if process.poll() is not None:
                path = self.folder / "logs" / f"{name}.log"
                last = path.read_text("utf-8", errors="replace")[-600:]
                raise HedgerowError(f"{name} ended with code {process.returncode}:\n{last}", remedy=f"See {path}.")

    async def ask_all(self) -> None:
        """Get all nodes' health, from their own sites: that needs no WAN."""
        from hedgerow.cli.frames.command import send_command

        async def ask_one(site: SiteProcesses, node: Address) -> None:
            with suppress(HedgerowError):
                for reply in await send_command(site.broker, node, "health", {}, 5.0):
                    site.health[node.node] = reply.value or site.health.get(node.node, {})

        await asyncio.gather(*(ask_one(site, node) for site in self.sites for node in site.nodes))

    async def ready(self, stop: asyncio.Event) -> None:
        """Wait until all nodes run all their pipelines and the region has heard of them, or until told to stop.

        Raises: HedgerowError: that takes too long, or a pipeline fails.
        """
        deadline = time.monotonic() + _START_S
        why = "nobody answers"
        while time.monotonic() < deadline and not stop.is_set():
            self.check()
            await self.ask_all()
            states = {}
            for site in self.sites:
                for node in site.nodes:
                    health = site.health.get(node.node, {})
                    states[str(node)] = {name: each["state"] for name, each in health.get("pipelines", {}).items()}
                    if "failed" in states[str(node)].values():
                        raise HedgerowError(
                            f"{node}: {'; '.join(health['reasons'])}", remedy="See the logs of the nodes."
                        )
            why = f"{states}"
            if all(set(each.values()) == {"running"} for each in states.values()) and self._heard() == len(states):
                return
            await asyncio.sleep(0.3)
        if not stop.is_set():
            raise HedgerowError(f"Not all started within {_START_S:.0f} s: {why}", remedy="See the logs of the nodes.")

    def _heard(self) -> int:
        """How many nodes the region knows of."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10)) as database:
            return int(database.execute("SELECT count(*) FROM node").fetchone()[0])


def model_bytes(metrics_port: int) -> int:
    """Bytes of models that a region's service on this machine has sent to sites, as it says itself."""
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r'^hedgerow_region_blob_bytes(?:_total)?\{of="chunks"\} (\S+)$', text, re.MULTILINE)
    return 0 if found is None else int(float(found[1]))
