"""The delivery contract at full speed, while everything that can be changed is changed."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.testing import Mosquitto

PATIENCE_S = 90.0
STREAMS = 200
COUNTED = {
    "hedgerow_frames_received_total": "received",
    "hedgerow_frames_out_total": "out",
    "hedgerow_frames_dropped_total": "dropped",
    "hedgerow_frames_dead_total": "dead",
    "hedgerow_frames_in_flight": "in flight",
}


async def until(condition: Callable[[], Any], what: Callable[[], Any]) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for is told by many
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what()}") from None


@dataclass
class Books:
    """What was sent to a pipeline and what came back of it.

    Attributes:
        exactly: every frame must come back once, in order; else some may be missing.
        repeated: frames may come again, since the node was killed; stages then begin anew.
        wrong: what was against the contract, in words.
        sent: frames by stream.
    """

    exactly: bool
    wrong: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    results: int = 0
    most_at_once: int = 0
    repeated: bool = False
    _last: dict[str, tuple[int, int, int]] = field(default_factory=lambda: defaultdict(lambda: (-1, -1, 0)))

    @property
    def under_way(self) -> int:
        return self.sent.total() - self.results

    def missing(self) -> dict[str, int]:
        """Frames without a result, by stream, where all before them have one."""
        return {s: count - 1 - self._last[s][0] for s, count in self.sent.items() if self._last[s][0] != count - 1}

    def take(self, body: dict[str, Any]) -> None:
        """A result."""
        stream, result = body["frame"]["stream"], body["result"]
        n, generation, seen = result["n"], result["generation"], result["seen"]
        last, last_generation, last_seen = self._last[stream]
        if self.repeated and n <= last:
            return
        self.results += 1
        self.most_at_once = max(self.most_at_once, *(frames for _, _, frames in body["lineage"]["stages"]))
        if n <= last or (self.exactly and n != last + 1):
            self.wrong.append(f"{stream}: {n} after {last}")
        if generation < last_generation:
            self.wrong.append(f"{stream}: generation {generation} after {last_generation}")
        elif not self.repeated and seen != (last_seen + 1 if generation == last_generation else 1):
            self.wrong.append(f"{stream}: {n} is number {seen} of generation {generation}, after {last_seen}")
        if result["model"] != [2 * n, seen]:
            self.wrong.append(f"{stream}: the model said {result['model']} of {n}, number {seen}")
        self._last[stream] = n, generation, seen


class Bench:
    """A node under load, who loads it, who looks at it and who commands it: all over one link."""

    def __init__(self, node: Any, broker: Mosquitto, model: str) -> None:
        self.node = node
        self.model = model
        self.books = {"steady": Books(True), "paused": Books(True), "fleeting": Books(False)}
        self.looks = 0
        self.generation = 0
        self.pauses = 0
        self.client = Client(
            ClientOptions(url=broker.url, client_id=f"bench-{uuid.uuid4().hex}", receive_maximum=60_000), self._take
        )
        self._replies: dict[bytes, asyncio.Future[dict[str, Any]]] = {}
        self._load: set[asyncio.Task[None]] = set()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.endswith("/replies"):
                reply = self._replies.pop(message.properties.correlation_data or b"")
                if not reply.done():  # else nobody waits for it any more
                    reply.set_result(orjson.loads(message.payload))
            else:
                self.books[message.topic.rsplit("/", 1)[1]].take(orjson.loads(message.payload))
            self.client.ack(message)

    def config(self, workers: int, **queue: Any) -> str:
        """The configuration of this generation, different from the one before in everything that may differ."""
        turn = self.generation
        stages = ["numbered", {"infer": {"model": "m"}}, {"seen": {"generation": turn}}]
        common = {"stages": stages, "batch": (64, 7, 200)[turn % 3]}
        site = self.node.site
        pipelines = {
            "steady": {
                **common,
                "subscribe": f"{site}/steady/+",
                "receive_maximum": (500, 100)[turn // 2 % 2],
                **({"workers": workers} if workers else {"lanes": (3, 1, 0)[turn % 3]}),
            },
            "paused": {**common, "subscribe": f"{site}/paused/+", "lanes": 2},
            "fleeting": {
                **common,
                "subscribe": f"{site}/fleeting/+",
                "qos": 0,
                "lanes": 2,  # fewer would need a new link, and QoS 0 frames of that moment are nobody's
                "queue": {"policy": ("latest", "fifo")[turn % 2], "max_frames_per_stream": 1 + turn % 3},
            },
        }
        return json.dumps(
            {
                "node": {"region": "test", "site": site, "drain_s": 60, "state_dir": str(self.node.file.parent / "s")},
                "broker": {"url": f"mqtt://127.0.0.1:{self.client.options.url.rsplit(':', 1)[1]}"},
                "metrics": {"port": self.node.port},
                "models": {"m": {"path": self.model, "backend": "onnxruntime", "state": {"h": "h2"}}},
                "pipelines": pipelines,
            }
        )

    async def command(self, name: str, **args: Any) -> dict[str, Any]:
        key = uuid.uuid4().bytes
        reply = self._replies[key] = asyncio.get_running_loop().create_future()
        pairs = [(Property.RESPONSE_TOPIC, f"{self.node.site}/replies"), (Property.CORRELATION_DATA, key)]
        await self.client.publish_and_wait(
            f"hedgerow/v1/test/{self.node.site}/node/command/{name}",
            orjson.dumps({"args": args}),
            properties=encode_properties(pairs),
        )
        async with asyncio.timeout(PATIENCE_S):
            return await reply

    # Load

    def send(self, pipeline: str, count: int, qos: int) -> None:
        """Send the next frames of a pipeline, its streams in turn."""
        books = self.books[pipeline]
        at = books.sent.total()
        for number in range(at, at + count):
            stream = f"{self.node.site}/{pipeline}/{number % STREAMS}"
            self.client.publish(stream, b"%d" % books.sent[stream], qos=qos)
            books.sent[stream] += 1

    async def closed_loop(self, pipeline: str, window: int) -> None:
        """As many frames as make the window full, again and again."""
        while True:
            self.send(pipeline, max(0, window - self.books[pipeline].under_way), 1)
            await asyncio.sleep(0.002)

    async def open_loop(self) -> None:
        """More than there are places for, whatever comes back."""
        while True:
            self.send("fleeting", 5 * STREAMS, 0)
            await self.client.flush()
            await asyncio.sleep(0.1)

    # What goes on meanwhile

    async def _look(self) -> None:
        """The law of conservation, as an operator sees it."""
        while True:
            for pipeline, counts in (await self.counts()).items():
                settled = counts["out"] + counts["dropped"] + counts["dead"]
                if counts["received"] != settled + counts["in flight"]:
                    self.books[pipeline].wrong.append(f"look {self.looks}: {dict(counts)}")
            self.looks += 1
            await asyncio.sleep(0.02)

    async def counts(self) -> dict[str, Counter[str]]:
        text = await asyncio.to_thread(lambda: self.node.probe("metrics")[1])
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if name := COUNTED.get(sample.name):
                    counts[sample.labels["pipeline"]][name] += int(sample.value)
        return counts

    async def _pause_and_resume(self) -> None:
        while True:
            for name in ("pause", "resume"):
                reply = await self.command(name, pipeline="paused")
                assert reply["ok"] or reply["error"]["code"] == "busy", reply
                await asyncio.sleep(0.05)
            self.pauses += 1

    async def reload(self, workers: int) -> None:
        self.generation += 1
        reply = await self.command("reload", config=self.config(workers))
        assert reply["ok"], reply
        assert reply["value"]["changed"] == ["steady", "paused", "fleeting"]

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Load, looks, pauses and resumes while the body runs; an error in any of them ends it."""
        async with asyncio.TaskGroup() as group:
            work: list[Awaitable[None]] = [
                self.closed_loop("steady", 3000),
                self.closed_loop("paused", 1000),
                self.open_loop(),
                self._look(),
                self._pause_and_resume(),
            ]
            tasks = [group.create_task(each) for each in work]  # type: ignore[arg-type]
            yield
            for task in tasks:
                task.cancel()

    async def settle(self) -> None:
        """Wait until everything sent has its fate."""
        await until(
            lambda: all(not books.under_way for books in self.books.values() if books.exactly),
            lambda: {name: (books.under_way, books.wrong[:3], books.missing()) for name, books in self.books.items()},
        )
        counts: dict[str, Counter[str]] = {}

        async def settled() -> None:
            while any(each["in flight"] for each in counts.values()) or (
                counts["fleeting"]["received"] != self.books["fleeting"].sent.total()
            ):
                await asyncio.sleep(0.05)
                counts.update(await self.counts())

        counts |= await self.counts()
        try:
            await asyncio.wait_for(settled(), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"not settled: {counts}, {self.books['fleeting'].sent.total()} sent") from None


