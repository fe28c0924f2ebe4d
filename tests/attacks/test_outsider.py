"""Attempts by an outsider: a program on a broker's machine, someone on the LAN, someone with another authority's certificate.

Each ends with frames that must still become results at the region: nothing that waits for others, or is on its way, is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.topology.conftest import TIMEOUT_S, Running, Window, prepare

from hedgerow.bus import Client, ClientOptions, Message, Property, Publication, encode_properties
from hedgerow.bus.identity.client_ids import client_id
from hedgerow.bus.packets import (
    PINGREQ_PACKET,
    PINGRESP,
    encode_connect,
    encode_publish_head,
    encode_subscribe,
    session_expiry,
)
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results
from hedgerow.testing import processes
from hedgerow.topology.refusals import AccessDenials

TOPOLOGY: Final = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  roles: {collector: [collector]}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
sites:
  hall:
    broker: mqtts://localhost:PORT
    loopback_port: PORT
    nodes: [a]
  yard:
    broker: mqtts://localhost:PORT
    loopback_port: PORT
    nodes: [a]
"""
NODE: Final = "hedgerow/v1/north/hall/a"
FRAMES: Final = "plant/1/door"
FORMER: Final = "hedgerow/north/hall/a"
FOREVER: Final = 2**32 - 1


class Estate(Running):
    """Rendered brokers of a region and two sites; `hall` has a running node, `yard` cannot reach the region."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.stranger = trustme.CA(organization_name="hall")  # another authority of the same name
        self.sent: list[str] = []  # ids of frames

    def start_services(self) -> None:
        """Start the node of `hall` and the region's service."""
        region = self.out / "north" / "service" / "region.yaml"
        region.write_text(re.sub(r"(metrics:\n  host: .*\n  port:) \d+", r"\1 0", region.read_text()))
        (self.folder / "state" / "north" / "region").mkdir(exist_ok=True)
        services = {"node": self.out / "hall" / "nodes" / "a.yaml", "region": region}
        for name, file in services.items():
            with (self.folder / f"{name}.log").open("wb") as log:
                command = [sys.executable, "-m", "hedgerow", name, "run", file]
                self._processes[name] = processes.start(command, stdout=log, stderr=log)
        deadline = time.monotonic() + TIMEOUT_S
        while not all(f'"{name}-started"' in self.log(name) for name in services):
            assert time.monotonic() < deadline, self.log("node") + self.log("region")
            time.sleep(0.02)

    def stored(self) -> list[str]:
        """Return the ids of the frames whose results the collector has stored."""
        database = open_database(str(self.folder / "state" / "north" / "region" / "region.db"), write=False)
        try:
            return [stored.body["frame"]["id"] for stored in results(database, ResultQuery())]
        finally:
            database.close()

    @property
    def token(self) -> str:
        return (self.folder / "state" / "hall" / "a" / "client-token").read_text().strip()

    @property
    def metrics_port(self) -> int:
        (url,) = (json.loads(line)["url"] for line in self.log("node").splitlines() if '"probes"' in line)
        return int(url.rpartition(":")[2].partition("/")[0])

    def loopback(self, site: str) -> int:
        port = self.described.topology.sites[site].loopback_port
        assert port is not None
        return port

    def foreign(self, common_name: str | None) -> ssl.SSLContext:
        """Return the context of someone with a certificate of another authority under any name; None: without one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if common_name is not None:
            self.stranger.issue_cert("localhost", common_name=common_name).configure_cert(context)
        return context

    def saved(self, site: str) -> bytes:
        """Make a broker write what it holds to disk, and return it."""
        path = self.folder / "state" / site / "broker" / "mosquitto.db"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self._processes[site].send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + TIMEOUT_S
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return path.read_bytes()


@pytest.fixture(scope="module")
def estate() -> Iterator[Estate]:
    folder = Path(tempfile.mkdtemp(prefix="outsider-"))
    running = prepare(folder, TOPOLOGY, Estate)
    assert isinstance(running, Estate)
    try:
        conf = running.out / "yard" / "mosquitto.conf"
        unreachable = conf.read_text().replace(f"address localhost:{running.port('north')}", "address localhost:1")
        conf.write_text(unreachable)
        for name in ("north", "hall", "yard"):
            running.start(name)
        running.start_services()
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


# What an outsider can do


def talk(port: int, *packets: bytes, tls: ssl.SSLContext | None = None, linger: bool = False) -> bytes:
    """Send packets at once, and return the broker's answer: all of it once it has answered a ping, or closed the link.

    Args:
        linger: close the connection without a DISCONNECT.
    """
    answer = b""
    with suppress(ssl.SSLError, ConnectionError):
        link: socket.socket = socket.create_connection(("localhost", port), TIMEOUT_S)
        if tls is not None:
            link = tls.wrap_socket(link, server_hostname="localhost")
        with link:
            link.sendall(b"".join(packets) + PINGREQ_PACKET)
            while not answer.endswith(bytes((PINGRESP, 0))) and (received := link.recv(4096)):
                answer += received
            if not linger:
                link.sendall(b"\xe0\x00")
    return answer


def connect(name: str, *, clean_start: bool = True, expiry_s: int = 0, will: Publication | None = None) -> bytes:
    properties = session_expiry(expiry_s) if expiry_s else b""
    return encode_connect(client_id=name, clean_start=clean_start, keepalive_s=60, properties=properties, will=will)


def publish(topic: str, payload: bytes = b"attack", *, retain: bool = False, properties: bytes = b"") -> bytes:
    return encode_publish_head(topic, len(payload), qos=1, packet_id=7, retain=retain, properties=properties) + payload


def subscribe_with(options: int, filters: str, properties: bytes = b"") -> bytes:
    """Encode SUBSCRIBE with any options: no local is 4, retain as published 8, retain handling 16 and 32."""
    name = filters.encode()
    body = (
        b"\x00\x09" + bytes((len(properties),)) + properties + len(name).to_bytes(2, "big") + name + bytes((options,))
    )
    return b"\x82" + bytes((len(body),)) + body


# Nothing is lost for others


class Line:
    """Frames into the site, and what arrives of them at the region."""

    def __init__(self, estate: Estate, hall: Window, north: Window) -> None:
        self.hall, self.north = hall, north
        self._all = estate.sent
        self._name = uuid.uuid4().hex
        self._sent: list[str] = []

    async def send(self, count: int = 3) -> None:
        for _ in range(count):
            name = f"{self._name}-{len(self._sent)}"
            self._sent.append(name)
            self._all.append(name)
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = ("id", name)
            await self.hall.client.publish(FRAMES, b"[1]", qos=1, properties=properties)

    async def all_arrive(self) -> None:
        await self.north.until(lambda: all(self._count(name) for name in self._sent))
        assert {name: self._count(name) for name in self._sent} == dict.fromkeys(self._sent, 1)

    def _count(self, name: str) -> int:
        topic = f"{NODE}/result/doors"
        return sum(count for (where, what), count in self.north.seen.items() if where == topic and f'"{name}"' in what)

    async def command(self, name: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        reply = f"{NODE}/reply/{self._name}-{name}"
        properties.ResponseTopic, properties.CorrelationData = reply, b"1"
        await self.hall.client.publish(f"{NODE}/command/{name}", b"{}", qos=1, properties=properties)
        await self.hall.until(lambda: any(topic == reply for topic, _ in self.hall.seen))


@asynccontextmanager
async def line(estate: Estate) -> AsyncIterator[Line]:
    async with estate.window("hall") as hall, estate.window("north") as north:
        yield Line(estate, hall, north)


async def until_logged(estate: Estate, broker: str, pattern: str, start: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while re.search(pattern, estate.log(broker)[start:]) is None:
        assert time.monotonic() < deadline, f"{pattern} is not in {estate.log(broker)[start:]}"
        await asyncio.sleep(0.005)


GUESSES: Final = {
    "the former id of the node": FORMER,
    "the former id of a pipeline": f"{FORMER}/doors",
    "the former id of its results": f"{FORMER}/doors/results",
    "the former id of the outbox": f"{FORMER}/outbox",
    "the former id of the model link": f"{FORMER}/blobs",
    "the former id of a check": f"{FORMER}/doors-check",
    "an empty token": f"{FORMER}/doors/",
    "a token of zeros": f"{FORMER}/doors/{'0' * 32}",
    "another random token": f"{FORMER}/doors/{uuid.uuid4().hex}",
    "a wildcard for the token": f"{FORMER}/doors/+",
    "a wildcard for all": "hedgerow/#",
    "a pattern": "hedgerow/north/hall/%c/%u",
    "a longer id": f"{FORMER}/doors/" + "f" * 60_000,
}


@pytest.mark.parametrize("name", GUESSES.values(), ids=GUESSES)
async def test_frames_that_wait_for_a_node_survive_a_guessed_id(estate: Estate, name: str) -> None:
    """With a clean start, after which the broker forgets the session of that id; the broker's log says who came."""
    start = len(estate.log("hall"))
    async with line(estate) as victims:
        await victims.command("pause")
        await victims.send()
        assert talk(estate.loopback("hall"), connect(name)) != b""
        await victims.command("resume")
        await victims.all_arrive()
    await until_logged(estate, "hall", re.escape(f" as {name}"[:100]), start)


