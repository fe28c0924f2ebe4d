"""Access control of rendered brokers with certificates of `hedgerow pki`.

There are two kinds of intruders. Those without a certificate valid at this broker are refused by TLS: what they send
along has no effect, and the broker's log has a line for each attempt. Those with the valid certificate of another
client are limited to its rights: publishing is refused in the PUBACK, and subscriptions deliver nothing.
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
from tests.topology.conftest import TIMEOUT_S, Running, prepare

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
    "publish as a node": f"{A}/result/doors",
    "report a node as offline": f"{A}/status",
    "send a command": f"{A}/command/stop",
    "send a command to all nodes of a site": f"{REGION}/hall/~/command/stop",
    "set a node's desired state": f"{A}/desired",
    "acknowledge results in the region's name": f"{A}/ack",
    "publish as a sensor": FRAMES,
}
READS = {
    "commands": f"{A}/command/ping",
    "desired state": f"{A}/desired",
    "results": f"{A}/result/doors",
    "raw frames": FRAMES,
}


class Certified(Running):
    """A topology with certificates of `hedgerow pki`, one of them expired and one revoked."""

    def certify(self, authority: str, name: str, common_name: str) -> Path:
        """Issue a certificate where the rendered files expect it."""
        broker = name == IdentityKind.BROKER
        identity = parse(f"{authority}/broker" if broker else common_name)
        at = datetime.now(UTC) - timedelta(days=30 if name == "expired" else 0)
        entry = self.pki(at).issue(identity, timedelta(days=1), hosts=["localhost"] if broker else ())
        if name == "revoked":
            self.pki(at).revoke(identity, "key-compromise")
        return entry.folder

    def certify_all(self) -> None:
        """Issue all certificates; the lists, as old as the authorities, have expired by now."""
        super().certify_all()
        self.pki(datetime.now(UTC)).renew_lists()

    def tls(self, authority: str, name: str | None) -> ssl.SSLContext:
        """Return a context with a certificate or none; an attacker does not verify the broker."""
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
def deployment() -> Iterator[Certified]:
    """A region and two sites with running brokers."""
    folder = Path(tempfile.mkdtemp(prefix="refusals-"))
    running = prepare(folder, TOPOLOGY, Certified)
    assert isinstance(running, Certified)
    try:
        for name in ("north", "hall", "yard"):
            running.start(name)
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


def attack(deployment: Certified, broker: str, name: str | None, authority: str = "hall") -> bytes:
    """Send everything at once: TLS 1.3 lets a client send before the broker has checked its certificate.

    Returns: the broker's response.
    """
    packets = encode_connect(client_id=f"attacker-{name}", clean_start=True, keepalive_s=60)
    packets += encode_subscribe(1, dict.fromkeys(("#", *READS.values()), 1))
    for number, topic in enumerate(PUBLISHES.values(), 2):
        packets += encode_publish_head(topic, 6, qos=1, packet_id=number) + b"attack"
    response = b""
    try:
        with (
            socket.create_connection(("localhost", deployment.port(broker)), TIMEOUT_S) as plain,
            deployment.tls(authority, name).wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(packets)
            while (received := link.recv(4096)) != b"":
                response += received
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        pass
    return response


def denials(deployment: Certified, broker: str) -> list[AccessDenial]:
    """Return the refusals in a broker's log, parsed as by `hedgerow broker refusals`."""
    reader = AccessDenials(readable((deployment.out / broker / "acl").read_text()))
    found = [denial for line in deployment.log(broker).splitlines() if (denial := reader.take(line)) is not None]
    assert reader.counts.total() == len(found)
    return found


def refused_connections(deployment: Certified, broker: str) -> int:
    """Return the number of connections refused by TLS, according to the broker's log."""
    return sum(denial.what == "connect" for denial in denials(deployment, broker))


@pytest.mark.parametrize("broker", ["hall", "north"])
@pytest.mark.parametrize("name", [None, "expired", "revoked"])
async def test_without_a_valid_certificate_nothing_can_be_published_or_read(
    deployment: Certified, name: str | None, broker: str
) -> None:
    """The broker's log has one line per attempt, so attempts can be counted."""
    before = refused_connections(deployment, broker)
    async with deployment.window(broker) as window:
        for number in range(1, 4):
            assert await asyncio.to_thread(attack, deployment, broker, name) == b""
            await asyncio.to_thread(until, lambda n=number: refused_connections(deployment, broker) >= before + n)
        await window.client.publish("end", f"{name}", qos=1)
        await window.wait_for("end", f"{name}")

        assert window.topics("attack") == {}
        assert refused_connections(deployment, broker) == before + 3


