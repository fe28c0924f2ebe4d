"""Swaps of models in real worker processes, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from trial_site import Site, duplicates, until

from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.node import Node
from hedgerow.node.swap.outcome import SwapOutcome
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline
from hedgerow.wire.fleet import SwapPolicy

MakeVersion = Callable[..., ModelVersion]
OnnxFile = Callable[..., Path]

TWICE: Final = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
THRICE: Final = "(float[N,3] x) => (float[N,3] y) <float three = {3.0}> { y = Mul(x, three) }"
# Correct for the author's samples, which are between 0 and 1, and wrong above 1.
NAN_ABOVE_ONE: Final = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}> { d = Sub(one, x) r = Sqrt(d) z = Sub(r, r) w = Add(x, x) y = Add(w, z) }"""
WRONG_ABOVE_ONE: Final = """(float[N,3] x) => (float[N,3] y)
    <float one = {1.0}, float zero = {0.0}> { d = Sub(x, one) e = Relu(d) f = Mul(e, x) w = Add(x, x) y = Add(w, f) }"""

QUICK: Final = SwapPolicy(probation_s=0.3, min_frames=5, max_slowdown=1000)  # 5 frames within ten periods, 3 s
LONG: Final = QUICK.model_copy(update={"probation_s": 3600})


class Sender:
    """Publishes frames continuously; each gives one result, whose lineage names its version, or a dead letter."""

    def __init__(self, site: Site, value: float) -> None:
        self._site = site
        self._payload = np.full(3, value, np.float32).tobytes()
        self.sent = 0

    @property
    def results(self) -> list[tuple[int, str | None, float]]:
        """(frame number, version, first value) of each result."""
        return [
            (body["frame"]["sequence"], _model(body).get("version"), body["result"]["y"][0][0])
            for body in self._site.results()
        ]

    async def wait_more(self, count: int) -> None:
        """Wait for this many more results."""
        await self._site.wait_results(len(self._site.published("result")) + count)

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[Sender]:
        done = asyncio.Event()

        async def send() -> None:
            while not done.is_set():
                await self._site.publish(self._payload)
                self.sent += 1
                await asyncio.sleep(0.004)

        sending = asyncio.create_task(send())
        try:
            await self.wait_more(1)
            yield self
        finally:
            done.set()
            await sending
        await until(lambda: len(self._site.results()) + len(self._site.dead_letters()) >= self.sent)
        self.check()

    def check(self) -> None:
        """Check that no frame was lost, duplicated or reordered."""
        numbers = [number for number, _, _ in self.results]
        dead = [body["frame"]["sequence"] for body in self._site.dead_letters()]
        assert duplicates(numbers) == {}
        assert numbers == sorted(numbers)
        assert sorted({*numbers, *dead}) == list(range(self.sent))


def _model(body: dict[str, Any]) -> dict[str, Any]:
    (model,) = body["lineage"]["models"]
    return dict(model)


def pipeline(site: Site, *also: str) -> dict[str, Any]:
    stages = [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}, *also]
    return {"subscribe": f"{site.name}/in/+", "workers": 1, "stages": stages}


@contextlib.asynccontextmanager
async def serving_node(site: Site, path: str, *also: str) -> AsyncIterator[Node]:
    async with site.node({"p": pipeline(site, *also)}, models={"door": {"path": path}}) as node:
        yield node


async def swap_to(node: Node, candidate: ModelVersion, policy: SwapPolicy = QUICK) -> SwapOutcome:
    return await node.swaps.swap_to(candidate, policy, lambda *_: None)


def pid(node: Node) -> int:
    built = node.runners["p"].built
    assert isinstance(built, WorkerPipeline)
    (worker,) = built._workers
    return worker.pid


async def test_workers_swap_versions_and_a_restarted_worker_runs_the_newest(
    own_site: Site, make_version: MakeVersion
) -> None:
    """The pipeline waits for its first version. Each result names the version it came from."""
    first, second = make_version(TWICE, "1.0.0"), make_version(THRICE, "1.1.0")
    async with waiting_node(own_site) as node:
        assert (await swap_to(node, first)).kept
        await until(lambda: "p" in node.runners and not node._probes.why_unready())
        async with Sender(own_site, 0.5).sending() as sender:
            outcome = await swap_to(node, second)
            os.kill(pid(node), signal.SIGKILL)
            await own_site.wait_event("worker-crashed")
            await sender.wait_more(20)
            reported = node.swaps.serving()["door"]
        no_file = await node.swaps.swap_to_file("door", QUICK, lambda *_: None)

    assert outcome.kept
    assert outcome.measures["frames"] >= QUICK.min_frames
    assert (reported.model, reported.previous, reported.stage) == (second.ref, first.ref, "kept")
    versions = [version for _, version, _ in sender.results]
    assert versions == sorted(versions, key=str)
    assert {each[1:] for each in sender.results} == {("1.0.0", 1.0), ("1.1.0", 1.5)}
    assert _model(own_site.results()[-1])["digest"] == second.variant.model_digest
    assert own_site.dead_letters() == []
    assert (no_file.kept, no_file.code) == (False, "no-own-file")