async def test_the_token_of_a_node_is_in_nothing_that_an_outsider_can_read(estate: Estate) -> None:
    """All topics, also `$SYS`, over the loopback port, while the node runs and answers; and its metrics."""
    async with line(estate) as victims:
        filters = encode_subscribe(3, {"#": 1, "$SYS/#": 1, f"{NODE}/#": 1, "$share/g/#": 1})
        reading = asyncio.create_task(asyncio.to_thread(talk, estate.loopback("hall"), connect("reader"), filters))
        await victims.command("info")
        await victims.command("health")
        await victims.send()
        await victims.all_arrive()
        seen = " ".join(f"{topic} {payload}" for topic, payload in [*victims.hall.seen, *victims.north.seen])
    assert estate.token not in seen
    assert estate.token.encode() not in await reading
    for path in ("metrics", "healthz", "readyz", "../client-token", "%2e%2e/client-token"):
        request = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        assert estate.token.encode() not in http(estate.metrics_port, request)


def test_only_the_owner_can_read_the_files_with_a_token(estate: Estate) -> None:
    state = estate.folder / "state"
    tokens = [path.read_text().strip() for path in state.rglob("client-token")]
    assert len(tokens) == 5
    for path in (path for path in estate.folder.rglob("*") if path.is_file()):
        if path.suffix not in (".log", ".db") and any(token.encode() in path.read_bytes() for token in tokens):
            assert path.stat().st_mode & 0o077 == 0, path
            assert not path.is_relative_to(estate.out)


