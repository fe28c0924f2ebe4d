"""A pipeline with its real intake, lanes, chain and settler, between two links that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.models.serving.pool import ModelPool
from hedgerow.pipeline.built_pipeline import BuiltPipeline
from hedgerow.pipeline.chain.chain import EventSink
from hedgerow.pipeline.intake.intake import Intake
from hedgerow.pipeline.lanes.dispatcher import Dispatcher
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import Tally

PATIENCE_S = 60.0


class AcceptingLink:
    """A link whose broker accepts everything at once, or refuses it."""

    outstanding = outstanding_bytes = 0
    connected = True
    max_packet_bytes = 1 << 28

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.acked: list[Message] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, properties: bytes, done: Any) -> None:
        self.sent.append((topic, payload, properties))
        if done is not None:
            asyncio.get_running_loop().call_soon(done, self.refusal)

    def publish_all(self, topic: str, messages: Sequence[tuple[bytes, bytes]]) -> None:
        self.sent += [(topic, payload, properties) for payload, properties in messages]

    def ack(self, message: Message) -> None:
        self.acked.append(message)


class LaneBench:
    """Runs messages through a pipeline `p`; `async with` starts its lanes."""

    def __init__(
        self, *, built: BuiltPipeline | None = None, on_event: EventSink | None = None, **pipeline: Any
    ) -> None:
        self.source, self.sink, self.tally = AcceptingLink(), AcceptingLink(), Tally()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.on_event = on_event or self._note
        self.built = built or LocalPipeline(
            node_config(**pipeline), "p", Path.cwd(), ModelPool(cores=1), 1, self.on_event
        )
        self._packet_id = 0

    async def __aenter__(self) -> Self:
        source, sink = self.source, self.sink
        self.settler = Settler(source, sink, self.tally, self.on_event, self._wake, None)  # type: ignore[arg-type]
        self.intake = Intake(self.built, self.settler, self.tally, self.on_event)
        self.dispatcher = Dispatcher(self.built, self.intake, self.settler, self.tally, self.on_event)
        self.dispatcher.use(self.built)
        return self

    async def __aexit__(self, *exit: object) -> None:
        self.dispatcher.stop()
        self.built.close()

    def _wake(self) -> None:
        self.dispatcher.wake()

    def _note(self, kind: str, detail: dict[str, Any]) -> None:
        self.events.append((kind, detail))

    def send(self, payloads: Iterable[bytes], *, stream: str = "a", qos: int = 1, properties: bytes = b"") -> None:
        """Deliver messages in one read, as a list."""
        now, messages = time.monotonic(), []
        for payload in payloads:
            self._packet_id += 1
            messages.append(Message(f"in/{stream}", payload, qos << 1, self._packet_id, now, properties))
        self.intake.receive(messages)
        self.dispatcher.dispatch()

    async def settled(self) -> None:
        """Wait until no frame is in flight."""
        deadline = time.monotonic() + PATIENCE_S
        while self.tally.held or self.dispatcher.busy:
            assert time.monotonic() < deadline, f"{len(self.tally.held)} in flight, {self.dispatcher.busy} lanes busy"
            await asyncio.sleep(0.001)

    def published(self, channel: str) -> list[dict[str, Any]]:
        """Payloads on `result` or `dead`, in order."""
        return [orjson.loads(payload) for topic, payload, _ in self.sink.sent if f"/{channel}/" in topic]


def node_config(**pipeline: Any) -> NodeConfig:
    return NodeConfig.model_validate(
        {"pipelines": {"p": {"subscribe": "in/#", "lanes": 1, "stages": ["poison"], **pipeline}}}
    )
