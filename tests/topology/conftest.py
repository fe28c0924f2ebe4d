"""A rendered topology on this machine, with certificates and real Mosquitto brokers."""

from __future__ import annotations

import asyncio
import datetime
import getpass
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from hedgerow.testing import processes
from hedgerow.testing.mosquitto import end_in_order, find_mosquitto
from hedgerow.testing.ports import held_port
from hedgerow.topology import files
from hedgerow.topology.identities import needed
from hedgerow.topology.load import Described, load
from hedgerow.topology.render import render

TIMEOUT_S = 60

BASE = """\
# Configuration of every node.
metrics: {port: 0}
pipelines:
  doors:
    subscribe: plant/+/door
    content_type: application/json
    stages: [parse]
  secrets:
    subscribe: [plant/+/safe, plant/+/vault]
    stages: [parse]
"""


class Window:
    """Sees and sends everything on one broker, bypassing its ACL: every message by topic and payload."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.seen: Counter[tuple[str, str]] = Counter()
        self._received = asyncio.Event()

    async def receive(self) -> None:
        async for message in self.client.messages:
            self.seen[message.topic.value, bytes(message.payload).decode()] += 1
            self._received.set()

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not happened():
                self._received.clear()
                await self._received.wait()

    async def wait_for(self, topic: str, payload: str) -> None:
        await self.until(lambda: self.seen[topic, payload])

    def topics(self, payload: str) -> Counter[str]:
        """Return how often a payload was seen on each topic."""
        return Counter({topic: count for (topic, content), count in self.seen.items() if content == payload})


class Running:
    """A rendered topology with its brokers, and the ports it holds."""

    def __init__(self, folder: Path, described: Described, out: Path, ports: ExitStack) -> None:
        self.folder, self.described, self.out = folder, described, out
        self._ports = ports
        self.windows: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._authorities: dict[str, trustme.CA] = {}

    def certify(self, authority: str, name: str, common_name: str) -> Path:
        """Issue a certificate where the topology expects it, with an empty revocation list."""
        if authority not in self._authorities:
            self._authorities[authority] = trustme.CA(organization_name=authority)
        ca = self._authorities[authority]
        own = self.folder / "pki" / authority / "issued" / name
        own.mkdir(parents=True)
        certificate = ca.issue_cert("localhost", "127.0.0.1", common_name=common_name)
        certificate.private_key_pem.write_to_path(own / "tls.key")
        for number, part in enumerate(certificate.cert_chain_pems):
            part.write_to_path(own / "tls.crt", append=number > 0)
        ca.cert_pem.write_to_path(own / "trust.crt")
        (own / "trust.crl").write_bytes(revocations(ca))
        return own

    def certify_all(self) -> None:
        """Issue a certificate for every identity in the topology."""
        for (who, _, hosts, _), _ in needed(self.described.topology):
            self.certify(who.authority, who.name, "localhost" if hosts else who.user)

    def revoke(self, authority: str, serial: int) -> None:
        """Add a certificate to its authority's revocation list."""
        own = self.folder / "pki" / authority / "issued" / "broker"
        (own / "trust.crl").write_bytes(revocations(self._authorities[authority], serial))

    def start(self, name: str) -> None:
        """Start a broker with its rendered configuration, plus a plain listener for the test."""
        conf = self.out / name / "mosquitto.conf"
        if name not in self.windows:
            self.windows[name] = self._ports.enter_context(held_port())
        state = self.folder / "state" / name / "broker"
        state.mkdir(parents=True, exist_ok=True)
        rendered = conf.read_text("utf-8")
        bridge = rendered.find("# --- The bridge")
        at = bridge if bridge > 0 else len(rendered)
        window = f"listener {self.windows[name]} 127.0.0.1\nallow_anonymous true\n\n"
        started = self.folder / f"{name}.conf"
        started.write_text(rendered[:at] + window + rendered[at:])
        script = self.folder / f"{name}.sh"
        script.write_text((conf.parent / "broker.sh").read_text("utf-8").replace(str(conf), str(started)))
        with (self.folder / f"{name}.log").open("ab") as log:
            offset = log.tell()
            path = {"PATH": f"{Path(find_mosquitto()).parent}:{os.environ['PATH']}"}
            process = processes.start(["sh", script], stderr=log, stdout=log, env=os.environ | path)
        self._processes[name] = process
        deadline = time.monotonic() + TIMEOUT_S
        while " running" not in self.log(name)[offset:]:
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.01)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def wait_for_log(self, name: str, *texts: str) -> None:
        """Wait until a broker has logged one of the texts."""
        deadline = time.monotonic() + TIMEOUT_S
        while not any(text in self.log(name) for text in texts):
            assert time.monotonic() < deadline, self.log(name)[-2000:]
            time.sleep(0.01)

    def stop(self, name: str) -> None:
        end_in_order(self._processes.pop(name))

    def reload(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGHUP)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._ports.close()

    def port(self, broker: str) -> int:
        """Return the port of a broker's TLS listener."""
        topology = self.described.topology
        places = {topology.region.name: topology.region, **topology.sites}
        if topology.parent is not None:
            places[topology.parent.name] = topology.parent
        return int(places[broker].broker.rpartition(":")[2])

    def client(self, broker: str, authority: str, name: str | None, **options: object) -> aiomqtt.Client:
        """Return a client of a broker with an identity's certificate."""
        return aiomqtt.Client(
            "localhost", self.port(broker), protocol=aiomqtt.ProtocolVersion.V5, tls_context=self.tls(authority, name),
            **{"timeout": TIMEOUT_S} | options,
        )  # fmt: skip

    def tls(self, authority: str, name: str | None) -> ssl.SSLContext:
        """Return a TLS context with an identity's certificate, or none."""
        issued = self.folder / "pki" / authority / "issued"
        context = ssl.create_default_context(cafile=issued / "broker" / "trust.crt")
        if name is not None:
            context.load_cert_chain(issued / name / "tls.crt", issued / name / "tls.key")
        return context

    @asynccontextmanager
    async def window(self, name: str) -> AsyncIterator[Window]:
        async with aiomqtt.Client(
            "127.0.0.1", self.windows[name], protocol=aiomqtt.ProtocolVersion.V5, timeout=TIMEOUT_S
        ) as client:
            window = Window(client)
            await client.subscribe([("#", 1), ("$SYS/broker/connection/#", 1)])
            receiving = asyncio.create_task(window.receive())
            try:
                yield window
            finally:
                receiving.cancel()
                with suppress(asyncio.CancelledError, aiomqtt.MqttError):
                    await receiving

    async def wait_for_bridge(self, lower: Window, upper: Window, base: str) -> None:
        """Wait until a bridge carries messages both ways; each attempt is a new message."""
        for number in range(TIMEOUT_S * 5):
            for window, channel in ((lower, "event/warm"), (upper, "ack")):
                await window.client.publish(f"{base}/warm/{channel}", f"warm {number}", qos=1)
            await asyncio.sleep(0.2)  # between attempts
            up = any(topic.endswith("/warm/event/warm") for topic, _ in upper.seen)
            if up and any(topic.endswith("/warm/ack") for topic, _ in lower.seen):
                return
        raise AssertionError("no message crosses the bridge")


