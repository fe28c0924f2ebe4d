"""`hedgerow command`: a request over MQTT 5, and replies from one node, several or none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.cli.frames.command import _above
from hedgerow.config import BrokerSection
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel, parse
from hedgerow.wire.messages import Command, ErrorBody, Reply, Status


class Responder:
    """Replies to commands as nodes do: on the response topic, with the correlation data.

    Attributes:
        requests: commands received: name, command, MQTT 5 properties.
    """

    def __init__(self, broker: Mosquitto, site: Address, answers: Mapping[str, Any]) -> None:
        self._broker, self._site, self._answers = broker, site, answers
        self.requests: list[tuple[str, Command, Any]] = []

    async def __aenter__(self) -> Responder:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready))
        await ready.wait()
        return self

    async def __aexit__(self, *exception: object) -> None:
        while not self._task.done():  # aiomqtt uses asyncio.wait_for, which can swallow a cancellation in Python 3.11
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
                self.requests.append((parsed.tail, command, message.properties))
                for name, answer in self._answers.items():
                    if parsed.address.node in (name, "~"):
                        await self._reply(client, message.properties, parsed.tail, name, answer)

    async def _reply(self, client: aiomqtt.Client, request: Any, command: str, name: str, answer: Any) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = request.CorrelationData
        node = str(self._site._replace(node=name))
        if isinstance(answer, ErrorBody):
            reply = Reply(command=command, node=node, ok=False, error=answer)
        else:
            reply = Reply(command=command, node=node, ok=True, value=answer)
        await client.publish(request.ResponseTopic, reply.encode(), qos=1, properties=properties)


@pytest.fixture
def site(topic_prefix: str) -> Address:
    return Address("local", topic_prefix, "~")


async def test_a_reply_is_printed_as_keys_and_values(in_background, broker, site: Address) -> None:
    value = {"version": "0.1.0", "pipelines": {"doors": {"state": "running", "out": 3}}, "models": []}
    async with Responder(broker, site, {"press": value}):
        result = await in_background(
            "command", f"local/{site.site}/press", "info", "--timeout", "60", "--broker", broker.url
        )

    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "version                0.1.0\n"
        "pipelines.doors.state  running\n"
        "pipelines.doors.out    3\n"
        "models                 []\n"
    )


async def test_an_empty_reply_is_printed_as_ok(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": None}):
        result = await in_background(
            "command", f"local/{site.site}/press", "ping", "--timeout", "60", "--broker", broker.url
        )

    assert (result.code, result.out) == (0, "ok\n")


async def test_json_prints_the_whole_reply(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": {"pong": True}}):
        result = await in_background(
            "command", f"local/{site.site}/press", "ping", "--timeout", "60", "--json", "--broker", broker.url
        )

    assert result.json == {
        "schema": "hedgerow.reply/1",
        "command": "ping",
        "node": f"local/{site.site}/press",
        "ok": True,
        "value": {"pong": True},
        "error": None,
    }


async def test_a_node_receives_a_request_that_expires(in_background, broker, site: Address, tmp_path: Path) -> None:
    """After the timeout the broker discards it and the node refuses it: no command is ever carried out late."""
    (tmp_path / "node.yaml").write_text("node: {name: press}\n")
    pairs = ("pipeline=doors", "level=3", "text=a=b", f"config=@{tmp_path}/node.yaml")
    before = time.time()
    async with Responder(broker, site, {"press": None}) as node:
        arguments = ("reload", *pairs, "--args", '{"quick": true}', "--timeout", "70")
        await in_background("command", f"local/{site.site}/press", *arguments, "--broker", broker.url)

    ((name, command, properties),) = node.requests
    assert name == "reload"
    assert command.args == {
        "quick": True, "pipeline": "doors", "level": 3, "text": "a=b", "config": "node: {name: press}\n"
    }  # fmt: skip
    assert before + 70 <= command.expires_at <= time.time() + 70
    assert properties.MessageExpiryInterval == 70
    reply_to = parse(properties.ResponseTopic)
    assert reply_to is not None
    assert (reply_to.address.node, reply_to.channel) == ("press", Channel.REPLY)


async def test_a_nodes_error_is_printed_with_code_and_remedy(in_background, broker, site: Address) -> None:
    error = ErrorBody(code="unknown-pipeline", message="There is no pipeline 'dors'", remedy="One of: doors.")
    async with Responder(broker, site, {"press": error}):
        result = await in_background(
            "command", f"local/{site.site}/press", "pause", "pipeline=dors", "--timeout", "60", "--broker", broker.url
        )

    assert (result.code, result.out) == (1, "")
    assert result.err == "error: There is no pipeline 'dors' (unknown-pipeline)\n  → One of: doors.\n"


async def test_every_node_of_a_site_replies(in_background, broker, site: Address) -> None:
    error = ErrorBody(code="busy", message="Reloading", remedy="Try again.")
    async with Responder(broker, site, {"press": {"uptime_s": 3.5}, "saw": None, "drill": error}):
        result = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "5", "--broker", broker.url
        )

    assert result.code == 1, "one replied with an error"
    assert f"local/{site.site}/press:\nuptime_s  3.5\n" in result.out
    assert f"local/{site.site}/saw: ok\n" in result.out
    assert result.err == f"local/{site.site}/drill: error: Reloading (busy)\n  → Try again.\n"


async def test_json_prints_the_replies_of_a_site_as_a_list(in_background, broker, site: Address) -> None:
    async with Responder(broker, site, {"press": 1, "saw": 2}):
        result = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "5", "--json", "--broker", broker.url
        )

    assert result.code == 0
    assert sorted(reply["value"] for reply in result.json) == [1, 2]


@pytest.mark.parametrize(("above", "beginning"), [((), ""), (("--above", "region"), "up/region/")])
async def test_a_reply_goes_up_only_to_who_is_above(
    in_background, broker, site: Address, above: tuple[str, ...], beginning: str
) -> None:
    async with Responder(broker, site, {"press": None}) as node:
        result = await in_background(
            "command", f"local/{site.site}/press", "ping", "--timeout", "60", "--broker", broker.url, *above
        )

    ((_, _, properties),) = node.requests
    reply_to = parse(properties.ResponseTopic)
    assert reply_to is not None
    assert (result.code, reply_to.goes_up) == (0, bool(above))
    assert reply_to.tail.startswith(beginning)


@pytest.mark.parametrize(
    ("name", "site", "expected"),
    [
        ("kim@hall", "hall", None),
        ("anna@region", "hall", "region"),
        ("chief@world", "hall", "world"),
        ("kim@hall", "~", None),
        ("anna@region", "~", "region"),
        ("hall/a", "hall", None),
        (None, "hall", None),
        (None, "~", "region"),
    ],
)
def test_the_certificate_says_who_is_above(tmp_path: Path, name: str | None, site: str, expected: str | None) -> None:
    tls = {}
    if name is not None:
        certificate = trustme.CA().issue_cert("localhost", common_name=name)
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
        tls = {"cert_file": tmp_path / "tls.crt"}
    broker = BrokerSection.model_validate({"tls": tls})

    assert _above(broker, Address("north", site, "~"), ["hall", "yard"]) == expected


async def test_a_reply_in_the_name_of_a_node_elsewhere_is_ignored(in_background, broker, site: Address) -> None:
    """Only nodes of a site publish on its reply topics, so none of them speaks for another site's."""

    class Impostor(Responder):
        async def _reply(self, client: aiomqtt.Client, request: Any, command: str, name: str, answer: Any) -> None:
            self._site = self._site._replace(site="elsewhere") if name == "thief" else site
            await super()._reply(client, request, command, name, answer)

    async with Impostor(broker, site, {"thief": 1, "press": 2}):
        result = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "2", "--broker", broker.url
        )

    assert f"local/{site.site}/press: 2\n" in result.out
    assert "in the name of local/elsewhere/thief" in result.err
    assert "elsewhere" not in result.out


