"""A stage that hangs: the node says which, ends its worker or asks to be restarted, and goes on."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.node.node import Node
from hedgerow.pipeline.built_pipeline import pipeline_digest
from hedgerow.pipeline.crash_journal import CrashJournal


async def probe(node: Node, path: str) -> tuple[int, list[str]]:
    """Return the status of a probe, and its reasons."""

    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{node.probe_port}/{path}", timeout=20) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    status, body = await asyncio.to_thread(get)
    return status, orjson.loads(body)["reasons"]


@asynccontextmanager
async def gated(site: Site, *, timeout_s: float, **pipeline: Any) -> AsyncIterator[Node]:
    """A node whose stage `gate` blocks until the file `gate` exists."""
    gate = {"name": "gate", "config": {"path": str(site.folder / "gate")}, "timeout_s": timeout_s}
    metrics = {"enabled": True, "port": 0}
    async with site.node({"p": site.pipeline(gate, "trial", **pipeline)}, metrics=metrics) as node:
        try:
            yield node
        finally:
            (site.folder / "gate").touch()


async def test_without_workers_the_node_names_the_stage_and_fails_its_liveness_probe(site: Site) -> None:
    async with gated(site, timeout_s=0.5) as node:
        assert await probe(node, "healthz") == (200, [])
        await site.frame(0)
        await until(lambda: site.events("stage-hangs"))
        status, reasons = await probe(node, "healthz")
        health = node.health()

        assert status == 503
        assert "pipeline p: stage gate has not returned for" in reasons[0]
        assert health.state == "failing"
        assert any("stage gate has not returned" in reason for reason in health.reasons)
        assert node.runners["p"].tally.hung == {"gate": 1}
        (event,) = site.events("stage-hangs")
        assert "in process" in event["detail"]["stack"]

        (site.folder / "gate").touch()
        await site.wait_results(1)
        await until(lambda: node.runners["p"].hang() is None)
        assert (await probe(node, "healthz"))[0] == 200


async def test_systemd_is_left_to_restart_a_node_whose_stage_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on beating, but no longer feeds the watchdog."""
    fed: list[None] = []
    monkeypatch.setattr("hedgerow.telemetry.systemd.alive", lambda: fed.append(None))
    monkeypatch.setattr("hedgerow.node.heartbeat.BEAT_EVERY_S", 0.01)
    async with gated(site, timeout_s=0.5) as node:
        await until(lambda: len(fed) > 3)
        await site.frame(0)
        await until(node._probes.hung_stages)
        last, before = node._heartbeat._last, len(fed)
        await until(lambda: node._heartbeat._last > last + 0.1)
        assert len(fed) <= before + 1


async def test_a_slow_stage_does_not_hang_however_long_its_list(site: Site) -> None:
    """Forty frames of 0.05 s in one list, with a limit of 1.5 s for one."""
    slow = {"name": "trial", "config": {"sleep_s": 0.05}, "timeout_s": 1.5}
    async with site.node({"p": site.pipeline(slow, lanes=1)}) as node:
        runner = node.runners["p"]
        runner._dispatcher.paused = True
        await site.frames(range(40))
        await until(lambda: runner.queued == 40)
        runner._dispatcher.paused = False
        runner._dispatcher.dispatch()
        results = await site.wait_results(40)
        assert runner.tally.hung == {}
    assert {result["lineage"]["stages"][0][2] for result in results} == {40}, "one list"
    assert site.events("stage-hangs") == []


async def test_a_lane_that_waits_for_a_hung_stage_is_not_blamed(site: Site) -> None:
    """`gate` is concurrent, `stuck-until` is not: its second lane waits for the first."""
    gate = {"name": "gate-of-one", "config": {"path": str(site.folder / "gate")}, "timeout_s": 0.5}
    async with site.node({"p": site.pipeline(gate, "trial", lanes=2)}) as node:
        await site.frame(0, stream="a")
        await site.frame(0, stream="b")
        await until(lambda: site.events("stage-hangs"))
        await until(lambda: node.runners["p"]._dispatcher.busy == 2)
        calls = [lane.record.progress.now() for lane in node.runners["p"]._dispatcher._lanes]
        (site.folder / "gate").touch()
        await site.wait_results(2)

    assert sorted(call is None for call in calls) == [False, True]
    assert len(site.events("stage-hangs")) == 1


