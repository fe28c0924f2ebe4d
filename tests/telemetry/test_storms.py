"""Storms: whatever repeats per frame or message writes a bounded number of log lines and events, and all are counted."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from tests.pipeline.lane_bench import LaneBench, node_config

from hedgerow import Frame, Stage, StageConfig
from hedgerow.blobs.errors import ContentMissing
from hedgerow.blobs.peers.peer_server import PeerServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.bus.session import MqttSession
from hedgerow.errors import BusError
from hedgerow.node.commands import CommandServer
from hedgerow.node.fleet.agent import Agent
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.region.collector.collector import Collector
from hedgerow.telemetry import logs
from hedgerow.topics import Address

TIMES = 300
ADDRESS = Address("r", "s", "n")


class Link:
    """Takes what is published."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        if "/event/" in topic:
            self.events.append(json.loads(payload))

    def ack(self, message: Message) -> None:
        pass


class Faulty(Stage[StageConfig]):
    """Fails on every second frame, so its circuit stays closed."""

    def process(self, frame: Frame) -> Frame:
        if frame.sequence % 2:
            raise ValueError(f"frame {frame.id}")
        return frame.with_result(1)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Configures logging as a service does; returns the lines written since the last call."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure("info", "json")

    def take() -> list[dict[str, Any]]:
        text = written.getvalue()
        written.truncate(0)
        written.seek(0)
        return [json.loads(line) for line in text.splitlines()]

    return take


async def refused_results(announcer: Announcer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hedgerow.plugins.make", lambda *_: Stage(StageConfig()))
    patch.setattr(Stage, "process", lambda _, frame: frame.with_result(1))
    async with LaneBench(on_event=announcer.event_sink("p")) as bench:
        bench.sink.refusal = BusError("not authorised", remedy="Check the access list.")
        bench.send([b"x"] * TIMES, stream="a")
        await bench.settled()
        assert bench.tally.dead.total() == TIMES


async def failing_stage(announcer: Announcer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hedgerow.plugins.make", lambda *_: Faulty(StageConfig()))
    async with LaneBench(on_event=announcer.event_sink("p")) as bench:
        bench.send([b"x"] * (2 * TIMES))
        await bench.settled()
        assert bench.tally.dead.total() == TIMES


async def unknown_commands(*_: Any) -> None:
    server = CommandServer(ADDRESS, Link(), {})  # type: ignore[arg-type]
    for number in range(TIMES):
        await server.answer(Message(f"hedgerow/v1/r/s/n/command/x{number}", b"", 0, 0, 0.0))


async def failing_handler(*_: Any) -> None:
    def fail(_: list[Message]) -> None:
        raise ValueError("a bug")

    session = MqttSession(ClientOptions(), fail, None, None)
    for _ in range(TIMES):
        session.link_messages([])


async def bad_acknowledgements(*_: Any) -> None:
    outbox = NodeOutbox(node_config(), Path(), print)
    outbox._outbox, outbox._client = SimpleNamespace(acknowledge=None), Link()  # type: ignore[assignment]
    outbox._receive([Message("t", b"{%d" % number, 0, 0, 0.0) for number in range(TIMES)])


async def unknown_chunks(*_: Any) -> None:
    def missing(digest: str) -> bytes:
        raise ContentMissing(digest, remedy="x")

    peers = PeerServer(Link(), ADDRESS, SimpleNamespace(chunk=missing, has=None), None)  # type: ignore[arg-type]
    for number in range(TIMES):
        await peers.send("group", f"sha256:{number:064x}")


async def refused_acknowledgements(*_: Any) -> None:
    collector: Any = SimpleNamespace(_pacing=SimpleNamespace(sent=lambda _: None), _closing=False)
    for number in range(TIMES):
        Collector._acknowledged(collector, (f"r/s/node-{number}", "e", 0), ValueError("not authorised"))  # type: ignore[arg-type]


async def refused_documents(announcer: Announcer, _: pytest.MonkeyPatch) -> None:
    agent: Any = SimpleNamespace(counts={"refused": 0}, _host=SimpleNamespace(announcer=announcer))
    for number in range(TIMES):
        Agent._refuse(agent, "unreadable", f"generation: {number} is not a text")


async def failing_callbacks(*_: Any) -> None:
    """As a bug in ours or a library's shows on the event loop, which reports it through `logging`."""
    loop = asyncio.get_running_loop()
    for number in range(TIMES):
        loop.call_soon(int, f"x{number}")
    await asyncio.sleep(0)


Storm = Callable[[Announcer, pytest.MonkeyPatch], Awaitable[None]]

STORMS: dict[str, tuple[Storm, dict[str, int], int]] = {
    "results refused by an access list": (
        refused_results,
        {"result-refused": TIMES, "dead-letter-refused": TIMES},
        2,
    ),
    "a stage that fails on every second frame": (failing_stage, {"stage-failed": TIMES}, 1),
    "unknown commands": (unknown_commands, {"command-refused": TIMES}, 21),
    "a handler of messages that fails": (failing_handler, {"message-handler-failed": TIMES}, 1),
    "acknowledgements that cannot be read": (bad_acknowledgements, {"bad-ack": TIMES}, 1),
    "chunks that nobody has": (unknown_chunks, {"chunk-not-given": TIMES}, 21),
    "acknowledgements that are refused": (refused_acknowledgements, {"acknowledgement-refused": TIMES}, 21),
    "callbacks that fail": (failing_callbacks, {"library-error": TIMES}, 1),
    "documents that are refused": (refused_documents, {"desired-refused": TIMES}, 1),
}
"""What repeats; how often each line would be written; and how many lines may be written at once."""


@pytest.mark.parametrize("name", STORMS)
async def test_a_storm_writes_few_lines_and_events_and_counts_all(
    name: str, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    storm, occurrences, most = STORMS[name]
    link = Link()
    announcer = Announcer(ADDRESS, "session", link)  # type: ignore[arg-type]
    await storm(announcer, monkeypatch)

    at_once = lines()
    assert 1 <= len(at_once) <= most
    assert {line["event"] for line in at_once} == set(occurrences)
    await asyncio.sleep(0)  # events are published by the event loop
    assert len(link.events) <= most

    announcer.report_repeats(final=True)
    logs.report_repeats(final=True)
    told = at_once + lines()
    assert len(told) <= 2 * most
    for kind, count in occurrences.items():
        assert sum(line.get("times", 1) for line in told if line["event"] == kind) == count


@pytest.mark.parametrize("broken", [ValueError("I/O operation on closed file"), BrokenPipeError(32, "Broken pipe")])
async def test_a_log_that_nobody_reads_stops_nothing(broken: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe may be closed; then every line would cost a frame, and a lane."""

    class Unread(io.StringIO):
        def write(self, text: str) -> int:
            raise broken

    monkeypatch.setattr(sys, "stderr", Unread())
    logs.configure("info", "json")
    await failing_stage(Announcer(ADDRESS, "session", Link()), monkeypatch)  # type: ignore[arg-type]
