"""A node process, sensors that track what the broker has accepted, and a collector of all messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.testing import Mosquitto, processes
from hedgerow.testing.ports import held_port

PLUGINS = Path(__file__).parents[1] / "node" / "plugins"
TIMEOUT_S = 60.0


def until(
    condition: Callable[[], Any], description: Callable[[], Any] = lambda: "it", timeout_s: float = TIMEOUT_S
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {description()}"
        time.sleep(0.05)  # the condition often reads /metrics, which loads the node


def _client(name: str, port: int) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(200)
    client.reconnect_delay_set(0.05, 0.2)
    return client


def _connect(client: mqtt.Client, port: int) -> None:
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 3600
    up = threading.Event()
    previous, client.on_connect = client.on_connect, lambda *_: up.set()
    client.connect("127.0.0.1", port, clean_start=False, properties=session)
    client.loop_start()
    assert up.wait(TIMEOUT_S)
    client.on_connect = previous


class Sensors:
    """Publishes numbered frames at QoS 1 until all are accepted, across restarts of the broker.

    Attributes:
        topic: prefix of the topics.
        count: number of frames sent so far.
        resent: frames that may have been sent twice, because the link broke before the acknowledgement.
    """

    def __init__(self, port: int, topic: str) -> None:
        self.topic = topic
        self.resent: set[int] = set()
        self.count = 0
        # No lock: the client's thread holds its own during callbacks, so another could deadlock.
        self._numbers: dict[int, int] = {}
        self._acknowledged: list[int] = []
        self._client = _client(f"sensors-{uuid.uuid4().hex}", port)
        self._client.on_publish = lambda _client, _data, mid, *_: self._acknowledged.append(mid)
        self._client.on_disconnect = self._disconnected
        _connect(self._client, port)

    @property
    def accepted(self) -> set[int]:
        """Numbers of the frames acknowledged by the broker."""
        numbers = self._numbers.copy()
        return {numbers[mid] for mid in self._acknowledged.copy() if mid in numbers}

    def _disconnected(self, *_: Any) -> None:
        self.resent |= set(range(self.count)) - self.accepted

    def send(self, count: int = 1, **body: Any) -> None:
        """Send frames in five streams; every other frame has an id and a capture time."""
        for n in range(self.count, self.count + count):
            properties = Properties(PacketTypes.PUBLISH)
            if n % 2:
                properties.UserProperty = [("id", f"frame-{n}"), ("time", f"{time.time():.3f}")]
            payload = orjson.dumps({"n": n, **body})
            self.count += 1
            sent = self._client.publish(f"{self.topic}/{n % 5}", payload, qos=1, properties=properties)
            self._numbers[sent.mid] = n

    def settle(self) -> None:
        """Wait until the broker has accepted all frames."""
        until(lambda: len(self.accepted) == self.count, lambda: f"{len(self.accepted)} of {self.count} accepted")

    def close(self) -> None:
        self._client.on_disconnect = None
        self._client.disconnect()
        self._client.loop_stop()


class Collector:
    """Collects all messages of the node, in a session that survives restarts of the broker."""

    def __init__(self, port: int, topic: str) -> None:
        self.messages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._client = _client(f"collector-{uuid.uuid4().hex}", port)
        self._client.on_message = self._received
        _connect(self._client, port)
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.subscribe(topic, 1)
        assert subscribed.wait(TIMEOUT_S)

    def _received(self, client: Any, userdata: Any, message: mqtt.MQTTMessage) -> None:
        channel = message.topic.split("/", 5)[5]
        if not channel.startswith("blob"):  # parts of models, which are not JSON
            self.messages[channel].append(orjson.loads(message.payload))

    def ids(self) -> dict[int, list[str]]:
        """Return the frame ids of the results, by frame number."""
        found = defaultdict(list)
        for body in list(self.messages["result/p"]):
            found[body["result"]["n"]].append(body["frame"]["id"])
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class NodeProcess:
    """`python -m hedgerow node run FILE`."""

    def __init__(self, broker: Mosquitto, folder: Path) -> None:
        self.site = f"site-{uuid.uuid4().hex[:8]}"
        self.topic = f"{self.site}/in"
        self.topic_filter = f"hedgerow/v1/test/{self.site}/#"
        self.file = folder / "node.yaml"
        self.environment: dict[str, str] = {}
        self.wrapper: tuple[str, ...] = ()
        self._stack = ExitStack()
        self.port = self._stack.enter_context(held_port())
        self._broker = broker
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, *stages: Any, drain_s: float = 20, **fields: Any) -> None:
        """Write the configuration file."""
        node = {"region": "test", "site": self.site, "drain_s": drain_s, "state_dir": str(self._folder / "state")}
        lanes = {} if fields.get("workers") else {"lanes": 2}
        pipeline = {"subscribe": f"{self.topic}/+", **lanes, "stages": list(stages or ["trial"]), **fields}
        self.file.write_text(
            json.dumps(
                {
                    "node": node,
                    "broker": {"url": self._broker.url},
                    "metrics": {"port": self.port},
                    "pipelines": {"p": pipeline},
                }
            )
        )

    def start(self, *, wait: bool = True) -> None:
        path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self._folder / "node.log").open("ab") as log:
            self._process = processes.start(
                [*self.wrapper, sys.executable, "-m", "hedgerow", "node", "run", str(self.file)],
                stderr=log,
                stdout=log,
                env={**os.environ, "PYTHONPATH": path, **self.environment},
            )
        if wait:
            until(lambda: self.probe("readyz")[0] == 200, lambda: self.log[-3000:])

    def probe(self, path: str) -> tuple[int, str]:
        """Return the status and body of a probe; status 0 if the node does not respond."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric, summed over all labels but the given ones."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.probe("metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def exited(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait for the exit and return its status."""
        assert self._process is not None
        return self._process.wait(TIMEOUT_S)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    @property
    def log(self) -> str:
        return (self._folder / "node.log").read_text()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._stack.close()


@pytest.fixture
def node(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[NodeProcess]:
    """A node configured with the stage `trial`, not started."""
    process = NodeProcess(mosquitto, tmp_path)
    process.configure()
    yield process
    process.close()


@pytest.fixture
def sensors(mosquitto: Mosquitto, node: NodeProcess) -> Iterator[Sensors]:
    sensors = Sensors(mosquitto.port, node.topic)
    yield sensors
    sensors.close()


@pytest.fixture
def collector(mosquitto: Mosquitto, node: NodeProcess) -> Iterator[Collector]:
    collector = Collector(mosquitto.port, node.topic_filter)
    yield collector
    collector.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until