@pytest.mark.parametrize(
    ("broker", "authority", "name"),
    [
        pytest.param("hall", "yard", "a", id="a node of another site"),
        pytest.param("north", "hall", "a", id="a node at the region"),
        pytest.param("yard", "region", "hall", id="a bridge at another site"),
        pytest.param("hall", "region", "anna", id="an operator of the region at a site"),
    ],
)
async def test_a_certificate_is_valid_only_where_its_authority_is_trusted(
    deployment: Certified, broker: str, authority: str, name: str
) -> None:
    """A broker trusts only its own authority."""
    before = refused_connections(deployment, broker)
    assert await asyncio.to_thread(attack, deployment, broker, name, authority) == b""
    await asyncio.to_thread(until, lambda: refused_connections(deployment, broker) > before)


@pytest.mark.parametrize(("broker", "user"), [("north", "collector@region"), ("north", "yard"), ("yard", "yard/a")])
async def test_a_stolen_authority_can_certify_only_its_own_site(deployment: Certified, broker: str, user: str) -> None:
    """Certificates that it signs in another's name are refused where that name has rights."""
    now, signer, key = datetime.now(UTC), deployment.pki(datetime.now(UTC)).authority("hall"), certificates.new_key()
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
    forged = deployment.folder / "pki/hall/issued" / f"forged-{user.replace('/', '-')}"
    shutil.copytree(deployment.folder / "pki/hall/issued/a", forged)
    files.write(forged / "tls.crt", certificates.pem(made, signer.certificate()))
    files.write_key(forged / "tls.key", key)
    before = refused_connections(deployment, broker)
    assert await asyncio.to_thread(attack, deployment, broker, forged.name) == b""
    await asyncio.to_thread(until, lambda: refused_connections(deployment, broker) > before)


