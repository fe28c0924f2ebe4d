"""Attempts of a stolen sensor: it holds the sensor's certificate, and may publish on the sensor's own topic only.

The site is rendered, its Mosquitto strict, its node a process with three pipelines: one durable, one whose stages run in a worker,
one that reads the stream from a field. After each attempt another sensor's frame gives a result in all three.
"""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import orjson
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.topology.conftest import TIMEOUT_S, Running
from tests.wire import unchecked

from hedgerow.bus.packets import encode_connect, encode_publish_head, encode_subscribe
from hedgerow.bus.properties import Property
from hedgerow.testing import processes
from hedgerow.testing.ports import held_port
from hedgerow.topology import files
from hedgerow.topology.load import load
from hedgerow.topology.render import render
from hedgerow.wire.codec import ENVELOPE

OWN, OTHER = "plant/1/door", "plant/2/door"
NODE = "hedgerow/v1/north/hall/a"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PIPELINES = ("durable", "worker", "fields")

BASE = """\
metrics: {port: METRICS}
log: {format: json}
pipelines:
  durable: {subscribe: plant/+/door, content_type: application/json, stages: [parse: {field: v}], publish: {durable: true},
    stream: {max_streams: 50},
    max_payload_bytes: 100000}
  worker: {subscribe: plant/+/door, content_type: application/json, stages: [parse: {field: v}], workers: 1, stream: {max_streams: 50},
    max_payload_bytes: 100000}
  fields: {subscribe: plant/+/door, content_type: application/json, stages: [parse: {field: v}],
    stream: {by: field, field: machine, max_streams: 50}, max_payload_bytes: 100000}
"""
TOPOLOGY = """\
region:
  name: north
  broker: mqtts://localhost:PORT
  roles: {collector: [collector]}
pipelines: base.yaml
sensors: {camera: plant/1/door, gate: plant/2/door}
sites:
  hall:
    broker: mqtts://localhost:PORT
    nodes: [a]
"""


@dataclass
class Sent:
    """A message as an attacker sends it."""

    payload: bytes = b'{"v": [1], "machine": "m"}'
    topic: str = OWN
    properties: bytes = b""
    qos: int = 1
    retain: bool = False


def stated(payload: bytes = b'{"v": [1], "machine": "m"}', content_type: str = "", **user: str) -> Sent:
    """Return a message with properties, whatever is in them."""
    pairs: list[tuple[Property, Any]] = [(Property.USER, pair) for pair in user.items()]
    if content_type:
        pairs.append((Property.CONTENT_TYPE, content_type))
    return Sent(payload, properties=unchecked.properties(pairs))


def envelope(payload: bytes = b'{"v": [1]}', **fields: Any) -> Sent:
    body = {"payload": payload, "content_type": "application/json", "machine": "m"} | fields
    return stated(msgpack.packb({key: value for key, value in body.items() if key != "machine"}), ENVELOPE)


def machine(text: str) -> Sent:
    return Sent(orjson.dumps({"v": [1], "machine": text}))


