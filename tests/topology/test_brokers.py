"""Real brokers and bridges with rendered configurations carry what they should, and refuse the rest."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography import x509
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.e2e.conftest import until
from tests.topology.conftest import TIMEOUT_S, Running, Window, prepare

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.identity.moving_client import FormerSession, MovingClient
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

UP = ("status", "health", "event/gap", "result/doors", "reported", "reply/up/region/1", "blob/ask/part")
DOWN = ("desired", "ack", "command/ping")
STAYS = (
    "dead/doors",
    "result/secrets",
    "reply/1",
    "reply/ping",
    "reply/uplink/1",
    "desired",
    "command/ping",
    "ack",
    "blob/want",
    "blob/part/1/2",
)
NODE = "hedgerow/v1/north/hall/a"


async def test_each_channel_crosses_the_bridge_only_where_it_should(two_levels: Running) -> None:
    """Each message arrives once: messages never loop."""
    async with (
        two_levels.window("hall") as hall,
        two_levels.window("yard") as yard,
        two_levels.window("north") as north,
    ):
        await two_levels.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
        for channel in UP + STAYS:
            await hall.client.publish(f"{NODE}/{channel}", "up", qos=0 if channel == "health" else 1)
        for frame in ("plant/1/door", "hedgerow/v1/north/yard/a/status", "hedgerow/v1/south/hall/a/status"):
            await hall.client.publish(frame, "up", qos=1)
        await hall.client.publish(f"{NODE}/event/end", "up", qos=1)
        await north.wait_for(f"{NODE}/event/end", "up")
        await north.until(lambda: len(north.topics("up")) > len(UP))

        assert north.topics("up") == {f"{NODE}/{channel}": 1 for channel in (*UP, "event/end")}

        for channel in (*DOWN, "command/snapshot", "status", "result/doors", "dead/doors", "reply/2", "blob/part/1/3"):
            await north.client.publish(f"{NODE}/{channel}", "down", qos=1)
        await north.client.publish("hedgerow/v1/north/hall/~/command/ping", "down", qos=1)
        await north.client.publish("hedgerow/v1/north/yard/a/desired", "down", qos=1)
        await north.client.publish("hedgerow/v1/north/hall/~/blob/end", "down", qos=1)
        await hall.wait_for("hedgerow/v1/north/hall/~/blob/end", "down")

        expected = {f"{NODE}/{channel}": 1 for channel in DOWN}
        everyone = {f"hedgerow/v1/north/hall/~/{channel}": 1 for channel in ("command/ping", "blob/end")}
        assert hall.topics("down") == expected | everyone
        assert set(yard.topics("down")) <= {"hedgerow/v1/north/yard/a/desired"}
        assert max(north.topics("down").values()) == 1
        assert max(hall.topics("up").values()) == 1


async def test_a_late_subscriber_sees_that_a_node_is_online(two_levels: Running) -> None:
    """Retained messages are retained at the region too."""
    async with two_levels.window("hall") as hall, two_levels.window("north") as north:
        await two_levels.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
        await hall.client.publish(f"{NODE}/status", "online", qos=1, retain=True)
        await north.wait_for(f"{NODE}/status", "online")
    async with two_levels.client("north", "region", "wall") as wall:
        await wall.subscribe(f"{NODE}/status", qos=1)
        async for message in wall.messages:
            assert (message.retain, message.payload) == (True, b"online")
            break
    async with two_levels.window("hall") as hall, two_levels.window("north") as north:
        await hall.client.publish(f"{NODE}/status", "", qos=1, retain=True)
        await north.wait_for(f"{NODE}/status", "")


async def test_the_region_sees_whether_a_bridge_is_connected(two_levels: Running) -> None:
    async with two_levels.client("north", "region", "wall") as wall:
        await wall.subscribe("$SYS/broker/connection/+/state", qos=1)
        async for message in wall.messages:
            if message.topic.value == "$SYS/broker/connection/hall/state" and message.payload == b"1":
                return


async def test_properties_of_mqtt_5_cross_the_bridge(two_levels: Running) -> None:
    """Correlation, content type and user properties: a reply reaches the requester at the region."""
    async with two_levels.window("hall") as hall, two_levels.window("north") as north:
        await two_levels.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
        async with two_levels.client("north", "region", "anna") as anna, two_levels.client("hall", "hall", "a") as node:
            await node.subscribe(f"{NODE}/command/+", qos=1)
            await anna.subscribe(f"{NODE}/reply/up/region/r1", qos=1)
            sent = Properties(PacketTypes.PUBLISH)
            sent.ResponseTopic, sent.CorrelationData, sent.UserProperty = (
                f"{NODE}/reply/up/region/r1",
                b"42",
                ("k", "v"),
            )
            await anna.publish(f"{NODE}/command/ping", b"{}", qos=1, properties=sent)
            async for request in node.messages:
                received = request.properties
                assert received.UserProperty == [("k", "v")]
                reply_properties = Properties(PacketTypes.PUBLISH)
                reply_properties.CorrelationData = received.CorrelationData
                await node.publish(received.ResponseTopic, b"pong", qos=1, properties=reply_properties)
                break
            async for reply in anna.messages:
                assert (reply.payload, reply.properties.CorrelationData) == (b"pong", b"42")
                break


@pytest.fixture
def alone() -> Iterator[Running]:
    """A region and its sites, with brokers that the test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="topology-"))
    running = prepare(
        folder,
        "region: {name: north, broker: 'mqtts://localhost:PORT'}\npipelines: base.yaml\nup: {doors: true}\n"
        "sensors: {camera: plant/1/door}\n"
        "sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}\n",
    )
    yield running
    running.close()
    shutil.rmtree(folder, ignore_errors=True)


