"""Rendered brokers and bridges, for real: what goes where, and what goes nowhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from tests.topology.conftest import Running, begin

UP = ("status", "health", "event/gap", "result/doors", "reported", "reply/1", "blob/1")
DOWN = ("desired", "ack", "command/ping", "blob/2")
STAYS = ("dead/doors", "result/secrets", "desired", "command/ping", "ack")
NODE = "hedgerow/v1/north/hall/a"


async def test_each_channel_goes_its_way_and_no_other(two_levels: Running) -> None:
    """And comes once: nothing goes round in circles."""
    async with two_levels.window("hall") as hall, two_levels.window("yard") as yard, two_levels.window("north") as north:
        await two_levels.flows(hall, north, "hedgerow/v1/north/hall")
        for channel in UP + STAYS:
            await hall.client.publish(f"{NODE}/{channel}", "up", qos=0 if channel == "health" else 1)
        for frame in ("plant/1/door", "hedgerow/v1/north/yard/a/status", "hedgerow/v1/south/hall/a/status"):
            await hall.client.publish(frame, "up", qos=1)
        await hall.client.publish(f"{NODE}/event/end", "up", qos=1)
        await north.sees(f"{NODE}/event/end", "up")
        await north.until(lambda: len(north.topics("up")) > len(UP))

        assert north.topics("up") == {f"{NODE}/{channel}": 1 for channel in (*UP, "event/end")}

        for channel in (*DOWN, "command/snapshot", "status", "result/doors", "dead/doors", "reply/2"):
            await north.client.publish(f"{NODE}/{channel}", "down", qos=1)
        await north.client.publish("hedgerow/v1/north/hall/~/command/ping", "down", qos=1)
        await north.client.publish("hedgerow/v1/north/yard/a/desired", "down", qos=1)
        await north.client.publish(f"{NODE}/blob/end", "down", qos=1)
        await hall.sees(f"{NODE}/blob/end", "down")

        expected = {f"{NODE}/{channel}": 1 for channel in (*DOWN, "blob/end")}
        assert hall.topics("down") == expected | {"hedgerow/v1/north/hall/~/command/ping": 1}
        assert set(yard.topics("down")) <= {"hedgerow/v1/north/yard/a/desired"}
        assert max(north.topics("down").values()) == 1
        assert max(hall.topics("up").values()) == 1


async def test_the_region_sees_whether_a_bridge_is_connected(two_levels: Running) -> None:
    async with two_levels.client("north", "region", "wall") as wall:
        await wall.subscribe("$SYS/broker/connection/+/state", qos=1)
        async for message in wall.messages:
            if message.topic.value == "$SYS/broker/connection/hall/state" and message.payload == b"1":
                return


async def test_properties_of_mqtt_5_cross_the_bridge(two_levels: Running) -> None:
    """Correlation, content type and user properties: a request from above is answered above."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    async with two_levels.window("hall") as hall, two_levels.window("north") as north:
        await two_levels.flows(hall, north, "hedgerow/v1/north/hall")
        async with two_levels.client("north", "region", "anna") as anna, two_levels.client("hall", "hall", "a") as node:
            await node.subscribe(f"{NODE}/command/+", qos=1)
            await anna.subscribe(f"{NODE}/reply/r1", qos=1)
            asked = Properties(PacketTypes.PUBLISH)
            asked.ResponseTopic, asked.CorrelationData, asked.UserProperty = f"{NODE}/reply/r1", b"42", ("k", "v")
            await anna.publish(f"{NODE}/command/ping", b"{}", qos=1, properties=asked)
            async for request in node.messages:
                given = request.properties
                assert given.UserProperty == [("k", "v")]
                answer = Properties(PacketTypes.PUBLISH)
                answer.CorrelationData = given.CorrelationData
                await node.publish(given.ResponseTopic, b"pong", qos=1, properties=answer)
                break
            async for reply in anna.messages:
                assert (reply.payload, reply.properties.CorrelationData) == (b"pong", b"42")
                break


@pytest.fixture
def alone() -> Iterator[Running]:
    """A region and its sites whose brokers a test may stop."""
    folder = Path(tempfile.mkdtemp(prefix="topology-"))
    running = begin(
        folder,
        "region: {name: north, broker: 'mqtts://localhost:PORT'}\npipelines: base.yaml\nup: {doors: true}\n"
        "sensors: {camera: plant/1/door}\n"
        "sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}\n",
    )
    yield running
    running.close()
    shutil.rmtree(folder, ignore_errors=True)


