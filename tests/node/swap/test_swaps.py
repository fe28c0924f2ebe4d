"""Swaps of real models, while frames flow through a real pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
import types
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from trial_site import until

from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.models.serving.engine import Engine
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Split
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.link.options import link_options
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.node.pipelines.worker_pipelines import WorkerPipelines
from hedgerow.node.swap.swaps import Swaps
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.wire.fleet import SwapPolicy

MakeVersion = Callable[..., ModelVersion]
OnnxFile = Callable[..., Path]

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TWICE_AGAIN = "(float[N,3] x) => (float[N,3] y) <float two = {2.0}> { y = Mul(x, two) }"
THRICE = "(float[N,3] x) => (float[N,3] y) <float three = {3.0}> { y = Mul(x, three) }"
# Correct for the author's samples, which are between 0 and 1, and wrong above 1.
NAN_ABOVE_ONE = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}> { d = Sub(one, x) r = Sqrt(d) z = Sub(r, r) w = Add(x, x) y = Add(w, z) }"""
WRONG_ABOVE_ONE = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}, float zero = {0.0}> { d = Sub(x, one) e = Relu(d) f = Mul(e, x) w = Add(x, x) y = Add(w, f) }"""

KEEPS = """(float[N,3] x, float[N,1] s) => (float[N,3] y, float[N,1] t)
    <float one = {1.0}> { t = Add(s, one) z = Sub(s, s) w = Add(x, x) y = Add(w, z) }"""
POISONS = """(float[N,3] x, float[N,1] s) => (float[N,3] y, float[N,1] t)
    <float one = {1.0}> { d = Sub(one, x) r = Sqrt(d) m = ReduceMean <axes = [1], keepdims = 1> (r) t = Add(s, m)
    z = Sub(s, s) w = Add(x, x) y = Add(w, z) }"""
"""Its hidden state is NaN where x is above 1."""

QUICK = SwapPolicy(probation_s=0.3, min_frames=5, max_slowdown=1000)  # 5 frames within ten periods, 3 s


@dataclass
class Result:
    sequence: int
    y: float
    version: str | None
    digest: str


@dataclass
class Flow:
    """Threads that run lists of frames through a pipeline, as lanes do, each with its own streams."""

    built: LocalPipeline
    value: float = 0.5
    streams: int = 8
    results: dict[str, list[Result]] = field(default_factory=lambda: defaultdict(list))
    dead: list[Any] = field(default_factory=list)
    sent: int = 0

    def lane(self, number: int, stop: threading.Event) -> None:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            payload = np.full(3, self.value, np.float32).tobytes()
            names = [f"s{number}-{stream}" for stream in range(self.streams)]
            deliveries = [
                Delivery(Message(name, payload, 0, 0, time.monotonic()), name, sequence, None) for name in names
            ]
            self.sent += len(deliveries)
            for settled in self.built.run(deliveries, number).settlements:
                for result in settled.results or []:
                    body = orjson.loads(result.payload)
                    (model,) = body["lineage"]["models"]
                    self.results[settled.delivery.stream].append(
                        Result(
                            body["frame"]["sequence"], body["result"]["y"][0][0], model.get("version"), model["digest"]
                        )
                    )
                if settled.dead is not None:
                    self.dead.append(orjson.loads(settled.dead.payload))

    @property
    def all(self) -> list[Result]:
        return [one for each in self.results.values() for one in each]


@dataclass
class Bench:
    """A pool, a pipeline that uses it, and the swaps of its model."""

    pool: ModelPool
    built: LocalPipeline
    swaps: Swaps
    events: list[tuple[str, dict[str, Any]]]
    steps: list[str] = field(default_factory=list)

    def on_step(self, step: str, progress: float | None) -> None:
        if step not in self.steps:
            self.steps.append(step)

    async def swap_to(self, candidate: ModelVersion, policy: SwapPolicy = QUICK) -> Any:
        return await self.swaps.swap_to(candidate, policy, self.on_step)

    @contextlib.asynccontextmanager
    async def flow(self, value: float = 0.5) -> AsyncIterator[Flow]:
        flow, stop = Flow(self.built, value), threading.Event()
        lanes = [threading.Thread(target=flow.lane, args=(number, stop)) for number in range(2)]
        for lane in lanes:
            lane.start()
        await until(lambda: len(flow.all) >= 40)
        try:
            yield flow
        finally:
            stop.set()
            for lane in lanes:
                lane.join()

    @property
    def engine(self) -> Engine:
        (slot,) = self.pool.slots()
        assert slot.serving is not None
        return slot.serving


@pytest.fixture
async def bench(onnx_file: OnnxFile, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench that serves the node's own file, which doubles numbers."""
    async with bench_with({"path": str(onnx_file(TWICE))}, tmp_path) as bench:
        yield bench