async def test_messages_queued_during_a_region_outage_arrive_later(alone: Running) -> None:
    """Even over a restart of the site's broker: a clean stop writes the bridge's queue to disk."""
    alone.start("north")
    alone.start("hall")
    async with alone.window("hall") as hall:
        async with alone.window("north") as north:
            await alone.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
        alone.stop("north")
        for number in range(50):
            await hall.client.publish(f"{NODE}/result/doors", f"{number}", qos=1)
    alone.stop("hall")
    alone.start("north")
    async with alone.window("north") as north:
        alone.start("hall")
        await north.wait_for(f"{NODE}/result/doors", "49")

        assert north.seen.total() >= 50
        assert all(north.seen[f"{NODE}/result/doors", f"{number}"] for number in range(50))


async def test_retained_messages_reach_a_site_after_an_outage(alone: Running) -> None:
    """Such as desired documents. Other messages from above are not queued: Mosquitto's MQTT 5 bridge has no session."""
    alone.start("north")
    alone.start("hall")
    keep = persistent_session("a")
    async with alone.client("hall", "hall", "a", **keep) as node:
        await node.subscribe(f"{NODE}/desired", qos=1)
        async with alone.window("north") as north, alone.window("hall") as hall:
            await alone.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
    alone.stop("hall")
    async with alone.window("north") as north:
        await north.client.publish(f"{NODE}/desired", "new", qos=1, retain=True)
    alone.start("hall")
    async with alone.client("hall", "hall", "a", **keep) as node:
        async for message in node.messages:
            assert message.payload == b"new"
            break


def persistent_session(name: str) -> dict[str, Any]:
    """Return options for a session that queues messages while the client is disconnected."""
    expiry = Properties(PacketTypes.CONNECT)
    expiry.SessionExpiryInterval = 3600
    return {"identifier": name, "clean_start": False, "properties": expiry}


async def test_a_node_receives_its_queued_frames_after_a_restart(alone: Running) -> None:
    """Listeners with their own rules must identify a queue's owner while no client is connected."""
    keep = persistent_session("a")
    alone.start("hall")
    async with alone.client("hall", "hall", "a", **keep) as node:
        await node.subscribe("plant/+/door", qos=1)
    async with alone.client("hall", "hall", "camera") as camera:
        await camera.publish("plant/1/door", b"before", qos=1)
    alone.stop("hall")
    alone.start("hall")
    async with alone.client("hall", "hall", "camera") as camera:
        await camera.publish("plant/1/door", b"after", qos=1)
    async with alone.client("hall", "hall", "a", **keep) as node:
        received = []
        async for message in node.messages:
            received.append(message.payload)
            if message.payload == b"after":
                break

    assert received == [b"before", b"after"]


