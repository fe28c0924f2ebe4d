"""A region and a site on real brokers, rendered from a topology, with certificates of real authorities and the region's service."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from tests.cli.command_output import CommandOutput
from tests.enrolment.machines import Machine
from tests.topology.conftest import Running, prepare
from typer.testing import CliRunner

from hedgerow import configfile
from hedgerow.cli.main import app
from hedgerow.enrolment.claim import Claim, read_claim
from hedgerow.enrolment.renewal import run_node
from hedgerow.pki.folder import Pki
from hedgerow.region.collector.service import RegionService
from hedgerow.region.config import RegionConfig, load
from hedgerow.region.enrolment.store import PENDING, EnrolmentStore, StoredClaim, StoredMachine
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.telemetry import logs
from hedgerow.topology.brokers import enrolment_url
from hedgerow.topology.certify import certify

PATIENCE_S = 90.0

TOPOLOGY = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  enrolment_port: PORT
  roles: {collector: [collector], viewer: [wall]}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
limits: {enrolment_connections: 64}
sites:
  hall:
    broker: mqtts://localhost:PORT
    enrolment_port: PORT
    enrols: true
    nodes: {NODES}
    roles: {collector: [local]}
  yard:
    broker: mqtts://localhost:PORT
    nodes: {filed: , free: {enrols: true}}
"""


def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> Any:
    """Wait until a condition holds, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out: {what()}"
        time.sleep(0.02)
    return found


class EnrollingEstate(Running):
    """Brokers whose certificates come from `pki apply`, and the region's service in a thread.

    Attributes:
        honest, honest_claim: a machine that attacks must not harm, and its claim.
    """

    honest: Any = None
    honest_claim: Any = None

    def certify_all(self) -> None:
        self.pki = Pki(self.folder / "pki", lambda: datetime.now(UTC))
        certify(self.described.topology, self.pki, timedelta(days=30), init=True)
        self.region_file = self.out / "north/service/region.yaml"
        self.sections: dict[str, Any] = {"metrics": {"port": 0}, "ping": {"every_s": None}}
        self._thread: threading.Thread | None = None

    def configure(self, **enrolment: Any) -> None:
        """Change the section `enrolment` of the region's configuration."""
        self.sections["enrolment"] = enrolment

    @property
    def config(self) -> RegionConfig:
        config = load(self.region_file)
        changed = {}
        for name, section in self.sections.items():
            there = getattr(config, name)
            changed[name] = type(there).model_validate({**there.model_dump(), **section})
        if "enrolment" in changed:
            changed["enrolment"] = changed["enrolment"].anchored(self.region_file.parent)
        return config.model_copy(update=changed)

    def start_service(self) -> None:
        """Start the region's service, and wait until it collects."""
        began, failed = threading.Event(), []
        logs.configure("warning", "json")  # to stderr: stdout is that of the commands
        config = self.config

        def run() -> None:
            async def main() -> None:
                self._loop = asyncio.get_running_loop()
                self.service = RegionService(config)
                await self.service.run(began.set)

            try:
                asyncio.run(main())
            except BaseException as error:
                failed.append(error)
                raise

        self._thread = threading.Thread(target=run)
        self._thread.start()
        until(lambda: began.is_set() or failed)
        assert not failed, failed
        until(lambda: self.service.counts.connected)

    def stop_service(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self.service.stop)
            self._thread.join(PATIENCE_S)
            self._thread = None

    def close(self) -> None:
        with suppress(RuntimeError):
            self.stop_service()
        structlog.reset_defaults()
        super().close()

    def hedgerow(self, *args: object, input: str | None = None) -> CommandOutput:
        """Run a command line in this process."""
        done = CliRunner().invoke(app, [*map(str, args)], input=input, prog_name="hedgerow", terminal_width=200)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return CommandOutput(done.exit_code, done.stdout, done.stderr)

    def operator(self, *args: object) -> CommandOutput:
        """Run a command that reads the region's store, or requests something of its service."""
        return self.hedgerow(*args, "--config", self.region_file)

    def claim(self, site: str = "hall", *args: object) -> Claim:
        """Make a claim."""
        return read_claim(self.operator("claim", "create", site, *args, "--json").json["token"])

    def database(self, *, alongside: bool = False) -> closing[Database]:
        return closing(open_database(self.config.store.url, write=False, alongside=alongside))

    def add_claim(
        self, site: str = "hall", *, uses: int = 1, hours: float = 1.0, revoked: bool = False, **labels: str
    ) -> Claim:
        """Make a claim in the store itself; one with no hours has expired."""
        root = self.pki.root.certificate()
        place = self.described.topology.sites["hall"]
        claim = Claim.new("north", site, enrolment_url(place) or "", root)
        now, by = time.time(), Actor("test")
        stored = StoredClaim(
            claim.id,
            site,
            None,
            claim.public.hex(),
            uses,
            0,
            now,
            now + hours * 3600,
            labels,
            by,
            now if revoked else None,
        )
        with closing(open_database(self.config.store.url, write=False, alongside=True)) as database:
            EnrolmentStore(database).add_claim(stored)
        return claim

    def add_machine(self, machine: Machine, claim: str, site: str = "hall") -> None:
        """Store a machine as one that has asked."""
        now = time.time()
        stored = StoredMachine(machine.fingerprint, site, claim, machine.csr(), {}, PENDING, now, now)
        with closing(open_database(self.config.store.url, write=False, alongside=True)) as database:
            EnrolmentStore(database).add_machine(stored)

    @property
    def counts(self) -> dict[str, float]:
        """Requests to enrol by outcome, as /metrics has them."""
        service = self.service.collector._enrolment
        assert service is not None
        return {labels["outcome"]: count for _, _, labels, count in service.gauges()}

    def machines(self, state: str | None = None) -> dict[str, Any]:
        """Return the machines in the store by fingerprint."""
        with self.database() as database:
            return {one.fingerprint: one for one in EnrolmentStore(database).machines(state)}

    def is_up(self, node: str) -> bool:
        """Whether a node, REGION/SITE/NODE, reports to the region that it is well."""
        return any(one["node"] == node for one in self.operator("nodes", "--health", "ok", "--json").json)

    def refused(self) -> dict[tuple[str, str], int]:
        """Return how many messages `region status` shows as refused, by site and reason."""
        from hedgerow.region.store.queries import status

        with self.database() as database:
            return {(one["site"], one["reason"]): one["count"] for one in status(database, time.time())["refused"]}


