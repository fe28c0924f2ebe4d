"""`hedgerow command`: a request over MQTT 5, and what a node, several or none answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel, parse
from hedgerow.wire.messages import Command, ErrorBody, Reply, Status


class Responder:
    """Answers commands as a node does: on the response topic, with the correlation data.

    Attributes:
        asked: what came: command, arguments, properties, expiry.
    """

    def __init__(self, broker: Mosquitto, site: Address, nodes: Mapping[str, Any]) -> None:
        self._broker, self._site, self._nodes = broker, site, nodes
        self.asked: list[tuple[str, Command, Any]] = []

    async def __aenter__(self) -> Responder:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready))
        await ready.wait()
        return self

    async def __aexit__(self, *exception: object) -> None:
        while (
            not self._task.done()
        ):  # aiomqtt waits by `asyncio.wait_for`, which Python 3.11 lets forget a cancellation
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    async def _serve(self, ready: asyncio.Event) -> None:
        async with aiomqtt.Client("127.0.0.1", self._broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(f"hedgerow/v1/{self._site.region}/{self._site.site}/+/command/+", qos=1)
            ready.set()
            async for message in client.messages:
                parsed = parse(str(message.topic))
                assert parsed is not None
                command = Command.model_validate_json(bytes(message.payload))
                self.asked.append((parsed.tail, command, message.properties))
                for name, answer in self._nodes.items():
                    if parsed.address.node in (name, "~"):
                        await self._answer(client, message.properties, parsed.tail, name, answer)

    async def _answer(self, client: aiomqtt.Client, asked: Any, command: str, name: str, answer: Any) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = asked.CorrelationData
        node = str(self._site._replace(node=name))
        if isinstance(answer, ErrorBody):
            reply = Reply(command=command, node=node, ok=False, error=answer)
        else:
            reply = Reply(command=command, node=node, ok=True, value=answer)
        await client.publish(asked.ResponseTopic, reply.encode(), qos=1, properties=properties)


@pytest.fixture
def site(topic_prefix: str) -> Address:
    return Address("local", topic_prefix, "~")


async def test_the_answer_is_printed_as_keys_and_values(in_background, broker, site: Address) -> None:
    value = {"version": "0.1.0", "pipelines": {"doors": {"state": "running", "out": 3}}, "models": []}
    async with Responder(broker, site, {"press": value}):
        said = await in_background(
            "command", f"local/{site.site}/press", "info", "--timeout", "60", "--broker", broker.url
        )

    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "version                0.1.0\n"
        "pipelines.doors.state  running\n"
        "pipelines.doors.out    3\n"
        "models                 []\n"
    )


async def test_an_answer_with_nothing_to_say_is_ok(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": None}):
        said = await in_background(
            "command", f"local/{site.site}/press", "ping", "--timeout", "60", "--broker", broker.url
        )

    assert (said.code, said.out) == (0, "ok\n")


async def test_json_is_the_whole_reply(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": {"pong": True}}):
        said = await in_background(
            "command", f"local/{site.site}/press", "ping", "--timeout", "60", "--json", "--broker", broker.url
        )

    assert said.json == {
        "schema": "hedgerow.reply/1",
        "command": "ping",
        "node": f"local/{site.site}/press",
        "ok": True,
        "value": {"pong": True},
        "error": None,
    }


async def test_what_a_node_gets_is_a_request_that_expires(in_background, broker, site: Address, tmp_path: Path) -> None:
    """The broker forgets it and the node refuses it after the timeout: a command must never come late."""
    (tmp_path / "node.yaml").write_text("node: {name: press}\n")
    pairs = ("pipeline=doors", "level=3", "text=a=b", f"config=@{tmp_path}/node.yaml")
    began = time.time()
    async with Responder(broker, site, {"press": None}) as node:
        arguments = ("reload", *pairs, "--args", '{"quick": true}', "--timeout", "70")
        await in_background("command", f"local/{site.site}/press", *arguments, "--broker", broker.url)

    ((name, command, properties),) = node.asked
    assert name == "reload"
    assert command.args == {
        "quick": True, "pipeline": "doors", "level": 3, "text": "a=b", "config": "node: {name: press}\n"
    }  # fmt: skip
    assert began + 70 <= command.expires_at <= time.time() + 70
    assert properties.MessageExpiryInterval == 70
    asked = parse(properties.ResponseTopic)
    assert asked is not None
    assert (asked.address.node, asked.channel) == ("press", Channel.REPLY)


async def test_an_error_of_the_node_gives_code_and_remedy(in_background, broker, site: Address) -> None:
    error = ErrorBody(code="unknown-pipeline", message="There is no pipeline 'dors'", remedy="One of: doors.")
    async with Responder(broker, site, {"press": error}):
        said = await in_background(
            "command", f"local/{site.site}/press", "pause", "pipeline=dors", "--timeout", "60", "--broker", broker.url
        )

    assert (said.code, said.out) == (1, "")
    assert said.err == "error: There is no pipeline 'dors' (unknown-pipeline)\n  → One of: doors.\n"


async def test_every_node_of_a_site_answers(in_background, broker, site: Address) -> None:
    error = ErrorBody(code="busy", message="Reloading", remedy="Ask again.")
    async with Responder(broker, site, {"press": {"uptime_s": 3.5}, "saw": None, "drill": error}):
        said = await in_background("command", f"local/{site.site}/~", "ping", "--timeout", "5", "--broker", broker.url)

    assert said.code == 1, "one answered with an error"
    assert f"local/{site.site}/press:\nuptime_s  3.5\n" in said.out
    assert f"local/{site.site}/saw: ok\n" in said.out
    assert said.err == f"local/{site.site}/drill: error: Reloading (busy)\n  → Ask again.\n"


async def test_answers_of_a_site_as_json_are_a_list(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": 1, "saw": 2}):
        said = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "5", "--json", "--broker", broker.url
        )

    assert said.code == 0
    assert sorted(reply["value"] for reply in said.json) == [1, 2]


async def test_a_node_that_is_online_and_does_not_answer_is_named(in_background, broker, site: Address) -> None:
    """The broker knows who is there, so nobody is waited for longer than need be, and nobody forgotten."""
    async with Responder(broker, site, {"press": 1, "saw": 2}):
        async with aiomqtt.Client("127.0.0.1", broker.port) as nodes:
            for name, state in (("press", "online"), ("saw", "online"), ("drill", "online"), ("lathe", "offline")):
                said = Status.model_validate({"state": state, "session": "s", "node": name, "version": "0"})
                await nodes.publish(site._replace(node=name).topic(Channel.STATUS), said.encode(), qos=1, retain=True)
        said = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "1.5", "--broker", broker.url
        )

    assert said.code == 1
    assert said.out.endswith("2 of 3 nodes did it.\n")
    assert f"local/{site.site}/drill: error: It is online, and has not answered within 1.5 s (no-answer)" in said.err


def test_no_answer_is_told_with_where_to_look(hedgerow, broker, site: Address) -> None:
    said = hedgerow("command", f"local/{site.site}/press", "ping", "--timeout", "0.1", "--broker", broker.url)

    assert (said.code, said.out) == (1, "")
    assert said.err == (
        f"error: No answer from local/{site.site}/press within 0.1 s\n"
        "  → Does it run, under this name and on this broker? `hedgerow watch --node 'local/+/+'` shows who does.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("press", "ping"), "'press' is not a node's address"),
        (("a/b/+", "ping"), "'a/b/+' is not a node's address"),
        (("a/~/c", "ping"), "'a/~/c' is not a node's address"),
        (("a/b/c", "x/y"), "'x/y' cannot be a command"),
        (("a/b/c", "pause", "doors"), "'doors' is not KEY=VALUE"),
        (("a/b/c", "pause", "--args", "{"), "--args is not JSON"),
        (("a/b/c", "pause", "--args", "[]"), "--args is not a mapping"),
        (("a/b/c", "reload", "config=@/no/such"), "/no/such cannot be read"),
    ],
)
def test_a_wrong_command_line_is_explained_without_asking_anybody(
    hedgerow, arguments: tuple[str, ...], told: str
) -> None:
    said = hedgerow("command", *arguments, "--broker", "mqtt://127.0.0.1:1")

    assert said.code == 2
    assert said.err.startswith(f"error: {told}")
