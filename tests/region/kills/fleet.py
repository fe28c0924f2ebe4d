"""A region with a real broker and store whose nodes are renamed, moved, replaced and forgotten, and what a test reads of them itself.

All reading is apart from the product's own: SQL, certificates by `cryptography`, YAML, and a plain MQTT client.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.region.conftest import PATIENCE_S, REGION, Gateway, eventually
from tests.region.kills.forks import Command, Forks

from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.topics import Address

TOPOLOGY: Final = """\
# Our plant.
region: {name: test, broker: mqtt.test.lan}
sites:
  s1:
    broker: broker.s1.lan  # in the cellar
    nodes: [NODE, other]
  s2:
    broker: broker.s2.lan
    nodes: [spare]
"""
SENT: Final = 3
"""Results of a node that are stored, and as many that wait in its outbox."""
_HANDLED: Final = "hedgerow.region.rollouts.handlers:open_requests"


def rows(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query, by the database's own library."""
    if url.startswith("postgresql:"):
        import psycopg

        with psycopg.connect(url) as server:
            return server.execute(sql.replace("?", "%s").encode(), values or None).fetchall()
    with closing(sqlite3.connect(url, timeout=30)) as database:
        return database.execute(sql, values).fetchall()


class KilledRegion:
    """A region whose processes are killed.

    Args:
        folder: for all its files.
        broker: address of its broker.
        store: address of its store.
    """

    def __init__(self, folder: Path, broker: str, store: str) -> None:
        self.folder, self.broker, self.store = folder, broker, store
        self.forks = Forks(folder)
        self.file = folder / "region.yaml"
        config = {
            "region": {"name": REGION},
            "broker": {"url": broker},
            "store": {"url": store},
            "ping": {"every_s": None},
            "metrics": {"enabled": False},
            "quotas": {"nodes": 10_000},
        }
        self.file.write_text(json.dumps(config))
        self.authorities = Pki(folder / "pki", lambda: datetime.now(UTC))
        self.authorities.init(REGION, ["s1", "s2"])
        self.authorities.issue(parse("s1/broker"), timedelta(days=30), hosts=["broker.s1.lan"])
        self.service: Command | None = None
        self.nodes = 0

    def start_service(self, kill_at: int | None = None, armed_by: str = "", *, file: Path | None = None) -> Command:
        """Start the service, and wait until it leads."""
        self.service = self.forks.start("region", "run", file or self.file, kill_at=kill_at, armed_by=armed_by)
        deadline = time.monotonic() + PATIENCE_S
        while '"region-started"' not in self.service.err + self.service.out:
            assert self.service.ended is None, self.service.err
            assert time.monotonic() < deadline, self.service.err
            time.sleep(0.01)
        return self.service

    def start_doomed(self, kill_at: int | None) -> Command:
        """Start a service that is killed at a step after it has read an operator's request."""
        return self.start_service(kill_at, _HANDLED)

    def stop_service(self) -> None:
        if self.service is not None and self.service.ended is None:
            self.service.end()

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return rows(self.store, sql, *values)