class Site:
    """The site: broker, node, what is published there, and the other sensor."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        metrics = stack.enter_context(held_port())
        text = TOPOLOGY
        while "PORT" in text:
            text = text.replace("PORT", str(stack.enter_context(held_port())), 1)
        text += f"\nmachine: {{pki: pki, config: out, state: state, broker_user: {getpass.getuser()}}}\n"
        (folder / "base.yaml").write_text(BASE.replace("METRICS", str(metrics)))
        (folder / "topology.yaml").write_text(text)
        described = load(folder / "topology.yaml")
        files.write(render(described), described.source, folder / "out")
        self.running = Running(folder, described, folder / "out", stack)
        stack.callback(self.running.close)
        self.running.certify_all()
        self.running.start("hall")
        self.messages: list[mqtt.MQTTMessage] = []
        self._changed = threading.Condition()
        self.metrics_url = f"http://127.0.0.1:{metrics}"
        self._watch(stack)
        (config,) = (folder / "out" / "hall").rglob("a.yaml")
        log = stack.enter_context((folder / "node.log").open("wb"))
        self._node_log = folder / "node.log"
        command = [sys.executable, "-m", "hedgerow", "node", "run", str(config)]
        node = processes.start(command, stdout=log, stderr=log, cwd=folder)
        stack.callback(node.wait)
        stack.callback(node.kill)
        self.gate = self._sensor(stack, "gate")
        self.until(self._ready, "the node")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.metrics_url}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _watch(self, stack: ExitStack) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)

        def received(_: Any, __: Any, message: mqtt.MQTTMessage) -> None:
            with self._changed:
                self.messages.append(message)
                self._changed.notify_all()

        client.on_message = received
        client.connect("127.0.0.1", self.running.windows["hall"])
        client.subscribe("#", 1)
        client.loop_start()
        stack.callback(client.loop_stop)

    def _sensor(self, stack: ExitStack, name: str) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.tls_set_context(self.running.tls("hall", name))
        client.connect("localhost", self.running.port("hall"))
        client.loop_start()
        stack.callback(client.loop_stop)
        return client

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition, looked at whenever a message arrives."""
        with self._changed:
            found: Any = self._changed.wait_for(condition, 0.05)
            for _ in range(int(TIMEOUT_S / 0.05)):
                if found:
                    return found
                found = self._changed.wait_for(condition, 0.05)
        raise AssertionError(f"{what}; the node's log: {self._node_log.read_text()[-3000:]}")

    def attack(self, *sent: Sent, will: str = "") -> bytes:
        """Send messages over a link of their own, then PINGREQ. Returns: the broker's answers; it may close the link."""
        packets = encode_connect(client_id=f"camera-{uuid.uuid4().hex}", clean_start=True, keepalive_s=60)
        for number, each in enumerate(sent, 1):
            topic = each.topic if each.topic.isprintable() else "x" * len(each.topic.encode(errors="surrogatepass"))
            head = encode_publish_head(
                topic, len(each.payload), qos=each.qos, packet_id=number, retain=each.retain, properties=each.properties
            )
            packets += head.replace(topic.encode(), each.topic.encode(errors="surrogatepass"), 1) + each.payload
        return self.exchange(packets)

    def exchange(self, packets: bytes) -> bytes:
        """Send packets and a DISCONNECT; return all that the broker answers until the link is closed."""
        answer = b""
        with (
            socket.create_connection(("localhost", self.running.port("hall")), TIMEOUT_S) as plain,
            self.running.tls("hall", "camera").wrap_socket(plain, server_hostname="localhost") as link,
        ):
            try:
                link.sendall(packets + b"\xe0\x00")
                while (received := link.recv(65_536)) != b"":
                    answer += received
            except (ssl.SSLError, ConnectionError):
                pass
        return answer

    def bodies(self, channel: str, since: int = 0) -> list[dict[str, Any]]:
        found = [each for each in self.messages[since:] if each.topic.startswith(f"{NODE}/{channel}/")]
        return [orjson.loads(each.payload) | {"_topic": each.topic, "_message": each} for each in found]

    def assert_others_lose_nothing(self, since: int) -> list[str]:
        """Send three frames of the other sensor, and wait for their results in each pipeline, in order. Returns: their ids."""
        ids = [uuid.uuid4().hex for _ in range(3)]
        for each in ids:
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = [("id", each)]
            self.gate.publish(OTHER, b'{"v": [2], "machine": "gate"}', qos=1, properties=properties)

        def seen(pipeline: str) -> list[str]:
            results = [body for body in self.bodies("result", since) if pipeline in body["_topic"].split("/")]
            return [body["id"] for body in results if body["id"] in ids]

        self.until(lambda: all(len(seen(name)) >= 3 for name in PIPELINES), f"results of {ids}")
        assert all(seen(name) == ids for name in PIPELINES)
        streams = {body["frame"]["stream"] for body in self.bodies("result", since) if body["id"] in ids}
        assert streams == {OTHER, f"{OTHER}#gate"}
        return ids

    def deaths(self, pipeline: str, reason: str) -> float:
        """Return how many dead letters with a reason the node has counted."""
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=TIMEOUT_S) as reply:
            text = reply.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if {"pipeline": pipeline, "reason": reason}.items() <= sample.labels.items()
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="sensor-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Site(folder, stack)


