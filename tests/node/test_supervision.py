"""Parts of a node that fail in a way nobody expected: the node says so, counts it, and they work again."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle.manifest import Chunk, File, digest_of
from hedgerow.node.health import HealthReporter
from hedgerow.node.node import Node
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.telemetry.clock import Clock
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.tasks.failures._PAUSE_S", (0.0, 0.01))


def fails(times: int, usual: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails at first."""
    left = [times]

    def work(*args: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ZeroDivisionError("a bug")
        return usual(*args, **more)

    return work


def failures(node: Node, task: str) -> float:
    """Return what /metrics says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.probe_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f'hedgerow_task_failures{{task="{task}"}}'))


async def test_health_is_reported_again_after_a_report_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 0.0)
    monkeypatch.setattr(HealthReporter, "report", fails(2, HealthReporter.report))
    async with site.node() as node:
        await until(lambda: site.published("health"))
        counted = await asyncio.to_thread(failures, node, "health")

    assert counted >= 2


async def test_the_heart_beats_again_after_it_failed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise systemd, or the probe, would end a node that works."""
    beats: list[float] = []
    check = Clock.check
    monkeypatch.setattr("hedgerow.node.heartbeat.BEAT_EVERY_S", 0.01)
    monkeypatch.setattr(Clock, "check", fails(2, lambda *args: beats.append(args[2]) or check(*args)))
    async with site.node() as node:
        await until(lambda: len(beats) > 3)
        assert node._heartbeat.why_dead() == []


async def test_a_pipeline_whose_stop_failed_is_mended_by_the_next_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others change all the same; it is reported as failed, and does not stay half stopped."""
    pipelines = {name: site.pipeline(subscribe=f"{site.name}/in/{name}", receive_maximum=10) for name in ("p", "q")}
    others = {name: {**each, "receive_maximum": 20} for name, each in pipelines.items()}
    async with site.node(pipelines, check=False) as node:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "close", fails(1, Client.close))
            site.write(others)
            await node.reload()
        assert node._pipelines.states() == {"p": "failed", "q": "running"}
        assert "a bug" in str(node.failures["p"])
        await site.wait_event("pipeline-failed")
        await site.frame(1, stream="q")
        await site.wait_results(1, "q")

        site.write(others)
        await node.reload()

        assert node._pipelines.states() == {"p": "running", "q": "running"}
        await site.frame(2, stream="p")
        await site.wait_results(1, "p")


async def test_a_removed_pipeline_whose_stop_failed_is_stopped_by_the_next_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = {name: site.pipeline(subscribe=f"{site.name}/in/{name}") for name in ("p", "q")}
    left = {"q": pipelines["q"]}
    async with site.node(pipelines, check=False) as node:
        removed = node.runners["p"]
        with monkeypatch.context() as patch:
            patch.setattr(Client, "close", fails(1, Client.close))
            site.write(left)
            await node.reload()
        assert "a bug" in str(node.failures["p"])

        site.write(left)
        await node.reload()

        assert node._pipelines.states() == {"q": "running"}
        assert not removed.connected


async def test_a_pipeline_whose_drain_fails_does_not_keep_the_others_from_draining(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines = {name: site.pipeline(subscribe=f"{site.name}/in/{name}") for name in ("p", "q")}
    with monkeypatch.context() as patch:
        async with site.node(pipelines, check=False) as node:
            runners = list(node.runners.values())
            patch.setattr(Client, "close", fails(1, Client.close))

    assert {runner.connected for runner in runners} == {False}


async def test_a_node_whose_setup_hangs_stops_all_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it builds in a thread does not keep it, nor its process."""
    hangs, gate = threading.Event(), threading.Event()
    build = PipelineBuilder.build

    def hanging(self: PipelineBuilder, *args: Any) -> Any:
        hangs.set()
        gate.wait()
        return build(self, *args)

    monkeypatch.setattr(PipelineBuilder, "build", hanging)
    file = site.folder / "node.yaml"
    file.write_text(site.yaml({"p": site.pipeline()}))
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        await until(lambda: hangs.is_set() and node._link.connected)
        node.stop()
        async with asyncio.timeout(60):
            await running
    finally:
        gate.set()

    assert not node.runners
    await until(lambda: [each.body["state"] for each in site.published("status")] == ["online", "offline"])
    await until(lambda: not any(thread.name == "build of a pipeline" for thread in threading.enumerate()))


@pytest.mark.long  # the chunk is asked for again after half a minute
async def test_a_fetch_goes_on_after_a_chunk_could_not_be_stored_for_a_bug(
    broker: Mosquitto, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Random(1).randbytes(30_000)
    digest = digest_of(content)
    name = digest.removeprefix("sha256:")
    (tmp_path / "repository/blobs/sha256" / name[:2]).mkdir(parents=True)
    (tmp_path / "repository/blobs/sha256" / name[:2] / name).write_bytes(content)
    file = File(path="x", size=len(content), digest=digest, chunks=(Chunk(digest=digest, size=len(content)),))
    monkeypatch.setattr(BlobStore, "put", fails(1, BlobStore.put))
    options, store = ClientOptions(url=broker.url), BlobStore(tmp_path / "store", 1 << 20)
    address = Address(topic_prefix.replace("/", "-"), "hall", "n1")
    async with (
        BlobServer(options, address.region, tmp_path / "repository"),
        BlobFetcher(options, address, store) as fetcher,
    ):
        await fetcher.fetch([file])

    assert store.check([file]) == []
