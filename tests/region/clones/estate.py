"""Real brokers and bridges with one region, machines that are copied, and a clock of health reports that tests turn.

What is acknowledged is stored: `Estate.audit` reads the files of the outboxes and the store, with SQLite alone.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from tests.region.clones.brokers import Brokers
from tests.region.clones.disks import FILE, copy_disk, store, waiting
from tests.region.conftest import REGION, eventually

from hedgerow import configfile
from hedgerow.node.node import Node
from hedgerow.region.collector.service import RegionService
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.records import HealthRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.twins.contest import PERIOD_S
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel


class HealthClock:
    """The time by which nodes count their uptime, and the region the pace of their reports."""

    def __init__(self) -> None:
        self.at = 5000.0

    def __call__(self) -> float:
        return self.at

    @contextmanager
    def patched(self, received: Counter[str]) -> Iterator[None]:
        """Let nodes and regions use it. `received` counts the health reports that a store has taken, by run."""
        node_time = SimpleNamespace(
            monotonic=self, time=time.time, strftime=time.strftime, gmtime=time.gmtime, process_time=time.process_time
        )
        clock = self

        class Store(RegionStore):
            def __init__(self, database: Any, config: Any) -> None:
                super().__init__(database, config, clock)

            def apply(self, records: Any) -> Any:
                outcome = super().apply(records)
                received.update(record.session for record in records if isinstance(record, HealthRecord))
                return outcome

        with (
            patch("hedgerow.node.health.time", node_time),
            patch("hedgerow.node.health.FIRST_HEALTH_S", 3600.0),
            patch("hedgerow.region.collector.collector.RegionStore", Store),
        ):
            yield


class Machine:
    """A machine with a disk, on which a node runs.

    Args:
        host: its name; also of the machine's id, unless `machine` is given.
        folder: its disk.
        broker: of its site.
        address: the node's name.
    Attributes:
        had: ids of the results that its outbox has ever had.
        memory: id of its node's run, if that is a copy of a running process with its memory.
    """

    def __init__(self, host: str, folder: Path, broker: Mosquitto, address: Address, *, machine: str = "") -> None:
        self.host, self.folder, self.broker, self.address = host, folder, broker, address
        self.machine = machine or f"machine-{host}"
        self.had: set[str] = set()
        self.memory = ""
        self.node: Node | None = None
        self._made = 0

    @property
    def running(self) -> Node:
        assert self.node is not None
        return self.node

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Node]:
        """Run its node; at the end it stops in order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "node.yaml"
        names = dict(zip(("region", "site", "name"), self.address, strict=True))
        config = {
            "node": {**names, "state_dir": str(self.folder / "state"), "drain_s": 5},
            "broker": {"url": self.broker.url},
            "metrics": {"port": 0},
            "pipelines": {},
        }
        path.write_text(json.dumps(config))
        with (
            patch("hedgerow.node.link.instance.platform.node", lambda: self.host),
            patch("hedgerow.node.link.instance.machine_hash", lambda: self.machine),
            patch("hedgerow.node.link.outbox.machine_hash", lambda: self.machine),
        ):
            node = Node(configfile.load(path), path)
        if self.memory:
            node.session = node._announcer.session = self.memory
        began = asyncio.Event()
        running = asyncio.create_task(node.run(began.set))
        try:
            await eventually(lambda: began.is_set() or running.done())
            if running.done():
                await running
            self.node = node
            self.outbox = await node._outbox.open()
            yield node
        finally:
            self.node = None
            node.stop()
            await running

    async def make(self, count: int = 1) -> set[str]:
        """Store results. Returns: their ids, once they are on its disk."""
        ids = [f"{self.host}-{self._made + n}" for n in range(count)]
        self._made += count
        await store(self.outbox.append, self.address, ids)
        self.had.update(ids)
        return set(ids)

    async def has_reason(self, text: str) -> None:
        """Wait until its node's health has a reason with a text."""
        report = self.running.health
        await eventually(lambda: any(text in reason for reason in report().reasons), lambda: report().reasons)

    @property
    def entries(self) -> int:
        status = self.outbox.status
        return status.entries + status.appending

    def copied_to(
        self,
        host: str,
        folder: Path,
        broker: Mosquitto | None = None,
        *,
        copy: Callable[[Path, Path], Any] = copy_disk,
    ) -> Machine:
        """Return a machine with a copy of this one's disk; its node may run meanwhile."""
        folder.mkdir(parents=True)
        copy(self.folder / "state", folder / "state")
        machine = Machine(host, folder, broker or self.broker, self.address)
        machine.had = waiting(folder / "state" / FILE)
        return machine

    def restore(self, backup: Machine) -> None:
        """Put an earlier copy of the disk in the place of this one. The node must not run."""
        self.had = set()  # in this order, for an audit meanwhile
        self.folder = shutil.copytree(backup.folder, self.folder.with_name(f"{self.host}-restored"))
        self.had = set(backup.had)