MODEL = """(float[N,1] x, float[N,1] h) => (float[N,2] y, float[N,1] h2) {
    one = Constant <value = float {1.0}> ()
    double = Add(x, x)
    h2 = Add(h, one)
    y = Concat <axis = 1> (double, h2)
}"""


@pytest.fixture
async def bench(node: Any, mosquitto: Mosquitto, onnx_file: Any) -> AsyncIterator[Bench]:
    made = Bench(node, mosquitto, str(onnx_file(MODEL)))
    async with made.client:
        await made.client.subscribe({f"hedgerow/v1/test/{node.site}/node/result/+": 1, f"{node.site}/replies": 1})
        await made.client.wait_connected(PATIENCE_S)
        yield made


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("reloads", "results"),
    [
        pytest.param(2, 6_000, id="short", marks=pytest.mark.timeout(600)),
        pytest.param(100, 1_000_000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
async def test_the_contract_holds_at_full_speed_while_pipelines_are_reloaded_and_paused(
    bench: Bench, workers: int, reloads: int, results: int
) -> None:
    """Every QoS 1 frame has one result, in order; QoS 0 frames are shed by the book; the books balance at every look."""
    bench.node.file.write_text(bench.config(workers))
    await asyncio.to_thread(bench.node.start)
    async with bench.busy():
        for _ in range(reloads):
            bench.send("steady", 20 * STREAMS, 1)  # more than may be under way: the broker keeps it
            await bench.reload(workers)
            after = bench.books["steady"].results + results // reloads
            await until(
                lambda after=after: bench.books["steady"].results > after, lambda: bench.books["steady"].wrong[:3]
            )
    await bench.command("resume", pipeline="paused")
    await bench.settle()

    for name, books in bench.books.items():
        assert not books.wrong, (name, len(books.wrong), books.wrong[:5])
        assert books.results
    counts = await bench.counts()
    for name in ("steady", "paused"):
        assert counts[name]["out"] == bench.books[name].sent.total()
        assert bench.books[name].missing() == {}
    assert counts["fleeting"]["dropped"], "more than there was room for"
    assert bench.books["steady"].most_at_once > 1, "lists and batches formed"
    assert bench.looks > reloads
    assert bench.pauses


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(0, 2, id="short", marks=pytest.mark.timeout(600)),
        pytest.param(0, 40, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(2, 40, id="long-workers", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
async def test_a_node_that_is_killed_at_full_speed_loses_no_frame_and_mixes_up_no_stream(
    bench: Bench, workers: int, kills: int
) -> None:
    """What was acknowledged has its result: all that has none comes again, in order."""
    steady = bench.books["steady"]
    steady.repeated = True
    bench.node.file.write_text(bench.config(workers))
    await asyncio.to_thread(bench.node.start)
    loading = asyncio.create_task(bench.closed_loop("steady", 3000))
    for _ in range(kills):
        after = steady.results + 3000
        await until(lambda after=after: steady.results > after, lambda: steady.wrong[:3])
        await asyncio.to_thread(bench.node.kill)
        await asyncio.to_thread(bench.node.start)
    loading.cancel()
    await until(lambda: not steady.under_way, lambda: (steady.under_way, steady.wrong[:3]))

    assert steady.missing() == {}
    assert not steady.wrong, steady.wrong[:5]
