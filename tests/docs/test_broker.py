"""The site's broker in broker/ starts unchanged and enforces its documented permissions and limits."""

from __future__ import annotations

import getpass
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.testing import processes
from hedgerow.testing.mosquitto import find_mosquitto
from hedgerow.testing.ports import held_port

SITE = Path(__file__).parents[2] / "broker" / "site"
USERS = ("gateway", "operator", "shift-display", "pump-3")


@dataclass
class Site:
    """A site's broker, with the repository's configuration except for paths and ports."""

    port: int
    tls_port: int
    ca: Path

    def client(self, user: str | None, *, tls: bool = False) -> aiomqtt.Client:
        return aiomqtt.Client(
            "localhost" if tls else "127.0.0.1",
            self.tls_port if tls else self.port,
            username=user,
            password=user and f"secret of {user}",
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_params=aiomqtt.TLSParameters(ca_certs=str(self.ca)) if tls else None,
        )

    async def may_publish(self, user: str, topic: str) -> bool:
        """Return whether a user's message reaches a client that may read all topics."""
        async with self.client("operator") as reader, self.client(user) as writer:
            await reader.subscribe("hedgerow/v1/#")
            await writer.publish(topic, b"x", qos=1)
            await reader.publish("hedgerow/v1/plant-7/hall-2/gateway/command/end", b"", qos=1)
            async for message in reader.messages:
                return message.topic.value == topic
        raise AssertionError


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ports = ExitStack()
    folder = tmp_path_factory.mktemp("site")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "broker.key")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(folder / "broker.pem", append=number > 0)
    (folder / "passwords").touch(mode=0o600)
    for user in USERS:
        command = ["mosquitto_passwd", "-b", folder / "passwords", user, f"secret of {user}"]
        subprocess.run(command, check=True, capture_output=True)
    (folder / "acl").write_text((SITE / "acl").read_text("utf-8"))
    broker = Site(ports.enter_context(held_port()), ports.enter_context(held_port()), folder / "ca.pem")
    text = (SITE / "mosquitto.conf").read_text("utf-8")
    for theirs, ours in (
        ("/etc/mosquitto/certs", folder),
        ("/etc/mosquitto", folder),
        ("/var/lib/mosquitto", folder),
        ("listener 1883", f"listener {broker.port}"),
        ("listener 8883", f"listener {broker.tls_port}"),
    ):
        assert theirs in text
        text = text.replace(theirs, str(ours))
    (folder / "mosquitto.conf").write_text(f"user {getpass.getuser()}\n{text}")
    with (folder / "log").open("w") as log:
        process = processes.start([find_mosquitto(), "-c", folder / "mosquitto.conf"], stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _listens(broker.tls_port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield broker
    finally:
        process.terminate()
        process.wait(60)
        ports.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("user", "topic", "allowed"),
    [
        ("gateway", "hedgerow/v1/plant-7/hall-2/gateway/result/pumps", True),
        ("gateway", "hedgerow/v1/plant-7/hall-2/~/reply/0a1b", True),
        ("gateway", "hedgerow/v1/plant-7/hall-2/other/result/pumps", False),
        ("gateway", "hedgerow/v1/plant-7/hall-2/~/command/stop", False),
        ("operator", "hedgerow/v1/plant-7/hall-2/gateway/command/ping", True),
        ("operator", "hedgerow/v1/plant-7/hall-2/gateway/result/pumps", False),
        ("pump-3", "hedgerow/v1/plant-7/hall-2/pump-3/result/x", False),
        ("shift-display", "hedgerow/v1/plant-7/hall-2/gateway/result/pumps", False),
    ],
)
async def test_no_client_can_impersonate_another(site: Site, user: str, topic: str, allowed: bool) -> None:
    assert await site.may_publish(user, topic) is allowed


async def test_a_node_receives_what_sensors_publish_below_their_names(site: Site) -> None:
    """A sensor whose publish was refused stays connected."""
    async with site.client("gateway") as node, site.client("pump-3") as sensor:
        await node.subscribe("hall-2/#", qos=1)
        await sensor.publish("hall-2/pump-4/vibration", b"forged", qos=1)
        await sensor.publish("hall-2/pump-3/vibration", b"own", qos=1)
        async for message in node.messages:
            assert message.payload == b"own"
            return


async def test_a_forbidden_subscription_is_granted_but_receives_nothing(site: Site) -> None:
    """Mosquitto checks read permissions on delivery."""
    async with site.client("operator") as operator, site.client("gateway") as node, site.client("pump-3") as sensor:
        granted = await operator.subscribe([("hall-2/#", 1), ("hedgerow/v1/#", 1)])
        await sensor.publish("hall-2/pump-3/vibration", b"not for operators", qos=1)
        await node.publish("hedgerow/v1/plant-7/hall-2/gateway/result/pumps", b"for operators", qos=1)
        first = await anext(aiter(operator.messages))

    assert [code.is_failure for code in granted] == [False, False]
    assert first.payload == b"for operators"


async def test_an_anonymous_client_is_refused(site: Site) -> None:
    with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori[sz]ed"):
        async with site.client(None):
            pass


async def test_other_machines_connect_by_tls(site: Site) -> None:
    async with site.client("gateway", tls=True) as node:
        await node.subscribe("hall-2/#")


def test_senders_receive_the_inflight_limit(site: Site) -> None:
    """The configured limit; Mosquitto's default is 20."""
    received: list[Properties] = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set("operator", "secret of operator")
    client.on_connect = lambda _client, _data, _flags, _reason, properties: received.append(properties)
    client.connect("127.0.0.1", site.port)
    while not received:
        client.loop(0.1)
    client.disconnect()

    assert received[0].ReceiveMaximum == 1000


async def test_a_disconnected_clients_queue_holds_more_than_1000_messages(site: Site) -> None:
    """By default, Mosquitto silently drops the 1001st message."""
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 60

    def persistent() -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1",
            site.port,
            identifier="persistent",
            username="gateway",
            password="secret of gateway",
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            properties=session,
        )

    async with persistent() as node:
        await node.subscribe("hall-2/#", qos=1)
    async with site.client("pump-3") as sensor:
        for number in range(1500):
            await sensor.publish("hall-2/pump-3/vibration", str(number).encode(), qos=1)
    async with persistent() as node:
        received = 0
        async for _ in node.messages:
            received += 1
            if received == 1500:
                return