@contextlib.asynccontextmanager
async def bench_with(model: dict[str, Any], tmp_path: Path) -> AsyncIterator[Bench]:
    config = NodeConfig.model_validate(
        {
            "models": {"door": model},
            "pipelines": {
                "p": {"subscribe": "s/#", "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}]}
            },
        }
    )
    pool = ModelPool(cores=1)
    events: list[tuple[str, dict[str, Any]]] = []
    built = LocalPipeline(config, "p", tmp_path, pool, 1, lambda kind, detail: events.append((kind, detail)))
    trials = QuarantineLog(tmp_path / "state" / "trials")
    swaps = Swaps(pool, no_workers(config, pool, tmp_path), trials, lambda *event: events.append(event))
    yield Bench(pool, built, swaps, events)
    built.close()
    pool.close()


def no_workers(config: NodeConfig, pool: ModelPool, folder: Path) -> WorkerPipelines:
    """Return the worker pipelines of a node that has started no pipeline."""
    client = Client(link_options(config.broker, "node"), print)
    announcer = Announcer(config.node.address, "session", client)
    builder = PipelineBuilder(folder, 1, pool, announcer)
    pipelines = Pipelines(config, builder, announcer, NodeOutbox(config, folder, announcer.warn))
    return WorkerPipelines(pipelines, builder)


def check_delivery(flow: Flow) -> None:
    """Check that no frame was lost, duplicated or reordered."""
    assert flow.sent == len(flow.all) + len(flow.dead)
    for results in flow.results.values():
        numbers = [one.sequence for one in results]
        assert numbers == sorted(set(numbers))


async def test_a_good_version_is_kept(bench: Bench, make_version: MakeVersion) -> None:
    async with bench.flow() as flow:
        outcome = await bench.swap_to(make_version(TWICE_AGAIN, "1.1.0"))

    assert (outcome.kept, outcome.reason) == (True, "")
    assert bench.steps == ["load", "golden", "switch", "probation"]
    check_delivery(flow)
    assert not flow.dead
    assert [one.version for one in flow.results["s0-0"]] == sorted(
        (one.version for one in flow.results["s0-0"]), key=lambda each: each is not None
    )
    assert {one.version for one in flow.all} == {None, "1.1.0"}
    (serving,) = bench.swaps.serving().values()
    assert serving.model is not None
    assert (serving.model.version, serving.stage, serving.previous) == ("1.1.0", "kept", None)


async def test_a_version_that_fails_its_golden_cases_never_serves(bench: Bench, make_version: MakeVersion) -> None:
    before = bench.engine
    async with bench.flow() as flow:
        outcome = await bench.swap_to(make_version(THRICE, "1.1.0", golden_body=TWICE))

    assert (outcome.kept, outcome.code, outcome.served) == (False, "golden-failed", False)
    assert "case 1 of 1, y" in outcome.reason
    assert bench.engine is before
    check_delivery(flow)
    assert {one.y for one in flow.all} == {1.0}


async def test_a_version_that_gives_nan_only_for_live_frames_is_rolled_back(
    bench: Bench, make_version: MakeVersion
) -> None:
    """Its golden cases and the author's samples pass."""
    before = bench.engine
    async with bench.flow(1.5) as flow:
        outcome = await bench.swap_to(make_version(NAN_ABOVE_ONE, "1.1.0"))

    assert (outcome.kept, outcome.code, outcome.served) == (False, "not-finite", True)
    assert bench.engine is before
    check_delivery(flow)
    assert flow.results["s0-0"][-1].version is None
    assert ("model-rolled-back", "not-finite") in [(kind, detail["code"]) for kind, detail in bench.events]


async def test_a_rollback_resets_the_hidden_state_that_the_version_changed(
    onnx_file: OnnxFile, make_version: MakeVersion, tmp_path: Path
) -> None:
    """It took over the streams' state and wrote NaN into it, so the previous version starts with fresh state."""
    noise = np.random.default_rng(0).random
    samples = {"x": noise((16, 3), np.float32), "s": noise((16, 1), np.float32)}
    poisons = make_version(POISONS, "1.1.0", samples=samples, state={"s": "t"}, parameters={"state": "carries-over"})
    async with (
        bench_with({"path": str(onnx_file(KEEPS)), "state": {"s": "t"}}, tmp_path) as bench,
        bench.flow(1.5) as flow,
    ):
        outcome = await bench.swap_to(poisons)
        count = len(flow.all)
        await until(lambda: len(flow.all) > count + 100)

    assert (outcome.kept, outcome.code, outcome.served) == (False, "not-finite", True)
    check_delivery(flow)
    assert {results[-1].y for results in flow.results.values()} == {3.0}


async def test_a_shadow_detects_a_version_that_is_wrong_only_for_live_frames(
    bench: Bench, make_version: MakeVersion
) -> None:
    async with bench.flow(1.5) as flow:
        policy = QUICK.model_copy(update={"shadow_s": 5})
        outcome = await bench.swap_to(make_version(WRONG_ABOVE_ONE, "1.1.0"), policy)

    assert (outcome.kept, outcome.code, outcome.served) == (False, "disagrees", False)
    check_delivery(flow)
    assert {one.y for one in flow.all} == {3.0}, "a shadow publishes nothing"


async def test_a_version_whose_outputs_differ_from_its_baseline_is_rolled_back(
    bench: Bench, make_version: MakeVersion
) -> None:
    async with bench.flow(1.5):
        outcome = await bench.swap_to(make_version(WRONG_ABOVE_ONE, "1.1.0", baseline=True))

    assert (outcome.kept, outcome.code) == (False, "shifted")


async def test_a_split_serves_some_streams_first_and_each_stream_changes_once(
    bench: Bench, make_version: MakeVersion
) -> None:
    policy = QUICK.model_copy(update={"split_percent": 50, "split_s": 0.3})
    async with bench.flow() as flow:
        outcome = await bench.swap_to(make_version(TWICE_AGAIN, "1.1.0"), policy)

    assert outcome.kept
    assert bench.steps == ["load", "golden", "split", "switch", "probation"]
    check_delivery(flow)
    for results in flow.results.values():
        versions = [one.version for one in results]
        changes = sum(a != b for a, b in pairwise(versions))
        assert changes == 1, "from the old version to the new one, and never back"


async def test_a_stream_keeps_its_order_if_a_split_ends_while_a_list_is_divided(
    bench: Bench, make_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its later frame would run with the old version's, which may run first."""
    (slot,) = bench.pool.slots()
    slot.split(bench.pool.open("door", slot.config, slot.base_dir, make_version(TWICE_AGAIN, "1.1.0")), 50)
    split = slot.on_trial
    assert split is not None
    new = next(name for name in map(str, range(100)) if split.takes(name))
    old = next(name for name in map(str, range(100)) if not split.takes(name))
    takes, calls = Split.takes, []

    def takes_and_ends(self: Split, stream: str) -> bool:
        calls.append(stream)
        if len(calls) == 2:
            slot.end_split()
        return takes(self, stream)

    monkeypatch.setattr(Split, "takes", takes_and_ends)
    payload = np.full(3, 0.5, np.float32).tobytes()
    completed = bench.built.run(
        [
            Delivery(Message(name, payload, 0, 0, time.monotonic()), name, sequence, None)
            for sequence, name in enumerate([old, new, new])
        ],
        0,
    )

    assert not slot.on_trial
    sequences = [each.delivery.sequence for each in completed.settlements if each.delivery.stream == new]
    assert sequences == [1, 2]


async def test_an_incompatible_version_is_refused(bench: Bench, make_version: MakeVersion) -> None:
    other = make_version(
        "(float[N,4] x) => (float[N,4] y) { y = Add(x, x) }",
        "2.0.0",
        samples={"x": np.zeros((2, 4), np.float32)},
    )
    outcome = await bench.swap_to(other)

    assert (outcome.kept, outcome.code) == (False, "incompatible-version")
    assert "x: float32[?, 4], was x: float32[?, 3]" in outcome.reason
    assert "pipelines:" in outcome.remedy


async def test_cancelling_a_swap_restores_the_previous_version(bench: Bench, make_version: MakeVersion) -> None:
    before = bench.engine
    async with bench.flow() as flow:
        policy = QUICK.model_copy(update={"probation_s": 100})
        swapping = asyncio.create_task(bench.swap_to(make_version(TWICE_AGAIN, "1.1.0"), policy))
        await until(lambda: "probation" in bench.steps)
        assert bench.engine is not before
        swapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swapping
        assert bench.engine is before

    check_delivery(flow)
    assert not flow.dead


@types.coroutine
def cancelled_at(turn: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a coroutine, and cancel it at its `turn`-th suspension."""
    task = asyncio.current_task()
    assert task is not None
    value: Any = None
    for number in itertools.count(1):
        try:
            awaited = work.send(value) if not isinstance(value, BaseException) else work.throw(value)
        except StopIteration as end:
            return end.value
        if number == turn:
            task.cancel()
        try:
            value = yield awaited
        except asyncio.CancelledError as error:
            value = error
    raise AssertionError


async def test_wherever_a_swap_is_cancelled_one_version_serves_and_the_next_swap_succeeds(
    bench: Bench, make_version: MakeVersion, tmp_path: Path
) -> None:
    """The previous version, or the new one once it is kept; never both, and no swap remains open on disk."""
    policy = SwapPolicy(shadow_s=0.01, split_percent=50, split_s=0.01, probation_s=0.01, min_frames=0, max_slowdown=1e6)
    one, other = make_version(TWICE_AGAIN, "1.1.0"), make_version(TWICE, "1.2.0")
    cancelled_in: set[str] = set()
    async with bench.flow() as flow:
        for turn in itertools.count(1):
            before = bench.engine.model_version
            new = other if before is one else one
            bench.steps.clear()
            swapping = asyncio.create_task(_run(cancelled_at(turn, bench.swap_to(new, policy))))
            await asyncio.wait([swapping])

            (slot,) = bench.pool.slots()
            assert bench.engine.model_version in (before, new)
            assert bench.pool.assigned().get("door") is bench.engine.model_version
            assert slot.on_trial is None
            (serving,) = bench.swaps.serving().values()
            assert serving.stage == "kept"
            trials = orjson.loads((tmp_path / "state" / "trials" / "trials.json").read_bytes())
            assert not any(trial["open"] for trial in trials["trials"].values())
            if not swapping.cancelled():
                assert swapping.result().kept
                break
            cancelled_in.update(bench.steps[-1:])

    assert cancelled_in == {
        "load",
        "golden",
        "shadow",
        "split",
        "probation",
    }  # the switch itself does not suspend
    check_delivery(flow)
    assert not flow.dead
    assert {one.y for one in flow.all} == {1.0}


async def _run(work: Any) -> Any:
    return await work


async def test_a_version_that_does_not_fit_into_memory_is_refused_or_costs_a_gap(
    bench: Bench, make_version: MakeVersion
) -> None:
    huge = make_version(TWICE_AGAIN, "1.1.0", memory_bytes=1 << 60)
    async with bench.flow() as flow:
        refused = await bench.swap_to(huge)
        gapped = await bench.swap_to(huge, QUICK.model_copy(update={"memory": "brief-gap"}))

    assert (refused.kept, refused.code) == (False, "no-memory")
    assert gapped.kept
    assert gapped.measures["gap_s"] > 0
    ((_, detail),) = [event for event in bench.events if event[0] == "model-kept"]
    assert detail["measures"]["gap_s"] == gapped.measures["gap_s"]
    check_delivery(flow)
    assert not flow.dead


async def test_there_is_no_gap_if_the_event_loop_itself_would_wait(
    bench: Bench, make_version: MakeVersion, tmp_path: Path
) -> None:
    """It would wait forever, since it is what ends the gap."""
    pipelines = {
        "here": {"subscribe": "t/#", "lanes": 0, "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}]}
    }
    models = {"door": bench.engine.config.model_dump(exclude_unset=True)}
    config = NodeConfig.model_validate({"models": models, "pipelines": pipelines})
    built = LocalPipeline(config, "here", tmp_path, bench.pool, 1, lambda *_: None)
    huge = make_version(TWICE_AGAIN, "1.1.0", memory_bytes=1 << 60)

    outcome = await bench.swap_to(huge, QUICK.model_copy(update={"memory": "brief-gap"}))

    assert (outcome.kept, outcome.code) == (False, "no-memory")
    assert "lanes: 0" in outcome.reason
    built.close()


async def test_a_version_that_fails_in_a_gap_is_rolled_back(bench: Bench, make_version: MakeVersion) -> None:
    huge = make_version(THRICE, "1.1.0", golden_body=TWICE, memory_bytes=1 << 60)
    async with bench.flow() as flow:
        outcome = await bench.swap_to(huge, QUICK.model_copy(update={"memory": "brief-gap"}))

    assert (outcome.kept, outcome.code) == (False, "golden-failed")
    check_delivery(flow)
    assert not flow.dead
    assert {one.y for one in flow.all} == {1.0}


async def test_the_previous_version_is_known_and_can_be_restored(bench: Bench, make_version: MakeVersion) -> None:
    first, second = make_version(TWICE_AGAIN, "1.1.0"), make_version(THRICE, "1.2.0")
    async with bench.flow() as flow:
        for each in (first, second):
            assert (await bench.swap_to(each)).kept
        assert bench.swaps.previous("door") is first
        assert (await bench.swap_to(first)).kept
        assert (await bench.swaps.swap_to_file("door", QUICK, bench.on_step)).kept

    check_delivery(flow)
    assert bench.engine.model_version is None
    by_version = {one.version: one.y for one in flow.all}
    assert by_version == {None: 1.0, "1.1.0": 1.0, "1.2.0": 1.5}