async def test_an_online_node_without_a_reply_is_named(in_background, broker, site: Address) -> None:
    """The retained status says which nodes to wait for."""
    async with Responder(broker, site, {"press": 1, "saw": 2}):
        async with aiomqtt.Client("127.0.0.1", broker.port) as nodes:
            for name, state in (("press", "online"), ("saw", "online"), ("drill", "online"), ("lathe", "offline")):
                status = Status.model_validate({"state": state, "session": "s", "node": name, "version": "0"})
                await nodes.publish(site._replace(node=name).topic(Channel.STATUS), status.encode(), qos=1, retain=True)
        result = await in_background(
            "command", f"local/{site.site}/~", "ping", "--timeout", "1.5", "--broker", broker.url
        )

    assert result.code == 1
    assert result.out.endswith("2 of 3 nodes succeeded.\n")
    assert f"local/{site.site}/drill: error: Online, but no reply within 1.5 s (no-answer)" in result.err


def test_a_missing_reply_is_an_error_with_a_remedy(hedgerow, broker, site: Address) -> None:
    result = hedgerow("command", f"local/{site.site}/press", "ping", "--timeout", "0.1", "--broker", broker.url)

    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"error: No reply from local/{site.site}/press within 0.1 s\n"
        "  → Check the address and the broker: `hedgerow watch --node 'local/+/+'` shows the nodes that run.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("press", "ping"), "'press' is not a node address"),
        (("a/b/+", "ping"), "'a/b/+' is not a node address"),
        (("a/~/c", "ping"), "'a/~/c' is not a node address"),
        (("a/b/c", "x/y"), "'x/y' is not a command name"),
        (("a/b/c", "pause", "doors"), "'doors' is not KEY=VALUE"),
        (("a/b/c", "pause", "--args", "{"), "--args is not JSON"),
        (("a/b/c", "pause", "--args", "[]"), "--args is not a JSON object"),
        (("a/b/c", "reload", "config=@/no/such"), "/no/such cannot be read"),
    ],
)
def test_an_invalid_command_line_is_explained_without_a_broker(
    hedgerow, arguments: tuple[str, ...], message: str
) -> None:
    result = hedgerow("command", *arguments, "--broker", "mqtt://127.0.0.1:1")

    assert result.code == 2
    assert result.err.startswith(f"error: {message}")
