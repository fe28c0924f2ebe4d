"""What a stolen node or sensor sends, through the commands that read the wire: `watch`, `explain`, `command`.

It may publish anything on its own topics, and reply to a command for every node of its site. Expected: the terminal acts upon nothing,
JSON is JSON line by line, output and memory have a bound, nothing ends the command, and the others' messages are shown.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import orjson
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from typer.testing import CliRunner, Result

from hedgerow.cli.frames.explain import tree
from hedgerow.cli.frames.message_board import Board, parse_message
from hedgerow.cli.main import app
from hedgerow.testing import Mosquitto
from hedgerow.wire.messages import JSON

WAIT_S = 60.0
LONGEST = 3000
"""Characters of a line, at most."""
TEXTS = {
    "controls": "\x1b[2J\x1b]0;title\x07\x00\x9b31m\u202e\u2066\ufeff",
    "lines": "a\nFORGED\r\n\tFORGED\u2028FORGED\u2029FORGED\x85FORGED\x0bFORGED\x0cFORGED",
    "width": "表" * 3000 + "e\u0301" * 300 + "\u200d\u200b" * 30,
    "long": "x" * 200_000,
    "numbers": "9" * 400,
    "format": "%s{0}{x!r:>999999}\\u0000",
}


def bodies(text: str) -> Iterator[tuple[str, Any]]:
    """Yield a message of each channel with this text wherever one is free, and wherever a number belongs."""
    frame = {"id": text, "stream": text, "topic": text, "sequence": text, "captured_at": 1e308}
    lineage = {
        "stages": [[text, 1e308, text]] * 3,
        "models": [{text: text, "name": text}],
        "waited_ms": text,
        "hedgerow": text,
    }
    yield "result/p", {"schema": "hedgerow.result/1", "id": text, "at": -1e308, "result": {text: text}, "frame": frame, "lineage": lineage}  # fmt: skip
    yield "dead/p", {"schema": "hedgerow.dead/1", "reason": text, "message": text, "stage": text, "traceback": text, "remedy": text, "frame": frame}  # fmt: skip
    yield "event/x", {"kind": text, "pipeline": text, "detail": {text: [text, {"label": text}, {"text": text}]}}
    yield "status", {"state": text, "reason": text, "version": text}
    yield "health", {"state": text, "reasons": [text], "pipelines": {text: text}}


class Wire:
    """A broker's client that publishes in a region of its own, retained."""

    def __init__(self, broker: Mosquitto) -> None:
        self.url, self.region = broker.url, f"r{uuid.uuid4().hex[:8]}"
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def publish(self, address: str, payload: bytes, content_type: str = JSON) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = content_type
        topic = f"hedgerow/v1/{self.region}/{address}"
        self.client.publish(topic, payload, qos=1, retain=True, properties=properties).wait_for_publish(WAIT_S)

    def run(self, *args: str) -> Result:
        shown = CliRunner().invoke(app, [*args, "--broker", self.url])
        assert shown.exception is None or isinstance(shown.exception, SystemExit), repr(shown.exception)
        return shown


@pytest.fixture(scope="module")
def live_broker() -> Iterator[Mosquitto]:
    with Mosquitto() as broker:
        yield broker


@pytest.fixture
def wire(live_broker: Mosquitto) -> Iterator[Wire]:
    wire = Wire(live_broker)
    yield wire
    wire.client.disconnect()
    wire.client.loop_stop()


def assert_harmless(shown: str) -> None:
    lines = shown.split("\n")
    assert [char for line in lines for char in line if not char.isprintable()] == []
    assert not [line for line in lines if line.lstrip(" │├└─").startswith("FORGED")]
    assert max(map(len, lines)) <= LONGEST


