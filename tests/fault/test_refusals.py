"""Who is let in, and what those may not do: rendered brokers, with certificates of `hedgerow pki`.

Two kinds of intruders. Those whose certificate does not count, or not here, get no further than TLS: everything they send at once, as an
attacker would, comes to nothing, and the broker's log has a line for each try. Those with a good certificate that is
another's are let in and held to its rights: what they publish is refused by its PUBACK, what they read is nothing.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from urllib.request import urlopen

import pytest
from tests.e2e.conftest import until
from tests.topology.conftest import PATIENCE_S, Running, begin

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.packets import encode_connect, encode_publish_head, encode_subscribe
from hedgerow.errors import BusError
from hedgerow.pki import certificates, files
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import IdentityKind, parse
from hedgerow.testing import processes
from hedgerow.topology.refusals import AccessDenial, AccessDenials, is_chatter, readable

REGION = "hedgerow/v1/north"
A, B, YARD = f"{REGION}/hall/a", f"{REGION}/hall/b", f"{REGION}/yard/a"
FRAMES = "plant/1/door"

TOPOLOGY = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  roles: {collector: [collector], operator: [anna], viewer: [wall]}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
sites:
  hall:
    broker: mqtts://localhost:PORT
    nodes:
      a:
      b: {override: {pipelines: {doors: null}}}
      expired:
      revoked:
  yard:
    broker: mqtts://localhost:PORT
    nodes: [a]
"""

PUBLISHES = {
    "speak as a node": f"{A}/result/doors",
    "say that a node has died": f"{A}/status",
    "give a command": f"{A}/command/stop",
    "give all nodes of a site a command": f"{REGION}/hall/~/command/stop",
    "set what a node should run": f"{A}/desired",
    "acknowledge what the region does not have": f"{A}/ack",
    "speak as a sensor": FRAMES,
}
READS = {
    "commands": f"{A}/command/ping",
    "desired state": f"{A}/desired",
    "results": f"{A}/result/doors",
    "raw frames": FRAMES,
}


class Certified(Running):
    """With certificates of our own, among them one that has ended and one that was revoked."""

    def certify(self, authority: str, name: str, common_name: str) -> Path:
        """A certificate where a topology looks for it."""
        broker = name == IdentityKind.BROKER
        who = parse(f"{authority}/broker" if broker else common_name)
        at = datetime.now(UTC) - timedelta(days=30 if name == "expired" else 0)
        entry = self.pki(at).issue(who, timedelta(days=1), hosts=["localhost"] if broker else ())
        if name == "revoked":
            self.pki(at).revoke(who, "key-compromise")
        return entry.folder

    def tls(self, authority: str, name: str | None) -> ssl.SSLContext:
        """With somebody's certificate, or none; an attacker does not ask who the broker is."""
        context = super().tls(authority, name)
        context.load_verify_locations(self.folder / "pki" / "root.crt")
        return context

    def pki(self, at: datetime) -> Pki:
        pki = Pki(self.folder / "pki", lambda: at)
        if not pki.root.exists:
            Pki(self.folder / "pki", lambda: datetime.now(UTC) - timedelta(days=40)).init("north", ["hall", "yard"])
        return pki

    def options(self, broker: str, authority: str, name: str, client_id: str) -> ClientOptions:
        own = self.folder / "pki" / authority / "issued" / name
        return ClientOptions(
            url=f"mqtts://localhost:{self.port(broker)}", client_id=client_id, ca_file=own / "trust.crt",
            cert_file=own / "tls.crt", key_file=own / "tls.key", crl_file=own / "trust.crl",
        )  # fmt: skip


@pytest.fixture(scope="module")
def estate() -> Iterator[Certified]:
    """A region and two sites; their brokers run."""
    folder = Path(tempfile.mkdtemp(prefix="refusals-"))
    running = begin(folder, TOPOLOGY, Certified)
    assert isinstance(running, Certified)
    try:
        for name in ("north", "hall", "yard"):
            running.start(name)
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


