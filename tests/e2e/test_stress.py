"""The delivery contract at full speed, with reloads, pauses and kills."""

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

TIMEOUT_S = 90.0
STREAMS = 200
COUNTED = {
    "hedgerow_frames_received_total": "received",
    "hedgerow_frames_out_total": "out",
    "hedgerow_frames_dropped_total": "dropped",
    "hedgerow_frames_dead_total": "dead",
    "hedgerow_frames_in_flight": "in flight",
}


async def until(condition: Callable[[], Any], description: Callable[[], Any]) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - there is no single event to wait for
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"timed out waiting for {description()}") from None


@dataclass
class DeliveryTracker:
    """Frames sent to a pipeline and results received from it.

    Attributes:
        exactly: every frame must have one result, in order; otherwise some may be missing.
        repeated: frames may be redelivered, since the node is killed; stages then start with new state.
        violations: violations of the contract.
        sent: number of frames by stream.
        results: number of results.
        largest_list: most frames in one list.
    """

    exactly: bool
    violations: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    results: int = 0
    largest_list: int = 0
    repeated: bool = False
    _last: dict[str, tuple[int, int, int]] = field(default_factory=lambda: defaultdict(lambda: (-1, -1, 0)))

    @property
    def in_flight(self) -> int:
        return self.sent.total() - self.results

    def missing(self) -> dict[str, int]:
        """Return the number of frames without a result at the end of each stream."""
        return {s: count - 1 - self._last[s][0] for s, count in self.sent.items() if self._last[s][0] != count - 1}

    def record(self, body: dict[str, Any]) -> None:
        """Record a result."""
        stream, result = body["frame"]["stream"], body["result"]
        n, generation, seen = result["n"], result["generation"], result["seen"]
        last, last_generation, last_seen = self._last[stream]
        if self.repeated and n <= last:
            return
        self.results += 1
        self.largest_list = max(self.largest_list, *(frames for _, _, frames in body["lineage"]["stages"]))
        if n <= last or (self.exactly and n != last + 1):
            self.violations.append(f"{stream}: {n} after {last}")
        if generation < last_generation:
            self.violations.append(f"{stream}: generation {generation} after {last_generation}")
        elif not self.repeated and seen != (last_seen + 1 if generation == last_generation else 1):
            self.violations.append(f"{stream}: {n} is number {seen} of generation {generation}, after {last_seen}")
        if result["model"] != [2 * n, seen]:
            self.violations.append(f"{stream}: the model returned {result['model']} for {n}, number {seen}")
        self._last[stream] = n, generation, seen