@pytest.mark.parametrize("name", TEXTS)
def test_watch_shows_all_of_it_on_a_line_each(wire: Wire, name: str) -> None:
    sent = [*bodies(TEXTS[name])]
    for channel, body in sent:
        wire.publish(f"s1/stolen/{channel}", orjson.dumps(body))
    wire.publish("s2/honest/result/p", orjson.dumps({"result": {"n": 1}, "frame": {"stream": "fine"}}))
    watching = [
        "watch",
        "--filter",
        f"hedgerow/v1/{wire.region}/#",
        "--count",
        str(len(sent) + 1),
        "--seconds",
        str(WAIT_S),
    ]

    lines, as_json = wire.run(*watching, "--lines"), wire.run(*watching, "--json")

    assert_harmless(lines.output)
    assert len(lines.output.splitlines()) == len(sent) + 1
    assert [line for line in lines.output.splitlines() if "s2/honest" in line and "n 1" in line]
    documents = [json.loads(line) for line in as_json.output.splitlines()]
    assert len(documents) == len(sent) + 1
    assert all(char.isprintable() or char in "\n\u200d\u200b" for char in as_json.output)
    assert {document["topic"].split("/", 5)[5]: document["body"] for document in documents if "stolen" in document["topic"]} == dict(sent)  # fmt: skip


def deep(opening: bytes, closing: bytes) -> bytes:
    return b'{"result": ' + opening * 900 + b"1" + closing * 900 + b"}"


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "nested lists": (deep(b"[", b"]"), JSON),
    "nested maps": (deep(b'{"a":', b"}"), JSON),
    "nested MessagePack": (b"\x81\xa6result" + b"\x91" * 900 + b"\x01", "application/msgpack"),
    "no JSON": (b"\xff\xfe", JSON),
    "a lone surrogate": (b'{"result": "\\ud800"}', JSON),
    "a number beyond all": (b'{"at": ' + b"9" * 5000 + b"}", JSON),
    "no number": (b'{"at": NaN}', JSON),
    "not a map": (b"[1]", JSON),
    "keys that are no texts": (msgpack.packb({1: 2, None: 3}), "application/msgpack"),
    "infinite times": (msgpack.packb({"at": float("inf"), "frame": {"captured_at": float("-inf")}}), "application/msgpack"),
    "no time": (msgpack.packb({"at": float("nan"), "frame": {"captured_at": 1e18}, "result": {"at": float("nan")}}), "application/msgpack"),
    "a picture": (b"\x89PNG\x1b[2J", "image/png\x1b".replace("\x1b", "")),
    "an empty payload": (b"", JSON),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_ends_no_command_and_hides_no_other(wire: Wire, name: str) -> None:
    payload, content_type = UNREADABLE[name]
    for channel in ("result/p", "dead/p", "event/x", "status", "health"):
        wire.publish(f"s1/stolen/{channel}", payload, content_type)
    wire.publish(
        "s2/honest/result/p",
        orjson.dumps({"schema": "hedgerow.result/1", "id": "fine", "result": {"n": 1}, "frame": {}}),
    )
    watching = ["watch", "--node", f"{wire.region}/s2/honest", "--count", "1", "--seconds", str(WAIT_S)]
    every = ["watch", "--node", f"{wire.region}/+/+", "--count", "1", "--seconds", str(WAIT_S)]

    assert "n 1" in wire.run(*watching, "--lines").output
    for options in (["--lines"], ["--json"]):
        assert_harmless(wire.run(*every, *options).output)


def test_explain_passes_over_what_cannot_be_read_and_says_so(live_broker: Mosquitto) -> None:
    wire = Wire(live_broker)
    pipeline = f"p{uuid.uuid4().hex[:8]}"
    wire.publish(f"a/stolen/result/{pipeline}", b"\xff")
    wire.publish(f"a/stolen/dead/{pipeline}", orjson.dumps({"schema": "hedgerow.dead/9"}))
    wire.publish(
        f"b/honest/result/{pipeline}",
        orjson.dumps({"schema": "hedgerow.result/1", "id": "fine", "result": {"n": 1}, "frame": {}}),
    )
    shown = wire.run("explain", "--last", pipeline)

    assert "Result fine" in shown.output
    assert_harmless(shown.output)