def attack(estate: Certified, broker: str, who: str | None, authority: str = "hall") -> bytes:
    """Send everything in one go: in TLS 1.3 a client may, before the broker has looked at its certificate.

    Returns: what the broker answers.
    """
    said = encode_connect(client_id=f"attacker-{who}", clean_start=True, keepalive_s=60)
    said += encode_subscribe(1, dict.fromkeys(("#", *READS.values()), 1))
    for number, topic in enumerate(PUBLISHES.values(), 2):
        said += encode_publish_head(topic, 6, qos=1, packet_id=number) + b"attack"
    answer = b""
    try:
        with (
            socket.create_connection(("localhost", estate.port(broker)), PATIENCE_S) as plain,
            estate.tls(authority, who).wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(said)
            while (received := link.recv(4096)) != b"":
                answer += received
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        pass
    return answer


def refused(estate: Certified, broker: str) -> list[AccessDenial]:
    """What a broker's log says was refused, as `hedgerow broker refusals` reads it."""
    reader = AccessDenials(readable((estate.out / broker / "acl").read_text()))
    found = [refusal for line in estate.log(broker).splitlines() if (refusal := reader.take(line)) is not None]
    assert reader.counts.total() == len(found)
    return found


def refusals(estate: Certified, broker: str) -> int:
    """How many connections a broker's log says were refused by TLS."""
    return sum(one.what == "connect" for one in refused(estate, broker))


@pytest.mark.parametrize("broker", ["hall", "north"])
@pytest.mark.parametrize("who", [None, "expired", "revoked"])
async def test_without_a_certificate_that_counts_nothing_comes_in_or_out(
    estate: Certified, who: str | None, broker: str
) -> None:
    """And the broker's log has a line more for each try, by which tries can be counted."""
    before = refusals(estate, broker)
    async with estate.window(broker) as window:
        for number in range(1, 4):
            assert await asyncio.to_thread(attack, estate, broker, who) == b""
            await asyncio.to_thread(until, lambda n=number: refusals(estate, broker) >= before + n)
        await window.client.publish("end", f"{who}", qos=1)
        await window.sees("end", f"{who}")

        assert window.topics("attack") == {}
        assert refusals(estate, broker) == before + 3


@pytest.mark.parametrize(
    ("broker", "authority", "name"),
    [
        pytest.param("hall", "yard", "a", id="a node of another site"),
        pytest.param("north", "hall", "a", id="a node at the region"),
        pytest.param("yard", "region", "hall", id="a bridge at another site"),
        pytest.param("hall", "region", "anna", id="an operator of the region at a site"),
    ],
)
async def test_a_certificate_counts_only_where_its_authority_does(
    estate: Certified, broker: str, authority: str, name: str
) -> None:
    """A broker has the list of its own authority and refuses whom another has certified."""
    before = refusals(estate, broker)
    assert await asyncio.to_thread(attack, estate, broker, name, authority) == b""
    await asyncio.to_thread(until, lambda: refusals(estate, broker) == before + 1)


@pytest.mark.parametrize(("broker", "user"), [("north", "collector@region"), ("north", "yard"), ("yard", "yard/a")])
async def test_a_stolen_authority_makes_nobody_but_its_own(estate: Certified, broker: str, user: str) -> None:
    """What it signs in another's name is refused where that name has rights."""
    now, signer, key = datetime.now(UTC), estate.pki(datetime.now(UTC)).authority("hall"), certificates.new_key()
    made = certificates.leaf(
        IdentityKind.NODE,
        user,
        "forged",
        key.public_key(),
        signer.certificate(),
        signer.key(),
        now,
        now + timedelta(days=1),
    )
    forged = estate.folder / "pki/hall/issued" / f"forged-{user.replace('/', '-')}"
    shutil.copytree(estate.folder / "pki/hall/issued/a", forged)
    files.write(forged / "tls.crt", certificates.pem(made, signer.certificate()))
    files.write_key(forged / "tls.key", key)
    before = refusals(estate, broker)
    assert await asyncio.to_thread(attack, estate, broker, forged.name) == b""
    await asyncio.to_thread(until, lambda: refusals(estate, broker) == before + 1)


def test_the_same_attack_with_a_certificate_that_counts_is_let_in(estate: Certified) -> None:
    """So the table above refuses the certificate, and not the way it is tried."""

    def answers() -> bytes:
        said = encode_connect(client_id="b", clean_start=True, keepalive_s=60)
        with (
            socket.create_connection(("localhost", estate.port("hall")), PATIENCE_S) as plain,
            estate.tls("hall", "b").wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(said)
            return link.recv(1)

    assert answers() == b"\x20"


@asynccontextmanager
async def intruder(
    estate: Certified, broker: str, authority: str, name: str, client_id: str = ""
) -> AsyncIterator[tuple[Client, list[Message]]]:
    """A client with somebody's good certificate, and what it hears."""
    heard: list[Message] = []

    def take(messages: list[Message]) -> None:
        heard.extend(messages)
        for message in messages:
            client.ack(message)

    client = Client(estate.options(broker, authority, name, client_id or f"intruder-{name}"), take)
    async with client:
        await client.wait_connected(PATIENCE_S)
        yield client, heard


OTHERS = [
    pytest.param("hall", "hall", "b", id="another node of the site"),
    pytest.param("north", "region", "yard", id="another site's bridge"),
]


def user_of(authority: str, name: str) -> str:
    return name if authority == "region" else f"{authority}/{name}"


@pytest.mark.parametrize("act", PUBLISHES)
@pytest.mark.parametrize(("broker", "authority", "name"), OTHERS)
async def test_with_anothers_certificate_nobody_can(
    estate: Certified, broker: str, authority: str, name: str, act: str
) -> None:
    """Whoever tries is told so, nobody hears it, and the broker's log says who it was."""
    said, topic = f"{authority}/{name} tries to {act}", PUBLISHES[act]
    async with estate.window(broker) as window, intruder(estate, broker, authority, name) as (client, _):
        with pytest.raises(BusError, match="refuses the message: not authorised"):
            await client.publish_and_wait(topic, said.encode())
        await window.client.publish("end", said, qos=1)
        await window.sees("end", said)

        assert window.topics(said) == {"end": 1}
    tried = ("publish", user_of(authority, name), f"intruder-{name}", topic)
    await asyncio.to_thread(until, lambda: tried in [one[1:] for one in refused(estate, broker)])


@pytest.mark.parametrize("what", READS)
@pytest.mark.parametrize(("broker", "authority", "name"), OTHERS)
async def test_with_anothers_certificate_nobody_reads(
    estate: Certified, broker: str, authority: str, name: str, what: str
) -> None:
    """A subscription is taken, but it brings nothing, and the log tells of it. What is published last is its own to read."""
    own = f"{YARD}/desired" if name == "yard" else None
    async with estate.window(broker) as window, intruder(estate, broker, authority, name) as (client, heard):
        for pattern in ("#", READS[what]):
            try:
                await client.subscribe({pattern: 1})
            except BusError:
                assert own is None or pattern != "#"
        for _ in range(3):
            await window.client.publish(READS[what], "secret", qos=1)
        last = own or f"{REGION}/hall/b/desired"
        await window.client.publish(last, "last", qos=1)
        await window.sees(last, "last")
        if own is not None or (broker, authority) == ("hall", "hall"):
            await asyncio.to_thread(until, lambda: heard)
        with pytest.raises(BusError):  # a round trip: the broker has nothing more for it
            await client.publish_and_wait("nobody/may", b"")

        assert {message.topic for message in heard} <= {last}
    tried = ("subscribe", user_of(authority, name), f"intruder-{name}", READS[what])
    await asyncio.to_thread(until, lambda: tried in [one[1:] for one in refused(estate, broker)])


@pytest.mark.parametrize(("name", "count"), [("a", 4), ("b", 0)])
async def test_nobody_takes_over_what_waits_for_another(estate: Certified, name: str, count: int) -> None:
    """Another node may call itself by the same client id and so take the session; the broker lets go of what is not for it."""
    async with intruder(estate, "hall", "hall", "a", client_id=f"session-{name}") as (client, _):
        await client.subscribe({f"{A}/command/+": 1, FRAMES: 1})
    async with estate.window("hall") as window:
        for topic in (f"{A}/command/ping", FRAMES):
            await window.client.publish(topic, "waits", qos=1)
        async with intruder(estate, "hall", "hall", name, client_id=f"session-{name}") as (client, heard):
            for topic in (f"{A}/command/ping", FRAMES):
                await window.client.publish(topic, "comes", qos=1)
            await window.client.publish("end", "taken over", qos=1)
            await window.sees("end", "taken over")
            await asyncio.to_thread(until, lambda: len(heard) >= count)
            with pytest.raises(BusError):
                await client.publish_and_wait("nobody/may", b"")

            assert len(heard) == count


async def test_raw_frames_do_not_leave_the_site(estate: Certified) -> None:
    """Not even one who sees all of the region's broker sees one: the bridge does not carry them."""
    async with estate.window("hall") as hall, estate.window("north") as north:
        await estate.flows(hall, north, f"{REGION}/hall")
        await hall.client.publish(FRAMES, "frame", qos=1)
        await hall.client.publish(f"{A}/dead/doors", "frame", qos=1)
        await hall.client.publish(f"{A}/event/end", "frame", qos=1)
        await north.sees(f"{A}/event/end", "frame")

        assert north.topics("frame") == {f"{A}/event/end": 1}


async def test_refusals_are_counted_by_user_and_served_while_the_log_is_read(estate: Certified) -> None:
    """One who tries a thousand times is told once a minute and counted each time; what there is for each message is left out."""
    async with intruder(estate, "yard", "yard", "a") as (client, _):
        for _ in range(1000):
            client.publish("nobody/may", b"", qos=1, done=lambda _: None)
        await client.flush(PATIENCE_S)
        assert client.refused_publishes == 1000
        count = ("publish", "yard/a")
        await asyncio.to_thread(until, lambda: [one[1:3] for one in refused(estate, "yard")].count(count) >= 1000)
    assert not any(map(is_chatter, estate.log("yard").splitlines()))

    reading = await processes.start_async(
        [sys.executable, "-m", "hedgerow", "broker", "refusals", "-", "--acl", estate.out / "yard/acl", "--metrics-port", "0"],
        stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    assert reading.stdin is not None
    assert reading.stderr is not None
    (address,) = re.findall(rb"http://\S+", await reading.stderr.readline())
    reading.stdin.write(estate.log("yard").encode())
    await reading.stdin.drain()
    metric = 'hedgerow_broker_refused_total{user="yard/a",what="publish"} 1000.0'
    await asyncio.to_thread(until, lambda: metric in urlopen(address.decode()).read().decode())
    reading.stdin.close()
    said, _ = await reading.communicate()
    assert len(re.findall(rb"refused a publish by yard/a \(client intruder-a\): nobody/may", said)) <= 3
    assert re.search(rb"yard/a +publish +1,000\n", said)