@contextmanager
def enrolling_estate(
    nodes: str = "[gate, dock, belt, lamp, door]",
    brokers: tuple[str, ...] = ("north", "hall"),
    at_site: bool = False,
    topology: str = TOPOLOGY,
    **enrolment: Any,
) -> Iterator[EnrollingEstate]:
    """Start the brokers and the service.

    Args:
        at_site: whether the service runs at the site hall, against its broker.
        topology: text of the topology; {NODES}: the nodes of the hall.
    """
    folder = Path(tempfile.mkdtemp(prefix="enrol-"))
    made = prepare(folder, topology.replace("{NODES}", nodes), EnrollingEstate)
    assert isinstance(made, EnrollingEstate)
    try:
        if enrolment:
            made.configure(**enrolment)
        if at_site:
            own = made.folder / "pki/hall/issued/local"
            tls = {"ca_file": own / "trust.crt", "cert_file": own / "tls.crt", "key_file": own / "tls.key"}
            made.sections["broker"] = {"url": made.described.topology.sites["hall"].broker, "tls": tls}
            text = made.region_file.read_text("utf-8")
            for name, path in tls.items():
                text = re.sub(rf"    {name}: .*", f"    {name}: {path}", text)
            made.region_file.write_text(text)
        for name in brokers:
            made.start(name)
        made.start_service()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def running(state: Path) -> AsyncIterator[None]:
    """Run a node as `hedgerow node run` does, which asks every second."""
    path = state / "node.yaml"
    task = asyncio.create_task(run_node(configfile.load(path), path, lambda: None, every_s=1.0))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
