"""A site to try a node in: a client that hears everything the node says, publishes frames and sends commands."""

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
"""Long enough for the busiest machine; nothing waits this long when all is well."""


async def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        await asyncio.sleep(0.005)


@dataclass
class Heard:
    """A message of the node."""

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


def heard(message: aiomqtt.Message) -> Heard:
    properties = message.properties
    return Heard(
        str(message.topic),
        bytes(message.payload),
        message.retain,
        getattr(properties, "ContentType", ""),
        dict(getattr(properties, "UserProperty", [])),
        getattr(properties, "CorrelationData", None),
        parse(str(message.topic)),
    )


def properties(**fields: Any) -> Properties:
    """Of a PUBLISH: `user` pairs, `content_type`, `expiry_s`, `response_topic`, `correlation`."""
    made = Properties(PacketTypes.PUBLISH)
    names = {
        "content_type": "ContentType",
        "expiry_s": "MessageExpiryInterval",
        "response_topic": "ResponseTopic",
        "correlation": "CorrelationData",
    }
    for name, value in fields.items():
        if name == "user":
            made.UserProperty = list(value.items())
        else:
            setattr(made, names[name], value)
    return made


class Site:
    """A site with a broker; `async with` connects."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder
        self.name = f"site-{uuid.uuid4().hex[:8]}"
        self.address = Address("test", self.name, "node")
        self.heard: list[Heard] = []

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        self.client = await self._stack.enter_async_context(self.connect())
        await self.client.subscribe(f"hedgerow/v1/test/{self.name}/+/+/#", qos=1)
        await self.client.subscribe(f"{self.name}/replies", qos=1)
        listening = asyncio.create_task(self._listen())
        self._stack.callback(listening.cancel)
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
            self.heard.append(heard(message))

    # What the node said

    def said(self, channel: str, tail: str = "") -> list[Heard]:
        return [
            message
            for message in self.heard
            if message.parsed is not None and message.parsed.channel == channel and tail in ("", message.parsed.tail)
        ]

    def results(self, pipeline: str = "p") -> list[dict[str, Any]]:
        return [message.body for message in self.said("result", pipeline)]

    def numbers(self, pipeline: str = "p") -> list[int]:
        return [body["result"]["n"] for body in self.results(pipeline)]

    def dead(self, pipeline: str = "p") -> list[dict[str, Any]]:
        return [message.body for message in self.said("dead", pipeline)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [message.body for message in self.said("event", kind)]

    async def wait_results(self, count: int, pipeline: str = "p") -> list[dict[str, Any]]:
        await until(
            lambda: len(self.said("result", pipeline)) >= count,
            lambda: f"{len(self.said('result', pipeline))} of {count} results; dead: {self.dead(pipeline)[:3]}",
        )
        return self.results(pipeline)

    async def wait_dead(self, count: int, pipeline: str = "p") -> list[dict[str, Any]]:
        await until(lambda: len(self.dead(pipeline)) >= count, lambda: f"{len(self.dead(pipeline))} of {count} dead")
        return self.dead(pipeline)

    async def wait_event(self, kind: str) -> dict[str, Any]:
        await until(lambda: self.events(kind), lambda: f"event {kind}")
        return self.events(kind)[0]

    # What we say

    def topic(self, stream: str = "a") -> str:
        return f"{self.name}/in/{stream}"

    async def frame(self, n: int, do: str | None = None, *, stream: str = "a", qos: int = 1, **fields: Any) -> None:
        """A frame for the stage `trial`."""
        body = {"n": n} | ({"do": do} if do else {}) | fields
        await self.publish(orjson.dumps(body), stream=stream, qos=qos)

    async def frames(self, numbers: Iterable[int], *, stream: str = "a", qos: int = 1) -> None:
        """Many frames of a stream, in order."""
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

    async def command(
        self, name: str, args: dict[str, Any] | None = None, *, payload: bytes | None = None, node: str = "node"
    ) -> dict[str, Any]:
        """Send a command and wait for its reply."""
        key = uuid.uuid4().bytes
        await self.client.publish(
            f"hedgerow/v1/test/{self.name}/{node}/command/{name}",
            json.dumps({"args": args or {}}).encode() if payload is None else payload,
            qos=1,
            properties=properties(response_topic=f"{self.name}/replies", correlation=key),
            timeout=PATIENCE_S,
        )
        await until(lambda: self._replies(key), lambda: f"reply to {name}")
        await asyncio.sleep(0.02)  # a second reply would come now
        (reply,) = self._replies(key)
        return reply

    def _replies(self, key: bytes) -> list[dict[str, Any]]:
        return [
            message.body for message in self.heard if message.correlation == key and message.topic.endswith("/replies")
        ]

    # Nodes

    def pipeline(self, *stages: Any, **fields: Any) -> dict[str, Any]:
        return {"subscribe": f"{self.name}/in/+", "lanes": 2, "stages": list(stages or ["trial"]), **fields}

    def yaml(self, pipelines: dict[str, Any], **sections: Any) -> str:
        """A configuration; JSON is YAML."""
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
        """A node in this process, up and connected; it drains at the end, and its books must be in balance."""
        path = self.folder / "node.yaml"
        path.write_text(self.yaml({"p": self.pipeline()} if pipelines is None else pipelines, **sections))
        node = Node(configfile.load(path), path)
        running = asyncio.create_task(node.run())
        try:
            await until(lambda: running.done() or self._up(node), lambda: f"node: {node._probes.why_unready()}")
            if running.done():
                await running
            yield node
        finally:
            runners = list(node.runners.values())
            node.stop()
            await running
        if check:
            for runner in runners:
                assert runner.tally.in_flight == 0
                assert runner.tally.balanced, books(runner.tally)

    def _up(self, node: Node) -> bool:
        wanted = len(node.config.pipelines)
        return len(node.runners) + len(node.failures) == wanted and not (
            [reason for reason in node._probes.why_unready() if "cannot run" not in reason]
        )


def books(tally: Any) -> dict[str, Any]:
    """A tally to read."""
    return {
        "received": tally.received,
        "out": tally.out,
        "dropped": dict(tally.dropped),
        "dead": dict(tally.dead),
        "in_flight": tally.in_flight,
    }


def doubles(values: Iterable[Any]) -> dict[Any, int]:
    """What occurs more than once."""
    return {value: count for value, count in Counter(values).items() if count > 1}