async def test_with_workers_the_worker_is_replaced_and_only_its_frame_is_lost(site: Site) -> None:
    pipeline = site.pipeline({"name": "trial", "timeout_s": 1.5}, workers=1, queue={"policy": "fifo"})
    async with site.node({"p": pipeline}) as node:
        for number in range(10):
            await site.frame(number, "hang" if number == 4 else None)
        await site.wait_dead_letters(1)
        await site.wait_results(9)
        health = node.health()

    (letter,) = site.dead_letters()
    assert (letter["reason"], letter["stage"]) == ("stage-timeout", "trial")
    assert site.numbers() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert any("workers ended (stage-timeout)" in reason for reason in health.reasons), health.reasons
    assert health.pipelines["p"].worker_memory_bytes > 10 * 2**20
    assert health.memory_bytes > health.pipelines["p"].worker_memory_bytes


async def test_a_stage_on_the_event_loop_is_named_by_the_liveness_probe(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe answers from its own thread; `trial` blocks the loop until the probe has seen it."""
    monkeypatch.setattr("hedgerow.node.heartbeat._DEAD_AFTER_S", 0.2)
    async with gated(site, timeout_s=60, lanes=0) as node:
        seen = asyncio.create_task(asyncio.to_thread(_watch_loop, node, site))
        await site.frame(0)
        reasons = await seen

    assert "the event loop has been blocked" in reasons[0]
    assert reasons[1] == "pipeline p: stage gate runs on the event loop"


def _watch_loop(node: Node, site: Site) -> list[str]:
    while len(reasons := node._probes.why_dead()) < 2:
        pass
    (site.folder / "gate").touch()
    return reasons


async def test_a_list_is_no_longer_than_its_stages_allow(site: Site) -> None:
    """A stage that waits shares its frames with all lanes, from the first list on."""
    pipeline = site.pipeline("one-at-a-time", "trial", lanes=4)
    async with site.node({"p": pipeline}) as node:
        await node.runners["p"].pause()
        await asyncio.gather(*(site.frame(n, stream=f"s{n}") for n in range(12)))
        await node.runners["p"].resume()
        results = await site.wait_results(12)

    assert {result["lineage"]["stages"][0][2] for result in results} == {1}


async def test_a_stage_that_hangs_in_setup_fails_its_pipeline_and_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it comes to an end later, what it has set up is closed."""
    monkeypatch.setattr("hedgerow.node.pipelines.builder.SETUP_S", 0.3)
    gate = site.folder / "gate"
    pipelines = {"q": site.pipeline("trial", {"setup-gate": {"path": str(gate)}}), "p": site.pipeline()}
    async with site.node(pipelines) as node:
        await site.frame(0)
        await site.wait_results(1)
        assert str(node.failures["q"]) == "Stage setup-gate was not set up within 0 s"
        assert any("setup-gate" in reason for reason in node.health().reasons)
        gate.touch()
        await until(lambda: not gate.exists())


async def test_a_pipeline_that_ended_the_node_twice_with_one_frame_runs_in_a_worker_and_health_says_so(
    site: Site,
) -> None:
    pipelines = {"p": site.pipeline("trial", "tally"), "q": site.pipeline()}
    config = configfile.parse(site.yaml(pipelines), site.folder / "node.yaml")
    for _ in range(2):  # as two processes that die in the stage `tally`
        record = CrashJournal(site.folder / "state" / "crashes").open_lane("p")
        record.begin("p", pipeline_digest(config, "p"), ["trial", "tally"], 1, [bytes(16)])
        record.progress.enter(1, 1)
    async with site.node(pipelines) as node:
        await site.frame(0)
        await site.wait_results(1)
        health = node.health()
        await until(lambda: site.events("pipeline-isolated") and site.events("node-crashed"))
        built = {name: type(runner.built).__name__ for name, runner in node.runners.items()}

    assert built == {"p": "WorkerPipeline", "q": "LocalPipeline"}
    assert health.state == "degraded"
    assert "while pipeline p was in stage tally" in health.reasons[0]
    assert "pipeline p runs in a worker: stage tally ended the node twice with the same frame" in health.reasons[1]
    (isolated,) = site.events("pipeline-isolated")
    assert isolated["detail"]["state_reset"] == ["tally"]