def revocations(authority: trustme.CA, *revoked: int) -> bytes:
    """Create a revocation list from serial numbers."""
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    builder = builder.last_update(now - datetime.timedelta(hours=1)).next_update(now + datetime.timedelta(days=1))
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def prepare(folder: Path, text: str, kind: type[Running] = Running) -> Running:
    """Render a topology and issue its certificates. PORT… in the text is replaced by a held port."""
    ports = ExitStack()
    while "PORT" in text:
        text = text.replace("PORT", str(ports.enter_context(held_port())), 1)
    text += f"\nmachine: {{pki: pki, config: out, state: state, broker_user: {getpass.getuser()}}}\n"
    (folder / "base.yaml").write_text(BASE)
    (folder / "topology.yaml").write_text(text)
    described = load(folder / "topology.yaml")
    files.write(render(described), described.source, folder / "out")
    running = kind(folder, described, folder / "out", ports)
    running.certify_all()
    return running


TWO_LEVELS = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  roles: {collector: [collector], operator: [anna], viewer: [wall]}
pipelines: base.yaml
sensors: {camera: plant/1/door, keypad: plant/1/safe}
up: {doors: true}
sites:
  hall:
    broker: mqtts://localhost:PORT
    loopback_port: PORT
    nodes: {a: , b: {override: {pipelines: {secrets: null}}}}
    roles: {operator: [kim]}
  yard:
    broker: mqtts://localhost:PORT
    nodes: [a]
"""


@pytest.fixture(scope="module")
def two_levels() -> Iterator[Running]:
    """A region with two sites and running brokers."""
    folder = Path(tempfile.mkdtemp(prefix="topology-"))
    running = prepare(folder, TWO_LEVELS)
    try:
        for name in ("north", "hall", "yard"):
            running.start(name)
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)