EXTERNAL = """\
region: {name: north, external: true, broker: 'mqtts://localhost:PORT'}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: {keep: [text]}}
sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}
"""


async def test_the_bridge_works_with_any_mqtt_5_broker_above(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The bridge does not publish its connection state there: not every broker lets clients write to `$SYS`."""
    running = prepare(tmp_path_factory.mktemp("external"), EXTERNAL)
    own = running.folder / "pki" / "region" / "issued" / "broker"
    port = int(running.described.topology.region.broker.rpartition(":")[2])
    assert not (running.out / "north" / "mosquitto.conf").exists()
    tls = TlsFiles(own / "trust.crt", own / "tls.crt", own / "tls.key", require_certificate=True)
    try:
        with Mosquitto(port=port, tls=tls):
            running.start("hall")
            async with running.window("hall") as hall, running.client("north", "region", "collector") as client:
                above = Window(client)
                await client.subscribe([("#", 1), ("$SYS/broker/connection/#", 1)])
                receiving = asyncio.create_task(above.receive())
                await running.wait_for_bridge(hall, above, "hedgerow/v1/north/hall")
                await hall.wait_for("$SYS/broker/connection/hall/state", "1")
                receiving.cancel()

                assert not [topic for topic, _ in above.seen if topic.startswith("$SYS")]
    finally:
        running.close()


def test_a_client_without_a_certificate_is_refused(two_levels: Running) -> None:
    assert admitted(two_levels, "camera")
    assert not admitted(two_levels, None)


def test_a_revoked_certificate_is_refused_after_a_reload(alone: Running) -> None:
    own = alone.folder / "pki" / "hall" / "issued"
    serial = x509.load_pem_x509_certificate((own / "a" / "tls.crt").read_bytes()).serial_number
    alone.start("hall")
    assert admitted(alone, "a")

    alone.revoke("hall", serial)
    alone.reload("hall")

    deadline = time.monotonic() + TIMEOUT_S
    while admitted(alone, "a"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert admitted(alone, "camera")


def admitted(running: Running, name: str | None) -> bool:
    """Return whether a site's broker replies to CONNECT with this certificate; else TLS closes the connection first."""
    port = int(running.described.topology.sites["hall"].broker.rpartition(":")[2])
    try:
        with (
            socket.create_connection(("localhost", port), TIMEOUT_S) as plain,
            running.tls("hall", name).wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(bytes.fromhex("101000044d5154540502003c00000378797a"))
            return link.recv(1) == b"\x20"
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return False


HALL, NORTH = "hedgerow/v1/north/hall", "hedgerow/v1/north"


@pytest.mark.parametrize(
    ("broker", "authority", "name", "topic", "allowed"),
    [
        ("hall", "hall", "a", f"{HALL}/a/result/doors", True),
        ("hall", "hall", "a", f"{HALL}/a/dead/doors", True),
        ("hall", "hall", "a", f"{HALL}/~/reply/1", True),
        ("hall", "hall", "a", f"{HALL}/b/result/doors", False),
        ("hall", "hall", "a", f"{HALL}/b/status", False),
        ("hall", "hall", "a", f"{HALL}/a/command/ping", False),
        ("hall", "hall", "a", f"{HALL}/b/command/ping", False),
        ("hall", "hall", "a", f"{HALL}/~/command/ping", False),
        ("hall", "hall", "a", f"{HALL}/a/desired", False),
        ("hall", "hall", "a", f"{HALL}/a/ack", False),
        ("hall", "hall", "a", f"{NORTH}/yard/a/status", False),
        ("hall", "hall", "a", "plant/1/door", False),
        ("hall", "hall", "camera", "plant/1/door", True),
        ("hall", "hall", "camera", "plant/1/safe", False),
        ("hall", "hall", "camera", f"{HALL}/camera/status", False),
        ("hall", "hall", "kim", f"{HALL}/a/command/ping", True),
        ("hall", "hall", "kim", f"{HALL}/a/desired", False),
        ("north", "region", "hall", f"{HALL}/a/status", True),
        ("north", "region", "hall", f"{NORTH}/yard/a/status", False),
        ("north", "region", "hall", f"{HALL}/a/command/ping", False),
        ("north", "region", "hall", "anything/else", False),
        ("north", "region", "hall", "$SYS/broker/connection/yard/state", False),
        ("north", "region", "anna", f"{HALL}/a/command/ping", True),
        ("north", "region", "anna", f"{HALL}/a/desired", False),
        ("north", "region", "collector", f"{HALL}/a/desired", True),
        ("north", "region", "collector", f"{HALL}/a/ack", True),
        ("north", "region", "collector", f"{HALL}/a/result/doors", False),
        ("north", "region", "wall", f"{HALL}/a/command/ping", False),
    ],
)
async def test_no_client_can_impersonate_another(
    two_levels: Running, broker: str, authority: str, name: str, topic: str, allowed: bool
) -> None:
    payload = f"{name} publishes on {topic}"
    async with two_levels.window(broker) as window, two_levels.client(broker, authority, name) as client:
        await client.publish(topic, payload, qos=1)
        await window.client.publish("end", payload, qos=1)
        await window.wait_for("end", payload)

        assert bool(window.seen[topic, payload]) is allowed


@pytest.mark.parametrize(
    ("broker", "authority", "name", "may", "may_not"),
    [
        (
            "hall", "hall", "b", [f"{HALL}/b/desired", f"{HALL}/b/command/ping", f"{HALL}/~/command/ping", "plant/1/door"],
            [f"{HALL}/a/desired", f"{HALL}/a/command/ping", f"{HALL}/a/ack", f"{HALL}/a/result/doors", "plant/1/safe", "plant/1/x"],
        ),
        ("hall", "hall", "a", ["plant/1/safe", "plant/7/vault"], [f"{HALL}/b/reply/1"]),
        ("hall", "hall", "kim", [f"{HALL}/a/dead/doors", f"{HALL}/a/result/secrets"], ["plant/1/door", "plant/1/safe"]),
        ("north", "region", "hall", [f"{HALL}/a/desired"], [f"{HALL}/a/result/doors", f"{NORTH}/yard/a/desired"]),
        ("north", "region", "wall", [f"{HALL}/a/result/doors"], [f"{HALL}/a/desired", f"{HALL}/a/reply/1", "plant/1/door"]),
        ("north", "region", "collector", [f"{HALL}/a/result/doors", f"{HALL}/a/blob/9"], ["plant/1/door"]),
    ],
)  # fmt: skip
async def test_no_client_can_read_another_ones_messages(
    two_levels: Running, broker: str, authority: str, name: str, may: list[str], may_not: list[str]
) -> None:
    """The client subscribes to everything. The last message is permitted, so everything delivered has arrived before it."""
    async with two_levels.window(broker) as window, two_levels.client(broker, authority, name) as client:
        await client.subscribe("#", qos=1)
        for topic in (*may_not, *may):
            await window.client.publish(topic, f"for {name}", qos=1)
        received = []
        async for message in client.messages:
            if message.payload == f"for {name}".encode():
                received.append(message.topic.value)
                if message.topic.value == may[-1]:
                    break

        assert received == may


async def test_local_programs_may_send_frames_and_read_results(two_levels: Running) -> None:
    port = two_levels.described.topology.sites["hall"].loopback_port
    async with (
        two_levels.window("hall") as window,
        aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as program,
    ):
        for topic in ("plant/1/door", "plant/1/elsewhere", f"{HALL}/a/status", f"{HALL}/a/command/stop"):
            await program.publish(topic, "local", qos=1)
        await window.client.publish("end", "local", qos=1)
        await window.wait_for("end", "local")

        assert set(window.topics("local")) == {"plant/1/door", "end"}


def operator_file(running: Running, authority: str, name: str, broker: str) -> Path:
    """Write the configuration with which an operator's tools connect."""
    own = running.folder / "pki" / authority / "issued" / name
    file = running.folder / f"{name}.yaml"
    file.write_text(
        f"broker:\n  url: {broker}\n"
        f"  tls: {{ca_file: {own}/trust.crt, cert_file: {own}/tls.crt, key_file: {own}/tls.key}}\n"
    )
    return file


async def test_a_node_runs_on_its_rendered_configuration_and_answers_the_region(two_levels: Running) -> None:
    """A real node's traffic is permitted: frames in, results out, commands from the region with replies.

    A snapshot has the frame: the site's operator gets it, and nothing of it reaches the region's broker, not even if the
    operator requests a reply that goes up.
    """
    folder, topology = two_levels.folder, two_levels.described.topology
    anna = operator_file(two_levels, "region", "anna", topology.region.broker)
    kim = operator_file(two_levels, "hall", "kim", topology.sites["hall"].broker)
    log = folder / "node.log"
    hedgerow = (sys.executable, "-m", "hedgerow")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
    with log.open("wb") as out:
        node = await processes.start_async(
            [*hedgerow, "node", "run", two_levels.out / "hall/nodes/a.yaml"], stdout=out, stderr=out, env=environment
        )
    try:
        async with two_levels.window("hall") as hall, two_levels.window("north") as north:
            await two_levels.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
            async with two_levels.client("hall", "hall", "camera") as camera:
                async with asyncio.timeout(TIMEOUT_S):
                    while not any(topic == f"{NODE}/result/doors" for topic, _ in north.seen):
                        await camera.publish("plant/1/door", b"[1, 2, 3]", qos=1)
                        await asyncio.sleep(0.2)
            assert any(topic == f"{NODE}/status" for topic, _ in north.seen)

            async def command(*arguments: object) -> tuple[int | None, str]:
                process = await processes.start_async(
                    [*hedgerow, "command", "north/hall/a", *arguments, "--timeout", "60"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                )  # fmt: skip
                output, _ = await process.communicate()
                return process.returncode, output.decode()

            code, output = await command("ping", "--config", anna)
            assert code == 0, output
            frame = base64.b64encode(b"[1, 2, 3]").decode()
            code, output = await command("snapshot", "pipeline=doors", "--json", "--config", kim)
            assert (code, json.loads(output)["value"]["payload_base64"]) == (0, frame)
            code, output = await command("snapshot", "pipeline=doors", "--config", kim, "--above", "region")
            assert code == 1
            assert "remote: {frames_may_leave: true}" in output
            await hall.client.publish(f"{NODE}/event/end", "snapshots", qos=1)
            await north.wait_for(f"{NODE}/event/end", "snapshots")
            assert any(frame in payload for _, payload in hall.seen)
            assert not [topic for topic, payload in north.seen if frame in payload]
            replies = [topic for topic, _ in north.seen if "/reply/" in topic]
            assert len(replies) == 2, "the ping's, and the refusal"
            assert all(topic.startswith(f"{NODE}/reply/up/region/") for topic in replies)
    except BaseException:
        print(log.read_text())
        raise
    finally:
        node.terminate()
        await node.wait()
        async with two_levels.window("hall") as hall:  # other tests use this topic too
            await hall.client.publish(f"{NODE}/status", "", qos=1, retain=True)
    assert "not authorized" not in log.read_text().lower()


def bridge_ids(running: Running, name: str) -> set[str]:
    """Return the client ids of a broker's bridge, here and above, in the configuration it was started with."""
    text = (running.folder / "state" / name / "broker" / "mosquitto.conf").read_text("utf-8")
    return {line.split()[1] for line in text.splitlines() if line.startswith(("remote_clientid", "local_clientid"))}


def test_a_bridge_keeps_a_token_of_its_own(alone: Running) -> None:
    """Made at the first start, private, and in no rendered file."""
    alone.start("hall")
    state = alone.folder / "state" / "hall" / "broker"
    token = (state / "client-token").read_text()
    assert len(bytes.fromhex(token)) == 16
    ids = bridge_ids(alone, "hall")
    assert ids == {f"hedgerow-bridge/hall/{token}", f"hedgerow-bridge/up/{token}"}
    alone.stop("hall")
    alone.start("hall")
    assert bridge_ids(alone, "hall") == ids
    for name in ("client-token", "mosquitto.conf"):
        assert (state / name).stat().st_mode & 0o077 == 0, name
    for path in alone.out.rglob("*"):
        assert path.is_dir() or token not in path.read_text("utf-8"), path


async def test_what_waits_in_the_session_of_a_bridge_without_a_token_goes_up_once(alone: Running) -> None:
    """Messages that wait when the rendered files are replaced."""
    script, conf = alone.out / "hall" / "broker.sh", alone.out / "hall" / "mosquitto.conf"
    state = alone.folder / "state" / "hall" / "broker"
    rendered, started = script.read_text(), conf.read_text()
    conf.write_text(started.replace("/TOKEN", ""))  # as it was
    script.write_text(f"exec mosquitto -v -c {conf}\n")
    alone.start("hall")
    async with alone.window("hall") as hall:
        for number in range(50):
            await hall.client.publish(f"{NODE}/result/doors", f"{number}", qos=1)
    alone.stop("hall")
    conf.write_text(started)
    script.write_text(rendered)
    assert b"hedgerow-bridge/up" in (state / "mosquitto.db").read_bytes()

    alone.start("hall")
    assert {"hedgerow-bridge/hall", "hedgerow-bridge/up"} < bridge_ids(alone, "hall")
    async with alone.window("hall") as hall:
        for number in range(50, 60):
            await hall.client.publish(f"{NODE}/result/doors", f"{number}", qos=1)
        alone.start("north")
        async with alone.window("north") as north:
            sent = {(f"{NODE}/result/doors", f"{number}"): 1 for number in range(60)}
            await north.until(lambda: sent.keys() <= north.seen.keys())
            await alone.wait_for_bridge(hall, north, "hedgerow/v1/north/hall")
            assert {key: count for key, count in north.seen.items() if key in sent} == sent

    alone.stop("hall")
    os.utime(state / "former-bridge", (time.time() - 3 * 86_400,) * 2)
    alone.start("hall")
    assert len(bridge_ids(alone, "hall")) == 2
    assert not (state / "former-bridge").exists()


@pytest.mark.parametrize(
    ("broker", "authority", "name", "marker", "topic"),
    [
        ("hall", "hall", "a", f"{NODE}/reply/move-doors", "plant/1/door"),
        ("north", "region", "collector", "hedgerow/v1/north/collector-move/collector/desired", f"{NODE}/event/moved"),
    ],
)
async def test_rendered_access_lists_let_a_former_session_be_emptied(
    two_levels: Running, tmp_path: Path, broker: str, authority: str, name: str, marker: str, topic: str
) -> None:
    """Markers come back to the node and to the region's service, each with its own certificate."""
    own = two_levels.folder / "pki" / authority / "issued" / name
    url = f"mqtts://localhost:{two_levels.port(broker)}"
    files: dict[str, Any] = {"ca_file": own / "trust.crt", "cert_file": own / "tls.crt", "key_file": own / "tls.key"}
    former = FormerSession(f"former-{name}", tmp_path / "mark", marker)
    old = ClientOptions(url=url, client_id=former.client_id, session_file=former.mark, **files)
    async with Client(old, lambda _: None) as client:
        await client.subscribe({topic: 1})
        await client.wait_connected(TIMEOUT_S)
    async with two_levels.window(broker) as window:
        for number in range(3):
            await window.client.publish(topic, f"{number}", qos=1)
    taken: list[bytes] = []
    events: list[str] = []

    def take(messages: list[Message]) -> None:
        for message in messages:
            taken.append(bytes(message.payload))
            moving.ack(message)

    moving = MovingClient(
        ClientOptions(url=url, client_id=f"own-{name}", **files),
        former,
        take,
        on_event=lambda kind, _: events.append(kind),
    )
    async with moving, asyncio.timeout(TIMEOUT_S):
        await moving.subscribe({topic: 1})
        await asyncio.to_thread(until, lambda: not moving.moving)
        await moving.close(forget_session=True)
    assert (taken, events) == ([b"0", b"1", b"2"], [])