BAD_TEXTS = {
    "NUL": "\0", "escape": "\x1b[2J", "DEL": "a\x7f", "C1 introducer": "\x9b2J", "non-character": "\ufdd0",
    "last of a plane": "\uffff", "last of all": "\U0010ffff", "override": "\u202egnp", "isolate": "\u2066",
    "line separator": "a\u2028b", "line feed": "a\nb", "byte order mark": "a\ufeff",
}  # fmt: skip

NPY_OF_TRUE = b"{'descr':'<f8','fortran_order':False,'shape':(True,)}".ljust(117) + b"\n"

DEAD: dict[str, tuple[Sent, str, tuple[str, ...]]] = {
    **{f"envelope id: {name}": (envelope(id=bad), "bad-text", PIPELINES[:2]) for name, bad in BAD_TEXTS.items()},
    **{
        f"envelope stream: {name}": (envelope(stream=bad), "bad-text", PIPELINES[:2])
        for name, bad in list(BAD_TEXTS.items())[:6]
    },
    **{f"field: {name}": (machine(bad), "bad-text", ("fields",)) for name, bad in list(BAD_TEXTS.items())[:8]},
    "envelope content type": (envelope(content_type="a/\x1b"), "bad-text", PIPELINES[:2]),
    "envelope rate that becomes meta": (envelope(content_type="audio/l16; rate=8\r\n0"), "bad-text", PIPELINES[:2]),
    "override in an id property": (stated(id="\u202egnp"), "bad-text", PIPELINES),
    "line separator in an id property": (stated(id="a\u2028b"), "bad-text", PIPELINES),
    "isolate in a content type": (stated(content_type="a/\u2066"), "bad-text", PIPELINES[:2]),
    "long id property": (stated(id="i" * 1025), "bad-id", PIPELINES),
    "long content type": (stated(content_type="a/" + "b" * 2000), "unknown-content-type", PIPELINES[:2]),
    "long envelope id": (envelope(id="é" * 513), "bad-envelope", PIPELINES[:2]),
    "long envelope stream": (envelope(stream="s" * 1025), "long-stream-name", PIPELINES[:2]),
    "long field": (machine("m" * 1025), "long-stream-name", ("fields",)),
    "a side of an array that is a truth value": (  # a stage that fails ten times in a row is skipped, for other sensors too
        stated(b"\x93NUMPY\x01\x00\x76\x00" + NPY_OF_TRUE + bytes(8), "application/x-npy"), "bad-npy", PIPELINES[:2],
    ),
    "surrogate in a field": (Sent(b'{"v": [1], "machine": "\\ud800"}'), "bad-json", ("fields",)),
    "not UTF-8 in an envelope": (
        stated(b"\x82\xa2id\xa1\xff\xa7payload\xc4\x01x", ENVELOPE), "bad-msgpack", PIPELINES[:2],
    ),
    "envelope in an envelope": (envelope(content_type=ENVELOPE), "unknown-content-type", PIPELINES[:2]),
    "unknown envelope field": (envelope(begins=True), "bad-envelope", PIPELINES[:2]),
    "envelope id of another type": (envelope(id=["\x1b"]), "bad-envelope", PIPELINES[:2]),
    "30,000 user properties' bytes": (
        stated(**{f"k{n}": "v" * 1000 for n in range(40)}), "malformed-message", PIPELINES,
    ),
    "too large": (Sent(bytes(200_000)), "payload-too-large", PIPELINES),
    "from the future": (stated(time="2126-01-01T00:00:00Z"), "captured-in-future", PIPELINES),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "reason", "pipelines"), DEAD.values(), ids=DEAD)
