"""Runs a region and its sites as processes on this machine, from one topology.

    sensors ──▶ site broker ──▶ nodes ──▶ site broker ══ bridge, TLS ══▶ WAN ══▶ region's broker ──▶ region's service

The WAN is simulated by a TCP proxy between each site's bridge and the region's broker. Everything else is as in production:
brokers, access lists and nodes' configurations are rendered, and every client has a certificate.
"""

from __future__ import annotations

import asyncio
import getpass
import io
import os
import re
import shutil
import signal
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
_CERTIFICATE_LIFE: Final = timedelta(days=1)

Log = Callable[[str], None]


def silent(text: str) -> None:
    """Log nothing."""


@dataclass
class SiteProcesses:
    """A site.

    Attributes:
        broker: an operator's connection to its broker, by certificate.
        sensors: the local sensors' connection to its broker.
        wan: proxy between its bridge and the region's broker.
        health: each node's last health report, by name.
    """

    name: str
    nodes: tuple[Address, ...]
    broker: BrokerSection
    sensors: BrokerSection
    wan: FaultProxy
    health: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pipelines(self) -> list[dict[str, Any]]:
        """Return its nodes' pipelines, from their last health reports."""
        return [each for health in self.health.values() for each in health.get("pipelines", {}).values()]


class DemoProcesses:
    """A region and its sites as processes. `with` starts and stops them.

    Args:
        folder: for all files; already holds the base file. Files of an earlier demo are deleted.
        template: file name of the topology in `templates/`, with $REGION_PORT, $SITES and $USER to fill in, whose region has
            a collector named `collector`.
        sites: names of each site's nodes, by site.
        log: called with each step.
        node: settings to add to every node's configuration.
        region: settings to add to the configuration of the region's service.
        skipped: pipelines that the template names and the base file lacks.
        enrols: whether nodes enrol; then they have no certificates, and are not started.
    Attributes:
        region_file: configuration of the region's service.
        store: the service's store, an SQLite file.
    """

    def __init__(
        self,
        folder: Path,
        template: str,
        sites: Mapping[str, Sequence[str]],
        log: Log,
        *,
        node: Mapping[str, Any] | None = None,
        region: Mapping[str, Any] | None = None,
        skipped: Collection[str] = (),
        enrols: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.sites: list[SiteProcesses] = []
        self.region_file = self.folder / "region.yaml"
        self.store = self.folder / "region.db"
        self._template = template
        self._node_names = sites
        self._log = log
        self._node_settings = node or {}
        self._region_settings = region or {}
        self._skipped = skipped
        self._enrols = enrols
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> DemoProcesses:
        try:
            self._start_all()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start_all(self) -> None:
        for old in ("rendered", "pki", "state", "nodes", "logs"):
            shutil.rmtree(self.folder / old, ignore_errors=True)
        for old_file in self.folder.glob("region.db*"):
            old_file.unlink()
        self._log("Rendering configurations of brokers and nodes, and access lists, from topology.yaml…")
        topology = self._render()
        self._log("Issuing certificates: a root, an authority per site, and one certificate per client…")
        self._certify(topology)
        metrics_port = self._reserve_port()
        self._write_region_file(topology, metrics_port)
        self.start_broker(topology.region.name)
        self.start_service()
        for name in topology.sites:
            self._start_site(topology, name)
        self._log(f"Metrics of the region: http://127.0.0.1:{metrics_port}/metrics")
        if self._enrols:
            return
        count = sum(len(site.nodes) for site in self.sites)
        self._log(f"Starting {count} nodes… (logs: {self.folder / 'logs'})")
        for site in self.sites:
            for node in site.nodes:
                self.run(f"node-{site.name}-{node.node}", "node", "run", f"rendered/{site.name}/nodes/{node.node}.yaml")

    def _reserve_port(self) -> int:
        """Reserve a port until the processes end."""
        return self._stack.enter_context(held_port())

    def _render(self) -> Topology:
        from ruamel.yaml import YAML

        from hedgerow.configfile import merge
        from hedgerow.topology import files as rendered_files
        from hedgerow.topology.load import load
        from hedgerow.topology.render import render

        override: dict[str, Any] = {"metrics": {"port": 0}}
        merge(override, self._node_settings)
        sites: dict[str, dict[str, Any]] = {
            name: {
                "broker": f"mqtts://localhost:{self._reserve_port()}",
                "loopback_port": self._reserve_port(),
                "roles": {"operator": ["operator"]},
                "nodes": {node: {"override": override} for node in nodes},
            }
            for name, nodes in self._node_names.items()
        }
        if self._enrols:
            for site in sites.values():
                site |= {"enrolment_port": self._reserve_port(), "enrols": True}
        written = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(sites, written)
        template = files("hedgerow.cli.demo.templates").joinpath(self._template).read_text("utf-8")
        text = Template(without(template, self._skipped)).substitute(
            REGION_PORT=self._reserve_port(),
            SITES=indent(written.getvalue(), "  ").lstrip(),
            USER=getpass.getuser(),
        )
        (self.folder / "topology.yaml").write_text(text, "utf-8")
        loaded = load(self.folder / "topology.yaml")
        out = self.folder / "rendered"
        rendered_files.write(render(loaded), loaded.source, out)
        rendered_files.copy_models(loaded.models, out)
        return loaded.topology

    def _certify(self, topology: Topology) -> None:
        from hedgerow.pki.folder import Pki
        from hedgerow.topology.certify import certify

        certify(topology, Pki(topology.machine.pki, lambda: datetime.now(UTC)), _CERTIFICATE_LIFE, init=True)

    def _write_region_file(self, topology: Topology, metrics_port: int) -> None:
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
        merge(config, self._region_settings)
        self.region_file.write_bytes(encode_json(config))  # JSON is YAML

    def _start_site(self, topology: Topology, name: str) -> None:
        """Start a site's broker, with a proxy in its bridge's connection that can cut it."""
        from hedgerow.config import BrokerSection
        from hedgerow.testing.faults import FaultProxy
        from hedgerow.topology.nodes import tls

        place = topology.sites[name]
        port = int(topology.region.broker.rpartition(":")[2])
        wan = self._stack.enter_context(FaultProxy("127.0.0.1", port))
        conf = self.folder / "rendered" / name / "mosquitto.conf"
        text, count = re.subn(rf"^address localhost:{port}$", f"address localhost:{wan.port}", conf.read_text("utf-8"), flags=re.MULTILINE)  # fmt: skip
        assert count == 1  # noqa: S101 - the template's region is on localhost
        conf.write_text(text, "utf-8")
        self.start_broker(name)
        nodes = tuple(Address(topology.region.name, name, node) for node in place.nodes)
        operator = BrokerSection.model_validate({"url": place.broker, "tls": tls(topology, name, "operator")})
        sensors = BrokerSection(url=f"mqtt://127.0.0.1:{place.loopback_port}")
        self.sites.append(SiteProcesses(name, nodes, operator, sensors, wan))

    def start_service(self) -> None:
        """Start the region's service."""
        self.run("collector", "region", "run", str(self.region_file), until="region-started")

    def start_broker(self, name: str) -> None:
        """Start the broker of a site or the region."""
        from hedgerow.testing.mosquitto import find_mosquitto

        (self.folder / "state" / name / "broker").mkdir(parents=True, exist_ok=True)
        binary = Path(find_mosquitto())  # Debian installs it in a folder that may not be in PATH
        path = f"{binary.parent}:{os.environ.get('PATH', os.defpath)}"
        script = self.folder / "rendered" / name / "broker.sh"
        self._start(f"broker-{name}", ["sh", str(script)], until=" running", environment={"PATH": path})

    def run(self, name: str, *arguments: str, until: str | None = None) -> None:
        """Start `hedgerow ARGUMENTS…` in the folder, to run until the demo ends or stops it.

        Args:
            name: name of its log.
            until: text in its log to wait for; None: do not wait.
        Raises: HedgerowError: it does not start, or a process has exited.
        """
        self._start(name, _hedgerow(*arguments), until=until)

    def begin(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `hedgerow ARGUMENTS…` in the folder, which ends by itself; return the process."""
        return self._popen(name, _hedgerow(*arguments), {})

    def _start(
        self, name: str, command: Sequence[str], until: str | None, environment: Mapping[str, str] | None = None
    ) -> None:
        path = self.log_file(name)
        before = path.stat().st_size if path.exists() else 0
        self._processes[name] = self._popen(name, command, environment or {})
        deadline = time.monotonic() + _START_S
        while until is not None and until not in path.read_bytes()[before:].decode("utf-8", errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise HedgerowError(f"{name} has not started within {_START_S:.0f} s", remedy=f"See {path}.")
            time.sleep(0.02)

    def _popen(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        path = self.log_file(name)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log:
            process = start(
                command,
                cwd=self.folder,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches it only when the demo stops it
            )
        self._stack.callback(end, process)
        return process

    def stop(self, name: str, sig: signal.Signals = signal.SIGTERM) -> None:
        """End a process with a signal, and wait for its end."""
        end(self._processes.pop(name), sig=sig)

    def log_file(self, name: str) -> Path:
        """Return the file with what a process logs."""
        return self.folder / "logs" / f"{name}.log"

    def check(self) -> None:
        """Check that all processes run. Raises: HedgerowError: one has exited."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                last = self.log_file(name).read_text("utf-8", errors="replace")[-600:]
                raise HedgerowError(
                    f"{name} exited with code {process.returncode}:\n{last}", remedy=f"See {self.log_file(name)}."
                )

    async def refresh_health(self, *sites: SiteProcesses) -> None:
        """Read the health of the nodes of these sites, by default of all, at their own brokers, which needs no WAN."""
        from hedgerow.cli.frames.command import send_command

        async def read(site: SiteProcesses, node: Address) -> None:
            with suppress(HedgerowError):
                for reply in await send_command(site.broker, node, "health", {}, 5.0):
                    site.health[node.node] = reply.value or site.health.get(node.node, {})

        await asyncio.gather(*(read(site, node) for site in sites or self.sites for node in site.nodes))

    async def ready(self, stop: asyncio.Event) -> None:
        """Wait until all nodes run all their pipelines and the region knows them, or until `stop` is set.

        Raises: HedgerowError: that takes too long, or a pipeline fails.
        """
        deadline = time.monotonic() + _START_S
        why = "no node replies"
        while time.monotonic() < deadline and not stop.is_set():
            self.check()
            await self.refresh_health()
            states = {}
            for site in self.sites:
                for node in site.nodes:
                    health = site.health.get(node.node, {})
                    states[str(node)] = {name: each["state"] for name, each in health.get("pipelines", {}).items()}
                    if "failed" in states[str(node)].values():
                        raise HedgerowError(
                            f"{node}: {'; '.join(health['reasons'])}", remedy=f"See {self.folder / 'logs'}."
                        )
            why = f"{states}"
            if all(set(each.values()) == {"running"} for each in states.values()) and self._known() == len(states):
                return
            await asyncio.sleep(0.3)
        if not stop.is_set():
            raise HedgerowError(
                f"Not all nodes started within {_START_S:.0f} s: {why}", remedy=f"See {self.folder / 'logs'}."
            )

    def _known(self) -> int:
        """Return the number of nodes that the region knows."""
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10)) as database:
            return int(database.execute("SELECT count(*) FROM node").fetchone()[0])


def _hedgerow(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hedgerow", *arguments]