class KilledNode:
    """A node, the certificates and topology of its own region, and the command that changes it.

    Args:
        verb: `rename`, `move`, `replace` or `forget`.
    """

    def __init__(self, region: KilledRegion, verb: str) -> None:
        region.nodes += 1
        self.region, self.verb, self.name = region, verb, f"node{region.nodes}"
        name = self.name
        self.old = Address(REGION, "s1", name)
        new = {"rename": ("s1", f"new-{name}"), "move": ("s2", name)}.get(verb, ("s1", name))
        self.new = Address(REGION, *new)
        self.folder = region.folder / name
        self.pki, self.topology = self.folder / "pki", self.folder / "topology.yaml"
        shutil.copytree(region.authorities.folder, self.pki)
        Pki(self.pki, lambda: datetime.now(UTC)).issue(parse(f"s1/{name}"), timedelta(days=30))
        self.topology.write_text(TOPOLOGY.replace("NODE", self.name))

    async def prepare(self) -> None:
        """Let the region know the node, with results that are stored, a label, and results that wait."""
        async with self._gateway(self.old) as node:
            node.status()
            node.send(SENT)
            await eventually(lambda: node.entries == 0)
        ((self.row,),) = self.region.rows("SELECT id FROM node WHERE name = ?", self.name)
        label = self.region.forks.start("node", "label", f"s1/{self.name}", "ring=early", *self._audited())
        await asyncio.to_thread(label.finish)
        node = self._gateway(self.old)
        node.count = SENT
        await node.outbox.__aenter__()
        node.send(SENT)
        await eventually(lambda: node.entries == SENT and not node.outbox.status.appending)
        await node.outbox.close()
        await eventually(lambda: self._desired()[2])

    def _gateway(self, address: Address) -> Gateway:
        return Gateway(self.region.broker, address, self.folder, answers=False, file="node", client_id=self.name)

    def _audited(self) -> list[str]:
        return ["--why", "a test", "--config", str(self.region.file)]

    @property
    def argv(self) -> list[str]:
        more = {"rename": [self.new.node], "move": [self.new.site, "--new-site"]}.get(self.verb, [])
        topology = [] if self.verb == "replace" else ["--topology", str(self.topology)]
        return ["node", self.verb, f"s1/{self.name}", *more, "--pki", str(self.pki), *topology, *self._audited()]

    def start(self, kill_at: int | None = None) -> Command:
        return self.region.forks.start(*self.argv, kill_at=kill_at)

    async def come_up(self) -> None:
        """Bring the node up under its new address, with the outbox that it had; all that waited is then stored."""
        async with self._gateway(self.new) as node:
            node.status(session="s2")
            await eventually(lambda: node.entries == 0)
        if self.new != self.old:
            await eventually(lambda: self.region.rows("SELECT 1 FROM alias WHERE node = ? AND seen_at > 0", self.row))

    def results(self) -> list[int]:
        """Return the numbers of its results that are stored."""
        found = self.region.rows("SELECT payload FROM result WHERE node = ?", self.row)
        return sorted(json.loads(bytes(payload))["result"]["n"] for (payload,) in found)

    def stored(self) -> dict[str, Any]:
        """Return what the store says of the node."""
        query = (
            "SELECT n.site, n.name, n.forgotten_at IS NOT NULL, (SELECT count(*) FROM alias a WHERE a.node = n.id), "
            "(SELECT count(*) FROM audit WHERE action IN ('node-renamed', 'node-replaced', 'node-forgotten') AND detail LIKE ?), "
            "d.document FROM node n LEFT JOIN desired d ON d.node = n.id WHERE n.id = ?"
        )
        ((site, name, forgotten, aliases, changes, document),) = self.region.rows(
            query, f'%/{self.new.node}"%', self.row
        )
        desired = json.loads(document)
        return {
            "address": f"{site}/{name}",
            "forgotten": bool(forgotten),
            "aliases": aliases,
            "changes": changes,
            "desired": (desired["node"], desired["generation"], desired["labels"]),
        }

    def _desired(self) -> tuple[int, int, bool]:
        ((generation, published),) = self.region.rows(
            "SELECT generation, published FROM desired WHERE node = ?", self.row
        )
        return generation, published, generation == published

    @property
    def settled(self) -> bool:
        """Whether all that follows from the change has reached the broker."""
        names = (f"%/s1/{self.name}/%", f"%/{self.new.site}/{self.new.node}/%")
        cleared = self.region.rows("SELECT count(*) FROM clearing WHERE topic LIKE ? OR topic LIKE ?", *names)
        return self._desired()[2] and cleared == [(0,)]

    def certificates(self) -> dict[str, Any]:
        """Return what the folder of certificates says; each file is read, and what belongs together is compared."""
        found: dict[str, Any] = {"aside": sorted(path.name for path in self.folder.rglob("*.new"))}
        for site in ("s1", "s2"):
            revoked = {one.serial_number for one in _lists(self.pki / site / "crl.pem")[0]}
            for home in sorted((self.pki / site / "issued").glob("*")):
                files = {path.name for path in home.iterdir() if not path.name.startswith(".")}
                known = found[f"{site}/{home.name}"] = {"files": sorted(files)}
                if "trust.crl" in files:
                    known["list"] = {one.serial_number for crl in _lists(home / "trust.crl") for one in crl} == revoked
                if "tls.crt" in files:
                    own, authority = x509.load_pem_x509_certificates((home / "tls.crt").read_bytes())
                    own.verify_directly_issued_by(authority)
                    known["valid"] = own.serial_number not in revoked
                if {"tls.crt", "tls.key"} <= files:
                    key = load_pem_private_key((home / "tls.key").read_bytes(), None)
                    known["key"] = key.public_key() == own.public_key()
            found[f"revoked at {site}"] = len(revoked)
        return found

    async def retained(self) -> dict[str, Any]:
        """Return what the broker retains of the node, by any of its names."""
        found: dict[str, Any] = {}
        host, _, port = self.region.broker.removeprefix("mqtt://").partition(":")
        async with asyncio.timeout(PATIENCE_S), aiomqtt.Client(host, int(port)) as client:
            for one in {self.old, self.new}:
                await client.subscribe(f"hedgerow/v1/{one}/#", 1)
            await client.subscribe(f"end/{self.name}", 1)
            await client.publish(f"end/{self.name}", b"", 1)
            async for message in client.messages:
                if message.topic.value.startswith("end/"):
                    break
                if message.retain:
                    found[message.topic.value] = json.loads(bytes(message.payload))
        return {
            topic: (body["node"], body["generation"], body["labels"]) if topic.endswith("/desired") else body["session"]
            for topic, body in found.items()
        }

    def state(self) -> tuple[Any, ...]:
        """Return all that a kill may not leave half done."""
        return self.stored(), self.topology.read_text(), self.certificates()

    def named(self, value: Any) -> Any:
        """Return a state with this node's name in place of any."""
        text = json.dumps(value).replace(self.name, "NAME")
        if self.verb == "replace":  # each call that goes so far makes another key
            text = re.sub(r'("revoked at s1"|"changes"): [1-9]', r"\1: 1", text)
        return json.loads(text)


def _lists(path: Path) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl(one + end) for one in path.read_bytes().split(end) if one.strip()]