def test_a_bad_frame_is_a_dead_letter_that_can_be_read_and_others_lose_nothing(
    site: Site, sent: Sent, reason: str, pipelines: tuple[str, ...]
) -> None:
    since = len(site.messages)
    before = {name: site.deaths(name, reason) for name in pipelines}
    assert site.attack(sent), "the broker takes it: on a broker that is less strict, all of these come through"

    def letters() -> list[dict[str, Any]]:
        return [each for each in site.bodies("dead", since) if each["reason"] == reason]

    site.until(lambda: {each["pipeline"] for each in letters()} >= set(pipelines), f"dead letters: {reason}")
    for letter in letters():
        assert letter["remedy"]
        assert letter["frame"]["topic"] == OWN
        assert all(letter[name].isprintable() for name in ("message", "remedy"))
        assert dict(letter["_message"].properties.UserProperty) == {"reason": reason}
    site.assert_others_lose_nothing(since)
    site.until(lambda: all(site.deaths(name, reason) == before[name] + 1 for name in pipelines), f"counts: {reason}")


REFUSED = {
    "escape in an id property": stated(id="\x1b[2J"),
    "non-character in a property's name": stated(**{"\ufdd0": "x"}),
    "control in a content type": stated(content_type="a/\x85"),
    "another sensor's topic": Sent(topic=OTHER),
    "a result": Sent(topic=f"{NODE}/result/durable"),
    "a late result": Sent(topic=f"{NODE}/result/durable/late"),
    "a dead letter": Sent(topic=f"{NODE}/dead/durable"),
    "an acknowledgement of stored results": Sent(b'{"epoch":"e","through":{"0":99}}', f"{NODE}/ack"),
    "a command": Sent(b"{}", f"{NODE}/command/stop"),
    "a command to all": Sent(b"{}", "hedgerow/v1/north/hall/~/command/stop"),
    "a gap": Sent(b"{}", f"{NODE}/event/gap"),
    "the node's status": Sent(b"{}", f"{NODE}/status", retain=True),
    "below its own topic": Sent(topic=f"{OWN}/x"),
    "a control in a topic": Sent(topic="plant/\x1b/door"),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_the_broker_refuses_reaches_nobody(site: Site, sent: Sent) -> None:
    since = len(site.messages)
    logged = len(site.running.log("hall"))
    answer = site.attack(sent)

    assert b"\x40\x03\x00\x01\x87" in answer or b"\x40" not in answer[5:], "not authorised, or the link is closed"
    told = re.compile("Denied PUBLISH|malformed|disconnected", re.IGNORECASE)
    site.until(lambda: told.search(site.running.log("hall"), logged), "the broker's log says nothing of it")
    site.assert_others_lose_nothing(since)
    foreign = [each for each in site.messages[since:] if each.topic == sent.topic and each.payload == sent.payload]
    assert sent.topic == OWN or not foreign


CONFINED = {
    "envelope: the other sensor's topic": (envelope(stream=OTHER, id="c1"), f"{OWN}#{OTHER}"),
    "envelope: the other sensor's confined stream": (envelope(stream=f"{OTHER}#gate", id="c2"), f"{OWN}#{OTHER}#gate"),
    "envelope: its own topic": (envelope(stream=OWN, id="c3"), OWN),
    "envelope: separators": (envelope(stream="#", id="c4"), f"{OWN}##"),
    "field: the other sensor's machine": (
        Sent(b'{"v": [1], "machine": "gate"}', properties=stated(id="c5").properties), f"{OWN}#gate",
    ),
    "field: the other sensor's stream": (
        Sent(b'{"v": [1], "machine": "plant/2/door#gate"}', properties=stated(id="c6").properties),
        f"{OWN}#plant/2/door#gate",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "stream"), CONFINED.values(), ids=CONFINED)
def test_a_sensor_writes_only_into_streams_of_its_own_topic(site: Site, sent: Sent, stream: str) -> None:
    since = len(site.messages)
    site.attack(sent)

    def streams() -> set[str]:
        return {each["frame"]["stream"] for each in site.bodies("result", since) if each["frame"]["topic"] == OWN}

    site.until(lambda: stream in streams(), f"a result of {stream}")
    assert all(each.partition("#")[0] == OWN for each in streams())
    site.assert_others_lose_nothing(since)


TRACES = {
    "escape in an envelope": envelope(traceparent="\x1b]0;x\x07"),
    "NUL in an envelope": envelope(traceparent=f"{TRACE[:-1]}\0"),
    "60,000 characters": envelope(traceparent="x" * 60_000),
    "upper case": stated(traceparent=TRACE.upper()),
    "a space behind": stated(traceparent=f"{TRACE} "),
    "digits of another script": stated(traceparent=TRACE.replace("4", "\uff14")),
    "an override behind": stated(traceparent=f"{TRACE}\u202e"),
}


@pytest.mark.parametrize("sent", TRACES.values(), ids=TRACES)
def test_a_traceparent_that_is_none_is_never_forwarded_and_counted(site: Site, sent: Sent) -> None:
    since = len(site.messages)
    site.attack(sent)

    def results() -> list[dict[str, Any]]:
        return [each for each in site.bodies("result", since) if each["frame"]["topic"] == OWN]

    site.until(lambda: len({each["pipeline"] for each in results()}) >= 2, "results")
    for each in results():
        assert "traceparent" not in dict(each["_message"].properties.UserProperty)
    with urllib.request.urlopen(f"{site.metrics_url}/metrics", timeout=TIMEOUT_S) as reply:
        assert 'kind="traceparent-ignored"' in reply.read().decode()
    site.assert_others_lose_nothing(since)


def test_a_response_topic_of_a_frame_makes_the_node_publish_nothing_there(site: Site) -> None:
    since = len(site.messages)
    response = bytes([Property.RESPONSE_TOPIC]) + unchecked.text(f"{NODE}/status")
    site.attack(Sent(properties=response))
    site.assert_others_lose_nothing(since)

    assert not [each for each in site.messages[since:] if each.topic == f"{NODE}/status"]


def test_reading_subscribing_to_all_and_to_shared_groups_delivers_nothing(site: Site) -> None:
    since = len(site.messages)
    filters = dict.fromkeys(["#", "+/+/+", OTHER, f"{NODE}/#", "$share/hedgerow/plant/+/door", "$SYS/#"], 1)
    packets = encode_connect(client_id="camera", clean_start=True, keepalive_s=60) + encode_subscribe(1, filters)
    with (
        socket.create_connection(("localhost", site.running.port("hall")), TIMEOUT_S) as plain,
        site.running.tls("hall", "camera").wrap_socket(plain, server_hostname="localhost") as link,
    ):
        link.sendall(packets + b"\xc0\x00")
        answer = b""
        while b"\xd0\x00" not in answer:
            answer += link.recv(65_536)
        site.assert_others_lose_nothing(since)
        link.sendall(b"\xc0\x00")
        while not answer.endswith(b"\xd0\x00") or answer.count(b"\xd0\x00") < 2:
            answer += link.recv(65_536)

    assert b"plant/" not in answer
    assert b"hedgerow/" not in answer


def test_many_invented_streams_take_nothing_from_others(site: Site) -> None:
    """Each is bounded; the other sensor's numbers go on where they were."""
    last = {}
    for attacked in (False, True):
        since = len(site.messages)
        if attacked:
            site.attack(*(envelope(stream=f"s{number}") for number in range(200)))
        ids = site.assert_others_lose_nothing(since)
        for name in PIPELINES:
            frames = [each["frame"] for each in site.bodies("result", since) if each["pipeline"] == name]
            numbers = [frame["sequence"] for frame in frames if frame["id"] in ids]
            assert numbers[0] == last.get(name, numbers[0] - 1) + 1
            last[name] = numbers[-1]