def test_the_token_of_a_bridge_is_no_argument_of_a_process(
    estate: Estate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone on the machine can read those of a process; so its start script is run with programs that note them."""
    state = tmp_path / "state"
    state.mkdir()
    for name in ("awk", "cat", "find", "mv", "od", "mosquitto"):
        program = tmp_path / name
        real = "exit 0" if name == "mosquitto" else f'exec {shutil.which(name)} "$@"'
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/arguments\n{real}\n')
        program.chmod(0o700)
    script = (estate.out / "hall" / "broker.sh").read_text()
    own = estate.folder / "state" / "hall" / "broker"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    subprocess.run(["sh", "-c", script.replace(str(own), str(state))], check=True, timeout=TIMEOUT_S)

    token, noted = (state / "client-token").read_text(), (tmp_path / "arguments").read_text()
    assert f"hedgerow-bridge/up/{token}\n" in (state / "mosquitto.conf").read_text()
    assert {"awk", "cat"} <= set(noted.split())
    assert token not in noted


BRIDGES: Final = {
    "the former id of a bridge": "hedgerow-bridge/up",
    "its former id above": "hedgerow-bridge/yard",
    "Mosquitto's default": "local.hedgerow-bridge/yard",
    "the id in the rendered file": "hedgerow-bridge/up/TOKEN",
    "a token of zeros": f"hedgerow-bridge/up/{'0' * 32}",
}


@pytest.mark.parametrize("name", BRIDGES.values(), ids=BRIDGES)
async def test_results_that_wait_for_a_bridge_survive_a_guessed_id(estate: Estate, name: str) -> None:
    payload = uuid.uuid4().hex
    async with estate.window("yard") as yard:
        await yard.client.publish("hedgerow/v1/north/yard/a/result/doors", payload, qos=1)
        for expiry_s in (0, FOREVER):
            assert talk(estate.loopback("yard"), connect(name, expiry_s=expiry_s)) != b""
        assert payload.encode() in await asyncio.to_thread(estate.saved, "yard")


STRANGERS: Final = {
    "no certificate": None,
    "the node's name": "hall/a",
    "the sensor's name": "hall/camera",
    "the broker's name": "localhost",
    "the collector's name": "collector@region",
    "the bridge's name": "hall",
    "an empty name": " ",
}


@pytest.mark.parametrize("common_name", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("broker", ["hall", "north"])
async def test_without_a_certificate_of_the_authority_nothing_is_ended(
    estate: Estate, broker: str, common_name: str | None
) -> None:
    """Even with the right ids: TLS ends the attempt, and the broker counts it."""
    start = len(estate.log(broker))
    ids = (f"{FORMER}/doors/{estate.token}", "hedgerow/north/collector", "hedgerow-bridge/hall")
    async with line(estate) as victims:
        await victims.send()
        for name in ids:
            assert (
                await asyncio.to_thread(
                    talk, estate.port(broker), connect(name), publish(f"{NODE}/status"), tls=estate.foreign(common_name)
                )
                == b""
            )
        await victims.send()
        await victims.all_arrive()
        assert victims.hall.topics("attack") == victims.north.topics("attack") == {}
    deadline = time.monotonic() + TIMEOUT_S
    while (counted := refused(estate, broker, start)) < len(ids):
        assert time.monotonic() < deadline, f"{counted} counted"
        await asyncio.sleep(0.005)


def refused(estate: Estate, broker: str, start: int, what: str = "connect") -> int:
    """Return what `hedgerow broker refusals` counts."""
    reader = AccessDenials({"": ["nothing"]})
    return sum(
        denial.what == what
        for line in estate.log(broker)[start:].splitlines()
        if (denial := reader.take(line)) is not None
    )


@pytest.mark.parametrize(
    "name", ["hedgerow/north/collector", "hedgerow/north/blobs", "hedgerow-bridge/hall", "collector"]
)
async def test_events_that_wait_for_the_collector_survive_strangers(estate: Estate, name: str) -> None:
    """Its session at the region's broker, under an id as it has."""
    own = estate.folder / "pki" / "region" / "issued" / "collector"
    options = ClientOptions(
        url=f"mqtts://localhost:{estate.port('north')}",
        client_id=client_id("north", uuid.uuid4().hex, "collector"),
        ca_file=own / "trust.crt",
        cert_file=own / "tls.crt",
        key_file=own / "tls.key",
    )
    topic = f"{NODE}/event/{uuid.uuid4().hex}"
    got: list[Message] = []
    arrived = asyncio.Event()

    def take(messages: list[Message]) -> None:
        got.extend(messages)
        if len(got) == 5:
            arrived.set()

    async with Client(options, take) as collector:
        await collector.subscribe({topic: 1})
        await collector.wait_connected(TIMEOUT_S)
    async with estate.window("north") as north:
        for number in range(5):
            await north.client.publish(topic, f"{number}", qos=1)
    for common_name in (None, "collector@region"):
        for attempt in (name, options.client_id):
            tls = estate.foreign(common_name)
            assert await asyncio.to_thread(talk, estate.port("north"), connect(attempt), tls=tls) == b""
    async with Client(options, take) as collector:
        await collector.subscribe({topic: 1})
        async with asyncio.timeout(TIMEOUT_S):
            await arrived.wait()
        await collector.close(forget_session=True)
    assert [bytes(message.payload) for message in got] == [b"%d" % number for number in range(5)]


FORBIDDEN: Final = {
    "a result": publish(f"{NODE}/result/doors"),
    "an offline status": publish(f"{NODE}/status", retain=True),
    "an empty retained status": publish(f"{NODE}/status", b"", retain=True),
    "a command": publish(f"{NODE}/command/stop"),
    "a command with a response topic": publish(
        f"{NODE}/command/ping", properties=encode_properties([(Property.RESPONSE_TOPIC, f"{NODE}/result/doors")])
    ),
    "a desired state": publish(f"{NODE}/desired", retain=True),
    "an acknowledgement": publish(f"{NODE}/ack"),
    "a request for chunks": publish(f"{NODE}/blob/ask/part"),
    "a marker of a move": publish(f"{NODE}/reply/move-doors"),
    "the state of a bridge": publish("$SYS/broker/connection/hall/state", b"0", retain=True),
    "a shared topic": publish("$share/g/plant/1/door"),
}


@pytest.mark.parametrize("packet", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_what_a_program_on_the_machine_may_not_publish_arrives_nowhere(estate: Estate, packet: bytes) -> None:
    """It is refused in the PUBACK or with the link, and counted."""
    start, name = len(estate.log("hall")), f"outsider-{uuid.uuid4().hex[:8]}"
    async with line(estate) as victims:
        await victims.send()
        answer = await asyncio.to_thread(talk, estate.loopback("hall"), connect(name), packet)
        assert b"\x40\x04\x00\x07\x87" in answer or b"\x40\x03\x00\x07\x87" in answer or PINGRESP not in answer
        await victims.send()
        await victims.all_arrive()
        assert victims.hall.topics("attack") == victims.north.topics("attack") == {}
    if b"$share" not in packet:  # the broker ends the link at once, and logs that
        await until_logged(estate, "hall", f"Denied PUBLISH from {name}", start)
        assert refused(estate, "hall", start, "publish") == 1


WILLS: Final = {
    "the node's status": Publication(f"{NODE}/status", b"attack", 1, retain=True),
    "a result": Publication(f"{NODE}/result/doors", b"attack", 1),
    "a command": Publication(f"{NODE}/command/stop", b"attack", 1),
    "a desired state": Publication(f"{NODE}/desired", b"attack", 1, retain=True),
}


@pytest.mark.parametrize("will", WILLS.values(), ids=WILLS)
async def test_a_will_of_an_outsider_arrives_nowhere(estate: Estate, will: Publication) -> None:
    async with line(estate) as victims:
        await victims.send()
        await asyncio.to_thread(talk, estate.loopback("hall"), connect("dies", will=will), linger=True)
        await victims.send()
        await victims.all_arrive()
        assert victims.hall.topics("attack") == victims.north.topics("attack") == {}


GROUPS: Final = {
    "frames": FRAMES,
    "all frames": "plant/#",
    "results": f"{NODE}/result/#",
    "status": f"{NODE}/status",
    "health": f"{NODE}/health",
    "events": f"{NODE}/event/#",
    "commands": f"{NODE}/command/+",
    "replies": f"{NODE}/reply/#",
    "acknowledgements": f"{NODE}/ack",
    "desired": f"{NODE}/desired",
    "chunks": f"{NODE}/blob/#",
    "everything": "#",
}


@pytest.mark.parametrize("group", ["g", "hedgerow", "collector"])
async def test_a_thief_in_groups_of_every_channel_takes_nothing_away(estate: Estate, group: str) -> None:
    """Each shared subscription gets copies of its own: only members of a group lose, and there is none in a rendered site."""
    filters = encode_subscribe(5, {f"$share/{group}/{name}": 1 for name in GROUPS.values()})
    async with line(estate) as victims:
        for number in range(3):
            name = f"thief-{number}"
            await asyncio.to_thread(talk, estate.loopback("hall"), connect(name, expiry_s=FOREVER), filters)
        await victims.send(10)
        await victims.command("ping")
        await victims.all_arrive()
        for number in range(3):
            await asyncio.to_thread(talk, estate.loopback("hall"), connect(f"thief-{number}"))


TRICKS: Final = {
    "no local": (0x05, b""),
    "retain as published": (0x09, b""),
    "retain handling 1": (0x11, b""),
    "retain handling 2": (0x21, b""),
    "QoS 2": (0x02, b""),
    "a subscription identifier": (0x01, b"\x0b\x01"),
    "the largest subscription identifier": (0x01, b"\x0b\xff\xff\xff\x7f"),
    "a subscription identifier of 0": (0x01, b"\x0b\x00"),
    "reserved options": (0xC1, b""),
    "no local in a group": (0x05, b"share"),
}


@pytest.mark.parametrize(("options", "properties"), TRICKS.values(), ids=TRICKS)
async def test_options_of_subscriptions_take_nothing_away(estate: Estate, options: int, properties: bytes) -> None:
    share = "$share/g/" if properties == b"share" else ""
    packets = [
        subscribe_with(options, f"{share}{name}", b"" if share else properties)
        for name in ("#", FRAMES, f"{NODE}/command/+")
    ]
    async with line(estate) as victims:
        await victims.send()
        answer = await asyncio.to_thread(talk, estate.loopback("hall"), connect("tricks", expiry_s=60), *packets)
        await victims.send()
        await victims.command("ping")
        await victims.all_arrive()
        await asyncio.to_thread(talk, estate.loopback("hall"), connect("tricks"))
    assert b"[1]" not in answer


async def test_a_storm_of_clean_starts_and_takeovers_stops_no_frame(estate: Estate) -> None:
    """All ids that could be guessed, in a loop, with sessions that never expire, while frames flow."""
    ids = [*GUESSES.values()][:10]
    async with line(estate) as victims:
        sending = asyncio.create_task(victims.send(60))
        while not sending.done():
            for name in ids:
                await asyncio.to_thread(talk, estate.loopback("hall"), connect(name, expiry_s=FOREVER))
        await sending
        await victims.all_arrive()
        for name in ids:
            await asyncio.to_thread(talk, estate.loopback("hall"), connect(name))


def half_open(estate: Estate) -> None:
    """Open connections and say nothing."""
    for port in (estate.port("hall"), estate.loopback("hall"), estate.metrics_port):
        _open.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(20))


def half_hello(estate: Estate) -> None:
    """Send the first half of a TLS handshake."""
    for _ in range(20):
        link = socket.create_connection(("127.0.0.1", estate.port("hall")))
        link.sendall(bytes.fromhex("16030100c4010000c00303") + os.urandom(60))
        _open.append(link)


def half_connect(estate: Estate) -> None:
    """Send the first half of a CONNECT."""
    for _ in range(20):
        link = socket.create_connection(("127.0.0.1", estate.loopback("hall")))
        link.sendall(connect(FORMER)[:10])
        _open.append(link)


def plain_text(estate: Estate) -> None:
    """MQTT without TLS, on the port for TLS."""
    assert talk(estate.port("hall"), connect(FORMER)).find(b"\x20") != 0


def web_socket(estate: Estate) -> None:
    """Ask each listener for a WebSocket: there is none."""
    request = (
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    for port in (estate.port("hall"), estate.loopback("hall")):
        assert b"101" not in http(port, request)


def metrics_abuse(estate: Estate) -> None:
    """Other methods, long headers and no end at the port of metrics."""
    for request in (
        b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
        b"DELETE / HTTP/1.1\r\n\r\n",
        b"\0" * 1000 + b"\r\n\r\n",
    ):
        assert b" 200 " not in http(estate.metrics_port, request)[:20]


def bad_packets(estate: Estate) -> None:
    """Packets that end the link of their sender."""
    for packet in (
        publish("plant/1/door").replace(b"door", b"\xff\xff\xff\xff"),
        b"\x82\x04\x00\x01\x00\x00",
        b"\x34\x05\x00\x01a\x00\x00",
        b"\x30\xff\xff\xff\x7f",
        b"\x30\xff\xff\xff\xff\xff",
        b"\xf0\x00",
        b"\x10\x00",
        publish("plant/1door").replace(b"1door", b"\x01door"),
        publish("plant/1/door", properties=encode_properties([(Property.CONTENT_TYPE, "zz")])).replace(
            b"zz", b"\x01\x01"
        ),
    ):
        if packet.startswith(b"\x30\xff\xff\xff\x7f"):
            link = socket.create_connection(("127.0.0.1", estate.loopback("hall")))
            link.sendall(connect("huge") + packet)
            _open.append(link)
        else:
            talk(estate.loopback("hall"), connect("bad"), packet)


def older_protocols(estate: Estate) -> None:
    """MQTT 3.1 and 3.1.1 with ids of the node, clean session and not."""
    for level, name in ((3, b"\x00\x06MQIsdp"), (4, b"\x00\x04MQTT")):
        for flags in (0, 2):
            for guess in (FORMER, f"{FORMER}/doors"):
                body = name + bytes((level, flags)) + b"\x00\x3c" + len(guess).to_bytes(2, "big") + guess.encode()
                talk(estate.loopback("hall"), b"\x10" + bytes((len(body),)) + body)


_open: list[socket.socket] = []


def http(port: int, request: bytes) -> bytes:
    answer = b""
    with suppress(ConnectionError, TimeoutError), socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as link:
        link.sendall(request)
        with suppress(OSError):  # closed already
            link.shutdown(socket.SHUT_WR)
        while received := link.recv(65536):
            answer += received
    return answer


@pytest.mark.parametrize(
    "attempt",
    [half_open, half_hello, half_connect, plain_text, web_socket, metrics_abuse, bad_packets, older_protocols],
    ids=lambda attempt: attempt.__name__.replace("_", " "),
)
async def test_connections_that_are_not_meant_well_stop_no_frame(
    estate: Estate, attempt: Callable[[Estate], None]
) -> None:
    try:
        async with line(estate) as victims:
            await victims.command("pause")
            await victims.send()
            await asyncio.to_thread(attempt, estate)
            await victims.command("resume")
            await victims.send()
            await victims.all_arrive()
    finally:
        while _open:
            _open.pop().close()


async def test_the_collector_has_stored_every_result_once(estate: Estate) -> None:
    """Of all frames that were sent during the attempts above."""
    async with line(estate) as victims:
        await victims.send()
        await victims.all_arrive()
    deadline = time.monotonic() + TIMEOUT_S
    while set(estate.stored()) != set(estate.sent):
        assert time.monotonic() < deadline, set(estate.sent) - set(estate.stored())
        await asyncio.sleep(0.05)
    assert sorted(estate.stored()) == sorted(estate.sent)