class Estate:
    """A region's service with a store of its own, and machines.

    Args:
        brokers: which may be those of other estates too.
        folder: for the store and the disks.
    Attributes:
        url: of the store.
        clock: turned by `periods`.
        received: health reports that the store has, by run.
        machines: whose books `audit` reads.
        pruned: results that the store had until its retention deleted them.
    """

    def __init__(self, brokers: Brokers, folder: Path) -> None:
        self.brokers, self.folder = brokers, folder
        self.url = str(folder / "region.db")
        self.clock = HealthClock()
        self.received: Counter[str] = Counter()
        self.machines: list[Machine] = []
        self.pruned: set[str] = set()

    @asynccontextmanager
    async def service(self, **sections: Any) -> AsyncIterator[RegionService]:
        """Run the region's service, with the health clock for it and the nodes; audit all the time, and in the end."""
        config = RegionConfig.model_validate(
            {
                "region": {"name": REGION, "state_dir": str(self.folder / "service")},
                "broker": {"url": self.brokers.at["region"].url},
                "store": {"url": self.url},
                "ping": {"every_s": None},
                "metrics": {"enabled": False},
                **sections,
            }
        )
        with self.clock.patched(self.received):
            service = RegionService(config)
            running = asyncio.create_task(service.run())
            try:
                await eventually(lambda: service.counts.connected)
                auditing = asyncio.create_task(self._keep_auditing())
                try:
                    yield service
                finally:
                    auditing.cancel()
                    with suppress(asyncio.CancelledError):
                        await auditing
            finally:
                service.stop()
                await running
        self.audit()

    async def _keep_auditing(self) -> None:
        while True:
            await asyncio.to_thread(self.audit)
            await asyncio.sleep(0.2)  # between audits

    def audit(self) -> None:
        """Check that all results that have left an outbox are in the store."""
        left: set[str] = set()
        for machine in list(self.machines):
            folder, had = machine.folder, set(machine.had)
            gone = had - waiting(folder / "state" / FILE) if had else set()
            left |= gone if machine.folder == folder else set()
        lost = left - self.stored().keys() - self.pruned
        assert not lost, f"acknowledged and not stored: {sorted(lost)[:5]}"

    def told(self, address: Address) -> list[str]:
        """Return the kinds of all events about a node."""
        rows = self.rows("SELECT e.kind FROM event e JOIN node n ON n.id = e.node WHERE n.name = ?", address.node)
        return [kind for (kind,) in rows]

    def missing(self, address: Address) -> int:
        """Return how many numbers the region counts as missing or lost."""
        database = open_database(self.url, write=False)
        with closing(database):
            (node,) = [one for one in status(database, time.time())["nodes"] if one["node"] == str(address)]
        return int(node["awaited"]) + int(node["lost"])

    def rows(self, query: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.url}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(query, values).fetchall()

    def stored(self) -> Counter[str]:
        """Return how often each result is in the store, by the id that the test gave it."""
        return Counter(json.loads(payload)["id"] for (payload,) in self.rows("SELECT payload FROM result"))

    def events(self, kind: str, *, of_nodes: bool = False) -> list[dict[str, Any]]:
        """Return what the region has told of a kind of events, or its nodes have."""
        events = [json.loads(payload) for (payload,) in self.rows("SELECT payload FROM event WHERE kind = ?", kind)]
        return [event["detail"] for event in events if (event["session"] != "region") is of_nodes]

    async def age(self, days: float) -> None:
        """Let results and events grow old, and wait until the retention has deleted them all."""
        self.pruned |= self.stored().keys()
        with closing(sqlite3.connect(self.url, timeout=60)) as database:
            for table in ("result", "event"):
                database.execute(f"UPDATE {table} SET received_at = received_at - ?", (days * 86_400,))
            database.commit()
        await eventually(lambda: self.rows("SELECT (SELECT count(*) FROM result) + (SELECT count(*) FROM event)") == [(0,)])  # fmt: skip

    def machine(self, host: str, broker: str, address: Address, **more: Any) -> Machine:
        """Return a new machine with an empty disk."""
        machine = Machine(host, self.folder / host, self.brokers.at[broker], address, **more)
        self.machines.append(machine)
        return machine

    def clone(self, source: Machine, host: str, broker: str = "", **more: Any) -> Machine:
        """Return a machine with a copy of another one's disk."""
        copy = source.copied_to(host, self.folder / host, self.brokers.at[broker] if broker else None, **more)
        self.machines.append(copy)
        return copy

    async def settled(self, *machines: Machine) -> None:
        """Wait until outboxes are empty."""
        await eventually(lambda: not any(one.entries for one in machines), lambda: [one.entries for one in machines])

    async def periods(self, count: int, *machines: Machine) -> None:
        """Let health periods pass: in each, every machine reports once, and its report reaches the region's store."""
        for _ in range(count):
            for machine in machines:
                self.clock.at += PERIOD_S / len(machines)
                await self.report(machine)

    async def report(self, machine: Machine) -> None:
        """Send a health report, as a node does each period, until the region's store has one: QoS 0 may be lost with a link."""
        node, before = machine.running, self.received[machine.running.session]
        report, sent_at = node.health().encode(), 0.0

        def arrived() -> bool:
            nonlocal sent_at
            if node._announcer.connected and time.monotonic() - sent_at > 2.0:
                sent_at = time.monotonic()
                node._announcer.publish(Channel.HEALTH, report)
            return self.received[node.session] > before

        await eventually(arrived, lambda: f"health of {machine.host}")


def shown(estate: Estate, *command: str) -> str:
    """Return what a command of the region prints, as one line."""
    from typer.testing import CliRunner

    from hedgerow.cli.main import app

    done = CliRunner().invoke(app, [*command, "--store", estate.url], terminal_width=400)
    return " ".join(done.output.split())
