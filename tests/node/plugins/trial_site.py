"""A site for tests of a node: receives what the node publishes, publishes frames, sends commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiomqtt
import orjson
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow import configfile
from hedgerow.node.node import Node
from hedgerow.topics import Address, Parsed, parse
from hedgerow.wire.messages import decode_payload

PATIENCE_S = 90.0
"""Long enough for a busy machine; a passing test never waits this long."""


async def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what()}"
        await asyncio.sleep(0.005)


@dataclass
class Received:
    """A message from the node."""

    topic: str
    payload: bytes
    retain: bool
    content_type: str
    user: dict[str, str]
    correlation: bytes | None
    parsed: Parsed | None

    @property
    def body(self) -> Any:
        return decode_payload(self.payload, self.content_type)


def received(message: aiomqtt.Message) -> Received:
    properties = message.properties
    return Received(
        str(message.topic),
        bytes(message.payload),
        message.retain,
        getattr(properties, "ContentType", ""),
        dict(getattr(properties, "UserProperty", [])),
        getattr(properties, "CorrelationData", None),
        parse(str(message.topic)),
    )


def properties(**fields: Any) -> Properties:
    """Return PUBLISH properties from `user` pairs, `content_type`, `expiry_s`, `response_topic`, `correlation`."""
    publish = Properties(PacketTypes.PUBLISH)
    names = {
        "content_type": "ContentType",
        "expiry_s": "MessageExpiryInterval",
        "response_topic": "ResponseTopic",
        "correlation": "CorrelationData",
    }
    for name, value in fields.items():
        if name == "user":
            publish.UserProperty = list(value.items())
        else:
            setattr(publish, names[name], value)
    return publish


class Site:
    """A site with a broker; `async with` connects."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder
        self.name = f"site-{uuid.uuid4().hex[:8]}"
        self.address = Address("test", self.name, "node")
        self.received: list[Received] = []
        self._marks = 0

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        self.client = await self._stack.enter_async_context(self.connect())
        await self.client.subscribe(f"hedgerow/v1/test/{self.name}/+/+/#", qos=1)
        self._listening = asyncio.create_task(self._listen())
        self._stack.callback(self._listening.cancel)
        return self

    async def __aexit__(self, *exit: object) -> None:
        await self._stack.aclose()

    def connect(self, **options: Any) -> aiomqtt.Client:
        client = aiomqtt.Client(
            "127.0.0.1", self.port, protocol=aiomqtt.ProtocolVersion.V5, max_inflight_messages=500, **options
        )
        client.pending_calls_threshold = 100_000
        return client

    async def _listen(self) -> None:
        async for message in self.client.messages:
            if message.topic.value == self._mark:
                self._marks += 1
            else:
                self.received.append(received(message))

    @property
    def _mark(self) -> str:
        return f"hedgerow/v1/test/{self.name}/~/mark/1"

    async def catch_up(self) -> None:
        """Wait until all that the broker has accepted for this site has arrived; not if the test has ended the broker."""
        marks = self._marks
        with contextlib.suppress(aiomqtt.MqttError):
            await self.client.publish(self._mark, qos=1, timeout=PATIENCE_S)
            await until(lambda: self._marks > marks or self._listening.done(), lambda: "a mark")

    # Messages from the node

    def published(self, channel: str, tail: str = "") -> list[Received]:
        return [
            message
            for message in self.received
            if message.parsed is not None and message.parsed.channel == channel and tail in ("", message.parsed.tail)
        ]

    def results(self, pipeline: str = "p") -> list[dict[str, Any]]:
        return [message.body for message in self.published("result", pipeline)]

    def numbers(self, pipeline: str = "p") -> list[int]:
        return [body["result"]["n"] for body in self.results(pipeline)]

    def dead_letters(self, pipeline: str = "p") -> list[dict[str, Any]]:
        return [message.body for message in self.published("dead", pipeline)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [message.body for message in self.published("event", kind)]

    async def wait_results(self, count: int, pipeline: str = "p") -> list[dict[str, Any]]:
        await until(
            lambda: len(self.published("result", pipeline)) >= count,
            lambda: (
                f"{len(self.published('result', pipeline))} of {count} results; dead: {self.dead_letters(pipeline)[:3]}"
            ),
        )
        return self.results(pipeline)

    async def wait_dead_letters(self, count: int, pipeline: str = "p") -> list[dict[str, Any]]:
        await until(
            lambda: len(self.dead_letters(pipeline)) >= count,
            lambda: f"{len(self.dead_letters(pipeline))} of {count} dead",
        )
        return self.dead_letters(pipeline)

    async def wait_event(self, kind: str) -> dict[str, Any]:
        await until(lambda: self.events(kind), lambda: f"event {kind}")
        return self.events(kind)[0]

    # Messages to the node

    @property
    def reply_topic(self) -> str:
        return f"hedgerow/v1/test/{self.name}/~/reply/tests"

    def topic(self, stream: str = "a") -> str:
        return f"{self.name}/in/{stream}"

    async def frame(self, n: int, do: str | None = None, *, stream: str = "a", qos: int = 1, **fields: Any) -> None:
        """Publish a frame for the stage `trial`."""
        body = {"n": n} | ({"do": do} if do else {}) | fields
        await self.publish(orjson.dumps(body), stream=stream, qos=qos)

    async def frames(self, numbers: Iterable[int], *, stream: str = "a", qos: int = 1) -> None:
        """Publish numbered frames of a stream, in order."""
        await asyncio.gather(*(self.frame(n, stream=stream, qos=qos) for n in numbers))

    async def publish(
        self, payload: bytes, *, stream: str = "a", qos: int = 1, retain: bool = False, **fields: Any
    ) -> None:
        await self.client.publish(
            self.topic(stream),
            payload,
            qos=qos,
            retain=retain,
            properties=properties(**fields) if fields else None,
            timeout=PATIENCE_S,
        )

    def write(self, pipelines: dict[str, Any], **sections: Any) -> None:
        """Change the file of the node in `folder`."""
        (self.folder / "node.yaml").write_text(self.yaml(pipelines, **sections))

    async def reload(self, pipelines: dict[str, Any], **sections: Any) -> dict[str, Any]:
        """Change the node's file, and have the node read it again."""
        self.write(pipelines, **sections)
        return await self.command("reload")

    async def command(
        self, name: str, args: dict[str, Any] | None = None, *, payload: bytes | None = None, node: str = "node"
    ) -> dict[str, Any]:
        """Send a command and wait for its reply."""
        key = uuid.uuid4().bytes
        await self.client.publish(
            f"hedgerow/v1/test/{self.name}/{node}/command/{name}",
            json.dumps({"args": args or {}}).encode() if payload is None else payload,
            qos=1,
            properties=properties(response_topic=self.reply_topic, correlation=key),
            timeout=PATIENCE_S,
        )
        await until(lambda: self._replies(key), lambda: f"reply to {name}")
        await asyncio.sleep(0.02)  # time for a second reply, which would be an error
        (reply,) = self._replies(key)
        return reply

    def _replies(self, key: bytes) -> list[dict[str, Any]]:
        return [
            message.body
            for message in self.received
            if message.correlation == key and message.topic == self.reply_topic
        ]

    # Nodes

    def pipeline(self, *stages: Any, **fields: Any) -> dict[str, Any]:
        lanes = {} if fields.get("workers") else {"lanes": 2}
        return {"subscribe": f"{self.name}/in/+", **lanes, "stages": list(stages or ["trial"]), **fields}

    def yaml(self, pipelines: dict[str, Any], **sections: Any) -> str:
        """Return a configuration as JSON, which is valid YAML."""
        node = {"region": "test", "site": self.name, "name": "node", "state_dir": str(self.folder / "state")}
        return json.dumps(
            {
                "node": {**node, "drain_s": 10, **sections.pop("node", {})},
                "broker": {"url": f"mqtt://127.0.0.1:{self.port}"},
                "metrics": {"port": 0, **sections.pop("metrics", {})},
                "pipelines": pipelines,
                **sections,
            }
        )

    @contextlib.asynccontextmanager
    async def node(
        self, pipelines: dict[str, Any] | None = None, *, check: bool = True, **sections: Any
    ) -> AsyncIterator[Node]:
        """Run a connected node in this process; at the end it drains, its tallies must balance, and all it sent has arrived."""
        path = self.folder / "node.yaml"
        path.write_text(self.yaml({"p": self.pipeline()} if pipelines is None else pipelines, **sections))
        node = Node(configfile.load(path), path)
        running = asyncio.create_task(node.run())
        try:
            await until(lambda: running.done() or self.is_up(node), lambda: f"node: {node._probes.why_unready()}")
            if running.done():
                await running
            yield node
        finally:
            runners = list(node.runners.values())
            node.stop()
            await running
            await self.catch_up()
        if check:
            for runner in runners:
                assert runner.tally.in_flight == 0
                assert runner.tally.balanced, tally_counts(runner.tally)

    @staticmethod
    def is_up(node: Node) -> bool:
        """Whether all pipelines run or have failed, and all links are up."""
        expected = len(node.config.pipelines)
        outbox = node._outbox.client
        return (
            len(node.runners) + len(node.failures) == expected
            and not [reason for reason in node._probes.why_unready() if "cannot run" not in reason]
            and (outbox is None or outbox.connected)  # what is stored before would be published as late
        )


def tally_counts(tally: Any) -> dict[str, Any]:
    """Return a tally's counts, for messages."""
    return {
        "received": tally.received,
        "out": tally.out,
        "dropped": dict(tally.dropped),
        "dead": dict(tally.dead),
        "in_flight": tally.in_flight,
    }


def duplicates(values: Iterable[Any]) -> dict[Any, int]:
    """Count values that occur more than once."""
    return {value: count for value, count in Counter(values).items() if count > 1}