@contextlib.asynccontextmanager
async def waiting_node(site: Site) -> AsyncIterator[Node]:
    """Run a node whose pipeline waits for its model."""
    from hedgerow import configfile

    file = site.folder / "node.yaml"
    file.write_text(site.yaml({"p": pipeline(site)}, models={"door": {"path": "bundle:door"}}))
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        await until(lambda: node._pipelines.waiting, lambda: f"a waiting pipeline; failures: {node.failures}")
        yield node
    finally:
        node.stop()
        await running


@pytest.mark.long
async def test_a_version_that_workers_cannot_load_is_refused_and_one_that_gives_nan_is_rolled_back(
    site: Site, onnx_file: OnnxFile, make_version: MakeVersion
) -> None:
    """The first file is damaged after its golden cases passed; the second version passes with its author's samples."""
    damaged, nan = make_version(THRICE, "1.1.0"), make_version(NAN_ABOVE_ONE, "1.2.0")

    def damage(step: str, _: float | None) -> None:
        if step == "switch":
            damaged.path.write_bytes(damaged.path.read_bytes() + b"\0")

    async with serving_node(site, str(onnx_file(TWICE))) as node, Sender(site, 1.5).sending() as sender:
        before = pid(node)
        refused = await node.swaps.swap_to(damaged, QUICK, damage)
        assert pid(node) == before
        rolled_back = await swap_to(node, nan, LONG)
        await sender.wait_more(5)

    assert (refused.kept, refused.code, refused.served) == (False, "wrong-digest", False)
    assert (rolled_back.kept, rolled_back.code, rolled_back.served) == (False, "not-finite", True)
    assert {version for _, version, _ in sender.results} == {None}
    assert sender.results[-1][1:] == (None, 3.0)
    assert {letter["reason"] for letter in site.dead_letters()} == {"unserialisable-result"}, "JSON has no NaN"
    assert site.events("model-rolled-back")[0]["detail"]["measures"]["not_finite"] > 0


@pytest.mark.slow
async def test_a_version_that_crashes_its_workers_is_rolled_back(
    site: Site, onnx_file: OnnxFile, make_version: MakeVersion
) -> None:
    bad = make_version(NAN_ABOVE_ONE, "1.1.0")
    async with serving_node(site, str(onnx_file(TWICE)), "brittle") as node, Sender(site, 1.5).sending() as sender:
        outcome = await swap_to(node, bad, LONG)
        await sender.wait_more(5)
        retried = await swap_to(node, bad, LONG)

    assert (outcome.kept, outcome.code, outcome.served) == (False, "crashed", True)
    assert (retried.code, retried.served) == ("quarantined", False)
    assert site.events("model-quarantined")
    assert sender.results[-1][1:] == (None, 3.0)
    assert {body["reason"] for body in site.dead_letters()} == {"worker-crashed"}


@pytest.mark.slow
async def test_a_version_whose_outputs_shift_is_rolled_back_in_workers(
    site: Site, onnx_file: OnnxFile, make_version: MakeVersion
) -> None:
    async with serving_node(site, str(onnx_file(TWICE))) as node, Sender(site, 1.5).sending() as sender:
        outcome = await swap_to(node, make_version(WRONG_ABOVE_ONE, "1.1.0", baseline=True))
        await sender.wait_more(1)

    assert (outcome.kept, outcome.code) == (False, "shifted")


@pytest.mark.slow
async def test_workers_return_to_the_nodes_own_file(site: Site, onnx_file: OnnxFile, make_version: MakeVersion) -> None:
    async with serving_node(site, str(onnx_file(TWICE))) as node, Sender(site, 0.5).sending() as sender:
        assert (await swap_to(node, make_version(THRICE, "1.1.0"))).kept
        assert (await node.swaps.swap_to_file("door", QUICK, lambda *_: None)).kept
        await sender.wait_more(1)

    versions = [version for _, version, _ in sender.results]
    assert [versions[0], versions[-1]] == [None, None]
    assert sum(a != b for a, b in pairwise(versions)) == 2, "to the new version, and back"


@pytest.mark.slow
async def test_cancelling_a_swap_restores_the_previous_version_in_workers(
    site: Site, onnx_file: OnnxFile, make_version: MakeVersion
) -> None:
    """At the switch, the new version never serves; during probation, the previous version serves again."""
    candidate = make_version(THRICE, "1.1.0")
    async with serving_node(site, str(onnx_file(TWICE))) as node, Sender(site, 0.5).sending() as sender:
        before = pid(node)
        for last in ("switch", "probation"):
            steps: list[str] = []
            swapping = asyncio.create_task(
                node.swaps.swap_to(candidate, LONG, lambda step, _, to=steps: to.append(step))
            )
            await until(lambda at=last, seen=steps: at in seen)
            await sender.wait_more(1)
            swapping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await swapping
            assert (pid(node) == before) == (last == "switch")
        await sender.wait_more(2)

    assert sender.results[-1][1] is None
    assert {version for _, version, _ in sender.results} == {None, "1.1.0"}