def test_a_lineage_cannot_make_explain_print_without_end() -> None:
    """A name of 100 kB would be the width of each of thousands of rows."""
    stages = [["x" * 100_000, 1, 1], *[["y", 1, 1]] * 5000]
    body = {
        "schema": "hedgerow.result/1",
        "result": {},
        "lineage": {"stages": stages, "models": [{"name": "m"}] * 5000},
    }

    def size(branch: Any) -> int:
        return len(branch.text) + sum(map(size, branch.children))

    assert size(tree(body, 0.0)) < 100_000


def test_the_table_of_watch_remembers_little_of_what_is_invented() -> None:
    board = Board()
    for n in range(5000):
        body = {"result": {"n": n}, "frame": {"stream": f"invented-{n}"}, "filler": "x" * 100}
        message = parse_message("hedgerow/v1/r/s1/stolen/result/p", orjson.dumps(body), JSON, [], float(n))
        assert message is not None
        board.add(message)
    for n in range(3000):
        health = {"schema": "hedgerow.health/1", "node": "n", "session": "s", "at": 1, "uptime_s": 1, "state": "ok"}
        message = parse_message(f"hedgerow/v1/r/s1/n{n}/health", orjson.dumps(health), JSON, [], float(n))
        assert message is not None
        board.add(message)

    assert len(board.streams) <= 1000
    assert len(board.nodes) <= 1000
    assert not [count for count in board.streams.values() if count.last.body is not None]
    assert ("r/s1/stolen", "p", "invented-4999") in board.streams


Answer = Callable[[str, str], Iterator[tuple[str, bytes]]]
"""Of a command's reply topic and region: topics and payloads."""


def reply(node: str, **fields: Any) -> bytes:
    return orjson.dumps({"schema": "hedgerow.reply/1", "command": "health", "node": node, "ok": True, **fields})


ANSWERS: dict[str, Callable[[str], list[bytes]]] = {
    "no JSON": lambda _: [b"\xff\x00"],
    "an empty reply": lambda _: [b""],
    "nested without end": lambda _: [b'{"value":' + b"[" * 100_000],
    "another's name": lambda region: [reply(f"{region}/other/honest", value=1)],
    "a name with controls": lambda region: [reply(f"{region}/hall/\x1b[2J\u202e", value=1)],
    "texts": lambda region: [reply(f"{region}/hall/stolen", value={text: [text] for text in TEXTS.values()})],
    "an error of texts": lambda region: [
        reply(f"{region}/hall/stolen", ok=False, error=dict.fromkeys(("code", "message", "remedy"), text))
        for text in TEXTS.values()
    ],
    "names without end": lambda region: [reply(f"{region}/hall/invented-{n}", value=1) for n in range(3000)],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_node_that_replies_with_anything_keeps_no_other_reply_back(wire: Wire, name: str) -> None:
    for node in ("stolen", "honest"):
        status = {"schema": "hedgerow.status/1", "node": f"{wire.region}/hall/{node}", "session": "s", "at": 1, "state": "online", "version": "1"}  # fmt: skip
        wire.publish(f"hall/{node}/status", orjson.dumps(status))
    subscribed = threading.Event()

    def answer(client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = message.properties.CorrelationData
        for payload in [*ANSWERS[name](wire.region), reply(f"{wire.region}/hall/honest", value={"fine": "yes"})]:
            client.publish(message.properties.ResponseTopic, payload, qos=1, properties=properties)
        client.publish(
            message.properties.ResponseTopic, reply(f"{wire.region}/hall/stolen", value=0), qos=1, properties=properties
        )

    wire.client.on_message = answer
    wire.client.on_subscribe = lambda *_: subscribed.set()
    wire.client.subscribe(f"hedgerow/v1/{wire.region}/hall/~/command/+", 1)
    assert subscribed.wait(WAIT_S)

    shown = wire.run("command", f"{wire.region}/hall/~", "health", "--timeout", str(WAIT_S))
    as_json = wire.run("command", f"{wire.region}/hall/~", "health", "--timeout", str(WAIT_S), "--json")

    assert "fine" in shown.output
    assert_harmless(shown.output)
    assert len(shown.output) < 500_000
    assert {"fine": "yes"} in [each["value"] for each in json.loads(as_json.stdout)]
