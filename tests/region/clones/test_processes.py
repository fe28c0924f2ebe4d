"""A node's disk is copied while it runs, and both run as real processes at two sites, with frames, kills and real health periods."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.e2e.conftest import TIMEOUT_S, NodeProcess, until
from tests.region.clones.brokers import Brokers
from tests.region.clones.disks import copy_disk
from tests.region.conftest import CollectorProcess

from hedgerow.testing import Mosquitto, processes

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


class Sensor:
    """Sends frames that have ids, at QoS 1, and waits until the broker has them."""

    def __init__(self, broker: Mosquitto, topic: str, name: str) -> None:
        self.sent: set[str] = set()
        self._topic, self._name = topic, name
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def send(self, count: int) -> None:
        for n in range(len(self.sent), len(self.sent) + count):
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = [("id", f"{self._name}-{n}")]
            sent = self._client.publish(f"{self._topic}/a", json.dumps({"n": n}), qos=1, properties=properties)
            sent.wait_for_publish(TIMEOUT_S)
            self.sent.add(f"{self._name}-{n}")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def test_a_node_and_its_clone_are_named_and_lose_nothing_though_all_are_killed(
    stack: ExitStack, tmp_path: Path
) -> None:
    for name in ("region", "one", "two"):
        (tmp_path / name).mkdir()
    brokers = Brokers()
    stack.callback(brokers.close)
    region = CollectorProcess(brokers.at["region"].url, str(tmp_path / "region/region.db"), tmp_path / "region")
    stack.callback(region.close)
    region.configure()
    region.start()

    def node(name: str, broker: str) -> tuple[NodeProcess, Sensor]:
        made = NodeProcess(brokers.at[broker], tmp_path / name)
        stack.callback(made.close)
        made.site, made.topic = "shop", "shop/in"
        made.configure(publish={"durable": True}, queue={"policy": "fifo"})
        made.start()
        sensor = Sensor(brokers.at[broker], made.topic, name)
        stack.callback(sensor.close)
        return made, sensor

    def rows(query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{region.store}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(query).fetchall()

    def stored() -> Counter[str]:
        return Counter(json.loads(payload)["id"] for (payload,) in rows("SELECT payload FROM result"))

    one, camera = node("one", "hall")
    camera.send(10)
    brokers.wans["hall"].cut()
    camera.send(10)
    copy_disk(tmp_path / "one/state", tmp_path / "two/state")
    brokers.wans["hall"].restore()
    two, other = node("two", "yard")
    for killed in (one, two, region):
        camera.send(20)
        other.send(20)
        killed.kill()
        camera.send(5)
        other.send(5)
        killed.start()
    made = camera.sent | other.sent
    until(lambda: stored().keys() >= made, lambda: f"{len(made - stored().keys())} missing", TIMEOUT_S)
    until(lambda: not one.metric("hedgerow_outbox_entries") + two.metric("hedgerow_outbox_entries"))
    frames_twice = {name: count for name, count in stored().items() if count > 1}
    assert len(frames_twice) <= 50, "only frames that were in a killed node may be processed twice"

    def naming() -> set[str]:
        """Return the runs whose last health report names another node."""
        last = {}
        for (payload,) in rows("SELECT payload FROM health ORDER BY ingest"):
            health = json.loads(payload)
            last[health["session"]] = any("another node runs as test/shop/" in one for one in health["reasons"])
        return {session for session, names in last.items() if names}

    until(lambda: len(naming()) == 2, naming, TIMEOUT_S)
    events = [json.loads(payload) for (payload,) in rows("SELECT payload FROM event WHERE kind = 'name-in-use'")]
    assert {"region"} < {event["session"] for event in events}, "of the region, and of the nodes"
    command = ["region", "status", "--store", region.store]
    status = processes.run([sys.executable, "-m", "hedgerow", *command], capture_output=True, text=True, check=False)
    assert "another machine or process uses this name too" in " ".join(status.stdout.split())