class LoadTest:
    """A node under load; load, results and commands use one link."""

    def __init__(self, node: Any, broker: Mosquitto, model: str) -> None:
        self.node = node
        self.model = model
        self.trackers = {
            "steady": DeliveryTracker(True),
            "paused": DeliveryTracker(True),
            "qos0": DeliveryTracker(False),
        }
        self.checks = 0
        self.generation = 0
        self.pauses = 0
        self.client = Client(
            ClientOptions(url=broker.url, client_id=f"load-test-{uuid.uuid4().hex}", receive_maximum=60_000),
            self._received,
        )
        self._replies: dict[bytes, asyncio.Future[dict[str, Any]]] = {}
        self._load: set[asyncio.Task[None]] = set()

    def _received(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.endswith("/reply/stress"):
                reply = self._replies.pop(message.properties.correlation_data or b"")
                if not reply.done():  # otherwise the request has timed out
                    reply.set_result(orjson.loads(message.payload))
            else:
                self.trackers[message.topic.rsplit("/", 1)[1]].record(orjson.loads(message.payload))
            self.client.ack(message)

    def config(self, workers: int, **queue: Any) -> str:
        """Return the configuration of this generation; every setting that may change differs from the previous one."""
        generation = self.generation
        ways = "-columns" if generation % 2 else ""  # frames, and columns, by turns
        stages = [f"numbered{ways}", {"infer": {"model": "m"}}, {f"seen{ways}": {"generation": generation}}]
        common = {"stages": stages, "batch": (64, 7, 200)[generation % 3]}
        site = self.node.site
        pipelines = {
            "steady": {
                **common,
                "subscribe": f"{site}/steady/+",
                "receive_maximum": (500, 100)[generation // 2 % 2],
                **({"workers": workers} if workers else {"lanes": (3, 1, 0)[generation % 3]}),
            },
            "paused": {**common, "subscribe": f"{site}/paused/+", "lanes": 2},
            "qos0": {
                **common,
                "subscribe": f"{site}/qos0/+",
                "qos": 0,
                "lanes": 2,  # fewer would need a new link, and QoS 0 frames would be lost meanwhile
                "queue": {"policy": ("latest", "fifo")[generation % 2], "max_frames_per_stream": 1 + generation % 3},
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
        pairs = [
            (Property.RESPONSE_TOPIC, f"hedgerow/v1/test/{self.node.site}/node/reply/stress"),
            (Property.CORRELATION_DATA, key),
        ]
        await self.client.publish_and_wait(
            f"hedgerow/v1/test/{self.node.site}/node/command/{name}",
            orjson.dumps({"args": args}),
            properties=encode_properties(pairs),
        )
        async with asyncio.timeout(TIMEOUT_S):
            return await reply

    # Load

    def send(self, pipeline: str, count: int, qos: int) -> None:
        """Send the next frames of a pipeline, alternating between its streams."""
        tracker = self.trackers[pipeline]
        start = tracker.sent.total()
        for number in range(start, start + count):
            stream = f"{self.node.site}/{pipeline}/{number % STREAMS}"
            self.client.publish(stream, b"%d" % tracker.sent[stream], qos=qos)
            tracker.sent[stream] += 1

    async def closed_loop(self, pipeline: str, window: int) -> None:
        """Keep a window of frames in flight."""
        while True:
            self.send(pipeline, max(0, window - self.trackers[pipeline].in_flight), 1)
            await asyncio.sleep(0.002)

    async def open_loop(self) -> None:
        """Send more frames than the queue holds, regardless of results."""
        while True:
            self.send("qos0", 5 * STREAMS, 0)
            await self.client.flush()
            await asyncio.sleep(0.1)

    # Concurrent operations

    async def _check_metrics(self) -> None:
        """Check that the metrics account for every frame, all the time."""
        while True:
            for pipeline, counts in (await self.counts()).items():
                settled = counts["out"] + counts["dropped"] + counts["dead"]
                if counts["received"] != settled + counts["in flight"]:
                    self.trackers[pipeline].violations.append(f"check {self.checks}: {dict(counts)}")
            self.checks += 1
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
        self.node.file.write_text(self.config(workers))
        reply = await self.command("reload")
        assert reply["ok"], reply
        assert reply["value"]["changed"] == ["steady", "paused", "qos0"]

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Run load, checks, pauses and resumes while the body runs; an error in any of them cancels it."""
        async with asyncio.TaskGroup() as group:
            work: list[Awaitable[None]] = [
                self.closed_loop("steady", 3000),
                self.closed_loop("paused", 1000),
                self.open_loop(),
                self._check_metrics(),
                self._pause_and_resume(),
            ]
            tasks = [group.create_task(each) for each in work]  # type: ignore[arg-type]
            yield
            for task in tasks:
                task.cancel()

    async def settle(self) -> None:
        """Wait until every frame has an outcome."""
        await until(
            lambda: all(not tracker.in_flight for tracker in self.trackers.values() if tracker.exactly),
            lambda: {
                name: (tracker.in_flight, tracker.violations[:3], tracker.missing())
                for name, tracker in self.trackers.items()
            },
        )
        counts: dict[str, Counter[str]] = {}

        async def settled() -> None:
            while any(each["in flight"] for each in counts.values()) or (
                counts["qos0"]["received"] != self.trackers["qos0"].sent.total()
            ):
                await asyncio.sleep(0.05)
                counts.update(await self.counts())

        counts |= await self.counts()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await settled()
        except TimeoutError:
            raise AssertionError(f"not settled: {counts}, {self.trackers['fleeting'].sent.total()} sent") from None


MODEL = """(float[N,1] x, float[N,1] h) => (float[N,2] y, float[N,1] h2) {
    one = Constant <value = float {1.0}> ()
    double = Add(x, x)
    h2 = Add(h, one)
    y = Concat <axis = 1> (double, h2)
}"""


@pytest.fixture
async def load_test(node: Any, mosquitto: Mosquitto, onnx_file: Any) -> AsyncIterator[LoadTest]:
    test = LoadTest(node, mosquitto, str(onnx_file(MODEL)))
    async with test.client:
        await test.client.subscribe(
            {f"hedgerow/v1/test/{node.site}/node/result/+": 1, f"hedgerow/v1/test/{node.site}/node/reply/+": 1}
        )
        await test.client.wait_connected(TIMEOUT_S)
        yield test


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
    load_test: LoadTest, workers: int, reloads: int, results: int
) -> None:
    """Every QoS 1 frame has one result, in order; QoS 0 frames may be shed; metrics account for every frame."""
    load_test.node.file.write_text(load_test.config(workers))
    await asyncio.to_thread(load_test.node.start)
    async with load_test.busy():
        for _ in range(reloads):
            load_test.send("steady", 20 * STREAMS, 1)  # more than Receive Maximum: the broker keeps the rest
            await load_test.reload(workers)
            after = load_test.trackers["steady"].results + results // reloads
            await until(
                lambda after=after: load_test.trackers["steady"].results > after,
                lambda: load_test.trackers["steady"].violations[:3],
            )
    await load_test.command("resume", pipeline="paused")
    await load_test.settle()

    for name, tracker in load_test.trackers.items():
        assert not tracker.violations, (name, len(tracker.violations), tracker.violations[:5])
        assert tracker.results
    counts = await load_test.counts()
    for name in ("steady", "paused"):
        assert counts[name]["out"] == load_test.trackers[name].sent.total()
        assert load_test.trackers[name].missing() == {}
    assert counts["qos0"]["dropped"], "the queue was too small for all"
    assert load_test.trackers["steady"].largest_list > 1, "frames ran in lists"
    assert load_test.checks > reloads
    assert load_test.pauses


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(0, 2, id="short", marks=pytest.mark.timeout(600)),
        pytest.param(0, 40, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(2, 40, id="long-workers", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
async def test_a_node_killed_at_full_speed_loses_no_frame_and_keeps_streams_apart(
    load_test: LoadTest, workers: int, kills: int
) -> None:
    """Acknowledged frames have their results; all others are redelivered in order."""
    steady = load_test.trackers["steady"]
    steady.repeated = True
    load_test.node.file.write_text(load_test.config(workers))
    await asyncio.to_thread(load_test.node.start)
    loading = asyncio.create_task(load_test.closed_loop("steady", 3000))
    for _ in range(kills):
        after = steady.results + 3000
        await until(lambda after=after: steady.results > after, lambda: steady.violations[:3])
        await asyncio.to_thread(load_test.node.kill)
        await asyncio.to_thread(load_test.node.start)
    loading.cancel()
    await until(lambda: not steady.in_flight, lambda: (steady.in_flight, steady.violations[:3]))

    assert steady.missing() == {}
    assert not steady.violations, steady.violations[:5]