def test_the_same_connection_with_a_valid_certificate_is_accepted(deployment: Certified) -> None:
    """So the attacks above are refused because of the certificate, not because of their form."""

    def response() -> bytes:
        packet = encode_connect(client_id="b", clean_start=True, keepalive_s=60)
        with (
            socket.create_connection(("localhost", deployment.port("hall")), TIMEOUT_S) as plain,
            deployment.tls("hall", "b").wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(packet)
            return link.recv(1)

    assert response() == b"\x20"


@asynccontextmanager
async def intruder(
    deployment: Certified, broker: str, authority: str, name: str, client_id: str = ""
) -> AsyncIterator[tuple[Client, list[Message]]]:
    """Connect a client with another's valid certificate; yields it and the messages it receives."""
    received: list[Message] = []

    def take(messages: list[Message]) -> None:
        received.extend(messages)
        for message in messages:
            client.ack(message)

    client = Client(deployment.options(broker, authority, name, client_id or f"intruder-{name}"), take)
    async with client:
        await client.wait_connected(TIMEOUT_S)
        yield client, received


INTRUDERS = [
    pytest.param("hall", "hall", "b", id="another node of the site"),
    pytest.param("north", "region", "yard", id="another site's bridge"),
]


def user_of(authority: str, name: str) -> str:
    return name if authority == "region" else f"{authority}/{name}"


@pytest.mark.parametrize("action", PUBLISHES)
@pytest.mark.parametrize(("broker", "authority", "name"), INTRUDERS)
async def test_a_client_cannot_publish_as_another(
    deployment: Certified, broker: str, authority: str, name: str, action: str
) -> None:
    """The PUBACK refuses it, no subscriber receives it, and the broker's log names the client."""
    payload, topic = f"{authority}/{name} tries to {action}", PUBLISHES[action]
    async with deployment.window(broker) as window, intruder(deployment, broker, authority, name) as (client, _):
        with pytest.raises(BusError, match="refused the message: not authorised"):
            await client.publish_and_wait(topic, payload.encode())
        await window.client.publish("end", payload, qos=1)
        await window.wait_for("end", payload)

        assert window.topics(payload) == {"end": 1}
    expected = ("publish", user_of(authority, name), f"intruder-{name}", topic)
    await asyncio.to_thread(until, lambda: expected in [denial[1:] for denial in denials(deployment, broker)])


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize(("broker", "authority", "name"), INTRUDERS)
async def test_a_client_cannot_read_what_is_for_another(
    deployment: Certified, broker: str, authority: str, name: str, kind: str
) -> None:
    """The broker accepts the subscription but delivers nothing, and logs it. The last message is one it may read."""
    own = f"{YARD}/desired" if name == "yard" else None
    async with deployment.window(broker) as window, intruder(deployment, broker, authority, name) as (client, received):
        for pattern in ("#", READS[kind]):
            try:
                await client.subscribe({pattern: 1})
            except BusError:
                assert own is None or pattern != "#"
        for _ in range(3):
            await window.client.publish(READS[kind], "secret", qos=1)
        last = own or f"{REGION}/hall/b/desired"
        await window.client.publish(last, "last", qos=1)
        await window.wait_for(last, "last")
        if own is not None or (broker, authority) == ("hall", "hall"):
            await asyncio.to_thread(until, lambda: received)
        with pytest.raises(BusError):  # a round trip: the broker has delivered everything
            await client.publish_and_wait("forbidden/topic", b"")

        assert {message.topic for message in received} <= {last}
    expected = ("subscribe", user_of(authority, name), f"intruder-{name}", READS[kind])
    await asyncio.to_thread(until, lambda: expected in [denial[1:] for denial in denials(deployment, broker)])


@pytest.mark.parametrize(("name", "count"), [("a", 4), ("b", 0)])
async def test_a_client_cannot_take_over_the_session_of_another(deployment: Certified, name: str, count: int) -> None:
    """A client can take over a session by using its client id, but the broker discards messages it may not read."""
    async with intruder(deployment, "hall", "hall", "a", client_id=f"session-{name}") as (client, _):
        await client.subscribe({f"{A}/command/+": 1, FRAMES: 1})
    async with deployment.window("hall") as window:
        for topic in (f"{A}/command/ping", FRAMES):
            await window.client.publish(topic, "queued", qos=1)
        async with intruder(deployment, "hall", "hall", name, client_id=f"session-{name}") as (client, received):
            for topic in (f"{A}/command/ping", FRAMES):
                await window.client.publish(topic, "live", qos=1)
            await window.client.publish("end", "taken over", qos=1)
            await window.wait_for("end", "taken over")
            await asyncio.to_thread(until, lambda: len(received) >= count)
            with pytest.raises(BusError):
                await client.publish_and_wait("forbidden/topic", b"")

            assert len(received) == count


async def test_raw_frames_do_not_leave_the_site(deployment: Certified) -> None:
    """The bridge does not forward them, so even a client that reads everything at the region's broker gets none."""
    async with deployment.window("hall") as hall, deployment.window("north") as north:
        await deployment.wait_for_bridge(hall, north, f"{REGION}/hall")
        await hall.client.publish(FRAMES, "frame", qos=1)
        await hall.client.publish(f"{A}/dead/doors", "frame", qos=1)
        await hall.client.publish(f"{A}/event/end", "frame", qos=1)
        await north.wait_for(f"{A}/event/end", "frame")

        assert north.topics("frame") == {f"{A}/event/end": 1}


async def test_refusals_are_counted_per_user_and_served_as_metrics(deployment: Certified) -> None:
    """A thousand attempts are logged once a minute but all counted; lines for single messages are omitted."""
    async with intruder(deployment, "yard", "yard", "a") as (client, _):
        for _ in range(1000):
            client.publish("forbidden/topic", b"", qos=1, done=lambda _: None)
        await client.flush(TIMEOUT_S)
        assert client.refused_publishes == 1000
        count = ("publish", "yard/a")
        await asyncio.to_thread(
            until, lambda: [denial[1:3] for denial in denials(deployment, "yard")].count(count) >= 1000
        )
    assert not any(map(is_chatter, deployment.log("yard").splitlines()))

    reader = await processes.start_async(
        [sys.executable, "-m", "hedgerow", "broker", "refusals", "-", "--acl", deployment.out / "yard/acl", "--metrics-port", "0"],
        stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stderr is not None
    (address,) = re.findall(rb"http://\S+", await reader.stderr.readline())
    reader.stdin.write(deployment.log("yard").encode())
    await reader.stdin.drain()
    metric = 'hedgerow_broker_refused_total{user="yard/a",what="publish"} 1000.0'
    await asyncio.to_thread(until, lambda: metric in urlopen(address.decode()).read().decode())
    reader.stdin.close()
    output, _ = await reader.communicate()
    assert len(re.findall(rb"refused a publish by yard/a \(client intruder-a\): forbidden/topic", output)) <= 3
    assert re.search(rb"yard/a +publish +1,000\n", output)