async def test_what_happens_while_the_region_is_away_comes_up_later(alone: Running) -> None:
    """Over a restart of the site's broker too: what waits for the bridge is on disk when it stops in good order."""
    alone.start("north")
    alone.start("hall")
    async with alone.window("hall") as hall:
        async with alone.window("north") as north:
            await alone.flows(hall, north, "hedgerow/v1/north/hall")
        alone.stop("north")
        for number in range(50):
            await hall.client.publish(f"{NODE}/result/doors", f"{number}", qos=1)
    alone.stop("hall")
    alone.start("north")
    async with alone.window("north") as north:
        alone.start("hall")
        await north.sees(f"{NODE}/result/doors", "49")

        assert north.seen.total() >= 50
        assert all(north.seen[f"{NODE}/result/doors", f"{number}"] for number in range(50))


async def test_commands_wait_for_a_site_that_is_away(alone: Running) -> None:
    alone.start("north")
    alone.start("hall")
    async with alone.window("north") as north:
        async with alone.window("hall") as hall:
            await alone.flows(hall, north, "hedgerow/v1/north/hall")
        alone.stop("hall")
        await north.client.publish(f"{NODE}/command/ping", "kept", qos=1)
        alone.start("hall")
        async with alone.window("hall") as hall:
            await alone.flows(hall, north, "hedgerow/v1/north/hall")


async def test_a_node_that_was_away_finds_its_frames_after_a_restart(alone: Running) -> None:
    """Listeners with rules of their own must know whose queue it is, though nobody is connected."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    expiry = Properties(PacketTypes.CONNECT)
    expiry.SessionExpiryInterval = 3600
    keep = {"identifier": "a", "clean_start": False, "properties": expiry}
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
        found = []
        async for message in node.messages:
            found.append(message.payload)
            if message.payload == b"after":
                break

    assert found == [b"before", b"after"]


THREE_LEVELS = """\
parent:
  name: world
  broker: mqtts://localhost:PORT
  roles: {}
region: {name: north, broker: 'mqtts://localhost:PORT'}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: {keep: [text]}}
sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}
"""


async def test_a_third_level_works_with_the_same_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    running = begin(tmp_path_factory.mktemp("three"), THREE_LEVELS)
    try:
        for name in ("world", "north", "hall"):
            running.start(name)
        async with running.window("hall") as hall, running.window("north") as north, running.window("world") as world:
            await running.flows(hall, north, "hedgerow/v1/north/hall")
            await running.flows(hall, world, "hedgerow/v1/north/hall")
            for channel in (*UP, "dead/doors", "result/secrets"):
                await hall.client.publish(f"{NODE}/{channel}", "up", qos=1)
            await hall.client.publish(f"{NODE}/event/end", "up", qos=1)
            await world.sees(f"{NODE}/event/end", "up")

            at_most_once = {"health"}  # of QoS 0 from broker to broker
            assert world.topics("up").keys() | {f"{NODE}/{one}" for one in at_most_once} == {
                f"{NODE}/{channel}" for channel in (*UP, "event/end")
            }
            await world.client.publish(f"{NODE}/command/ping", "down", qos=1)
            await hall.sees(f"{NODE}/command/ping", "down")
    finally:
        running.close()


async def test_any_mqtt_5_broker_will_do_above(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An external one knows nothing of us: here with no ACL, and it may not write `$SYS`."""
    from hedgerow.testing.mosquitto import Mosquitto, TlsFiles

    folder = tmp_path_factory.mktemp("external")
    text = THREE_LEVELS[THREE_LEVELS.index("region:") :].replace("name: north,", "name: north, external: true,")
    running = begin(folder, text)
    own = folder / "pki" / "region" / "issued" / "broker"
    port = int(running.described.topology.region.broker.rpartition(":")[2])
    tls = TlsFiles(own / "trust.crt", own / "tls.crt", own / "tls.key", require_certificate=True)
    assert not (running.out / "north" / "mosquitto.conf").exists()
    try:
        with Mosquitto(port=port, tls=tls) as _:
            running.start("hall")
            async with running.window("hall") as hall, running.client("north", "region", "collector") as above:
                await above.subscribe("hedgerow/v1/#", qos=1)
                await hall.sees("$SYS/broker/connection/hall/state", "1")
                await hall.client.publish(f"{NODE}/status", "up", qos=1, retain=True)
                async for message in above.messages:
                    assert (message.topic.value, message.payload) == (f"{NODE}/status", b"up")
                    break
                while not hall.topics("down"):
                    await above.publish(f"{NODE}/command/ping", "down", qos=1)
                    await hall.until(lambda: True)
                    import asyncio

                    await asyncio.sleep(0.1)
    finally:
        running.close()


def test_a_client_without_a_certificate_is_refused(two_levels: Running) -> None:
    import asyncio

    async def knock() -> None:
        async with two_levels.client("hall", "hall", None):
            pass

    with pytest.raises(aiomqtt.MqttError):
        asyncio.run(knock())
