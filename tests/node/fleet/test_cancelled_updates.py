"""Updates of models that are cancelled at each of their awaits: fetching, swapping, applying a document, serving a region."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.cancelling import Cancelling, Moment, at_every_moment, at_every_moment_in_time, cancel_at_every_place
from trial_site import until

from hedgerow.blobs.fetch.documents import RegionDocuments
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.origins.origins import PlacedChunk
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.config import NodeConfig
from hedgerow.models.bundle.manifest import Chunk, File, digest_of
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.quarantine import QuarantineLog
from hedgerow.models.serving.pool import ModelPool
from hedgerow.node.fleet.agent import Agent
from hedgerow.node.fleet.agent_host import AgentHost
from hedgerow.node.fleet.member import FleetMember
from hedgerow.node.fleet.state import AgentState
from hedgerow.node.link.announcer import Announcer
from hedgerow.node.link.outbox import NodeOutbox
from hedgerow.node.pipelines.builder import PipelineBuilder
from hedgerow.node.pipelines.live_config import LiveConfig
from hedgerow.node.pipelines.pipelines import Pipelines
from hedgerow.node.pipelines.worker_pipelines import WorkerPipelines
from hedgerow.node.swap.swaps import Swaps
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.region.collector.service import RegionService
from hedgerow.region.config import RegionConfig
from hedgerow.tasks import tasks
from hedgerow.telemetry.clock import Clock
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired, ModelRef, SwapPolicy

MakeVersion = Callable[..., ModelVersion]
OnnxFile = Callable[..., Path]

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TWICE_AGAIN = "(float[N,3] x) => (float[N,3] y) <float two = {2.0}> { y = Mul(x, two) }"
POLICY = SwapPolicy(
    shadow_s=0.01, split_percent=50, split_s=0.01, probation_s=0.01, min_frames=0, max_slowdown=1e6, timeout_s=60
)


def running() -> list[str]:
    """Return the tasks that Hedgerow has started, and that have not ended."""
    return [str(task) for task in tasks._running if not task.done()]


def threads(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


# Swaps and documents


class Provider:
    """The versions of a test, installed already."""

    used_bytes = max_bytes = 0

    def __init__(self, *versions: ModelVersion) -> None:
        self._versions = {version.ref.digest: version for version in versions}
        self.protected: set[str] = set()

    async def fetch(self, ref: ModelRef, labels: dict[str, str], on_step: Any) -> None:
        await asyncio.sleep(0)

    async def verify_again(self, ref: ModelRef, labels: dict[str, str]) -> None:
        await asyncio.sleep(0)

    def installed(self) -> dict[str, Path]:
        return {digest: version.folder for digest, version in self._versions.items()}

    def candidate(self, model: str, ref: ModelRef, variant: str | None = None) -> ModelVersion:
        return self._versions[ref.digest]

    intact = candidate

    def protect(self, digests: set[str]) -> None:
        self.protected = set(digests)


@dataclass
class Bench:
    """A pool, a pipeline that uses it, the swaps of its model, and an agent."""

    pool: ModelPool
    swaps: Swaps
    agent: Agent
    state: AgentState
    live: LiveConfig
    provider: Provider
    address: Address
    folder: Path
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def serving(self) -> ModelVersion | None:
        (slot,) = self.pool.slots("door")
        assert slot.serving is not None
        return slot.serving.model_version

    def check_swap(self) -> None:
        """Check that exactly one version serves, and nothing of a swap is left."""
        (slot,) = self.pool.slots("door")
        assert slot.on_trial is None
        assert self.pool.assigned().get("door") is self.serving
        assert self.swaps.serving()["door"].stage == "kept"
        assert not self.swaps._lock.locked()
        assert not threads("shadow")
        trials = (self.folder / "trials" / "trials.json").read_text() if (self.folder / "trials").exists() else ""
        assert '"open":"' not in trials
        output = slot.serving.run_batch({"x": np.ones((1, 3), np.float32)})  # type: ignore[union-attr]
        assert output["y"].tolist() == [[2.0, 2.0, 2.0]]

    def check_agent(self) -> None:
        """Check that what is recorded, on disk too, and protected from eviction is what serves."""
        self.check_swap()
        ref = None if self.serving is None else self.serving.ref
        kept = self.state.models().get("door")
        assert (None if kept is None else kept.ref) == ref
        assert self.agent._kept.get("door") == kept
        assert ref is None or ref.digest in self.provider.protected
        assert not list(self.folder.rglob("*.new"))
        assert not running()


@contextlib.asynccontextmanager
async def bench_of(path: Path, folder: Path, *versions: ModelVersion) -> AsyncIterator[Bench]:
    config = NodeConfig.model_validate(
        {
            "models": {"door": {"path": str(path)}},
            "pipelines": {
                "p": {"subscribe": "s/#", "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}]}
            },
        }
    )
    pool = ModelPool(cores=1)
    built = LocalPipeline(config, "p", folder, pool, 1, lambda *_: None)
    announcer = Announcer(config.node.address, "session", Client(ClientOptions(), print))
    builder = PipelineBuilder(folder, 1, pool, announcer)
    pipelines = Pipelines(config, builder, announcer, NodeOutbox(config, folder, announcer.warn))
    live = LiveConfig(config, None, pipelines, announcer, _no_links)
    swaps = Swaps(pool, WorkerPipelines(pipelines, builder), QuarantineLog(folder / "trials"), announcer.event)
    state, provider = AgentState(folder / "agent"), Provider(*versions)
    agent = Agent(AgentHost(live, pipelines, announcer, Clock(), 1), state, provider, swaps)  # type: ignore[arg-type]
    yield Bench(pool, swaps, agent, state, live, provider, config.node.address, folder)
    built.close()
    pool.close()


@at_every_moment_in_time
async def test_a_swap(moment: Moment, onnx_file: OnnxFile, make_version: MakeVersion, tmp_path: Path) -> None:
    """The previous version serves, or the new one; and what is recorded as kept is what serves."""
    one, other = make_version(TWICE_AGAIN, "1.1.0"), make_version(TWICE, "1.2.0")
    async with bench_of(onnx_file(TWICE), tmp_path / "node", one, other) as bench:

        async def attempt(cancelling: Cancelling) -> None:
            new, kept = (other if bench.serving is one else one), []
            before = bench.serving

            await cancelling.run(bench.swaps.swap_to(new, POLICY, lambda *_: None, lambda: kept.append(new)))

            bench.check_swap()
            assert bench.serving is (new if kept else before)
            assert (await bench.swaps.swap_to(new, POLICY, lambda *_: None)).kept
            bench.check_swap()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
async def test_a_swap_that_is_refused(
    moment: Moment, onnx_file: OnnxFile, make_version: MakeVersion, tmp_path: Path
) -> None:
    bad = make_version("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }", "1.1.0", golden_body=TWICE)
    async with bench_of(onnx_file(TWICE), tmp_path / "node", bad) as bench:

        async def attempt(cancelling: Cancelling) -> None:
            outcome = await cancelling.run(bench.swaps.swap_to(bad, POLICY, lambda *_: None))

            assert outcome is None or not outcome.kept
            assert bench.serving is None
            bench.check_swap()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
async def test_a_release_from_quarantine(moment: Moment, onnx_file: OnnxFile, tmp_path: Path) -> None:
    async with bench_of(onnx_file(TWICE), tmp_path / "node") as bench:

        async def attempt(cancelling: Cancelling) -> None:
            await cancelling.run(bench.swaps.release("sha256:0"))

            await until(lambda: not bench.swaps._lock.locked())
            await bench.swaps.release("sha256:0")

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment_in_time
@pytest.mark.parametrize("newer", ["version", "own-file"])
async def test_a_document(
    newer: str, moment: Moment, onnx_file: OnnxFile, make_version: MakeVersion, tmp_path: Path
) -> None:
    """Applied again, it always succeeds; what is on disk is what serves."""
    one, other = make_version(TWICE_AGAIN, "1.1.0"), make_version(TWICE, "1.2.0")
    async with bench_of(onnx_file(TWICE), tmp_path / "node", one, other) as bench:
        generation = 0

        def document(version: ModelVersion | None) -> Desired:
            nonlocal generation
            generation += 1
            models = {} if version is None else {"door": version.ref}
            swap = POLICY.model_copy(update={"shadow_s": 0, "split_s": 0})
            return Desired(node=str(bench.address), generation=generation, at=1.0, models=models, swap=swap)

        async def attempt(cancelling: Cancelling) -> None:
            await bench.agent._apply(document(one))
            assert bench.serving is one
            desired = document(None if newer == "own-file" else other)

            await cancelling.run(bench.agent._apply(desired))

            await until(lambda: not running())
            bench.check_agent()
            assert bench.state.desired() in (
                desired,
                desired.model_copy(update={"generation": generation - 1}),
                None,
            ) or (
                bench.state.desired().generation in (generation - 1, generation)  # type: ignore[union-attr]
            )
            await bench.agent._apply(desired)
            assert bench.serving is (None if newer == "own-file" else other)
            bench.check_agent()
            assert bench.state.desired() == desired
            assert bench.agent._reporter.report.state == "succeeded"

        assert await cancel_at_every_place(attempt, moment)


# Fetching


def file_of(folder: Path, content: bytes) -> File:
    """Publish a file. Returns: its entry in a manifest."""
    pieces = [content[at : at + 20_000] for at in range(0, len(content), 20_000)]
    for piece in pieces:
        name = digest_of(piece).removeprefix("sha256:")
        (folder / "blobs" / "sha256" / name[:2]).mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / "sha256" / name[:2] / name).write_bytes(piece)
    chunks = tuple(Chunk(digest=digest_of(piece), size=len(piece)) for piece in pieces)
    return File(path="model.onnx", size=len(content), digest=digest_of(content), chunks=chunks)


class Mirror:
    """A mirror that serves a repository's folder."""

    url = "https://mirror.example"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, piece: PlacedChunk) -> bytes:
        name = piece.chunk.digest.removeprefix("sha256:")
        return (self._folder / "blobs" / "sha256" / name[:2] / name).read_bytes()

    def manifest(self, path: str, max_bytes: int) -> bytes:
        raise AssertionError


@at_every_moment_in_time
@pytest.mark.parametrize("source", ["region", "mirror", "mirror-for-peers"])
async def test_a_fetch(source: str, moment: Moment, broker: Mosquitto, topic_prefix: str, tmp_path: Path) -> None:
    """The next fetch goes on: it is neither locked out nor subscribed twice, and its content is right."""
    region, repository = topic_prefix.replace("/", "-"), tmp_path / "repository"
    options, address = ClientOptions(url=broker.url), Address(region, "hall", "n1")
    sources = [Mirror(repository)] if source != "region" else []
    store = BlobStore(tmp_path / "store", 1 << 30)
    numbers = iter(range(10_000))
    fetcher = BlobFetcher(options, address, store, sources=sources, serve_neighbours=source != "mirror")
    async with BlobServer(options, region, repository) as server, fetcher:
        await server.client.wait_connected(60)
        await fetcher.client.wait_connected(60)
        base = set(fetcher.client._session.subscriptions.requested)

        async def attempt(cancelling: Cancelling) -> None:
            content = Random(next(numbers)).randbytes(50_000)
            file = file_of(repository, content)

            await cancelling.run(fetcher.fetch([file]))

            assert fetcher._scheduler is None
            assert not fetcher._fetch_lock.locked()
            await until(lambda: set(fetcher.client._session.subscriptions.requested) == base)
            async with asyncio.timeout(60):
                await fetcher.fetch([file])
            assert store.check([file]) == []
            part = store._parts.existing(file)
            assert part is not None
            assert part.path.read_bytes() == content
            assert not fetcher._mirrors._tasks
            await until(lambda: not fetcher.client.unacknowledged, lambda: "acknowledgements")

        assert await cancel_at_every_place(attempt, moment)
    assert not running()


@at_every_moment_in_time
async def test_a_document_of_the_repository(
    moment: Moment, broker: Mosquitto, topic_prefix: str, tmp_path: Path
) -> None:
    region = topic_prefix.replace("/", "-")
    options, address = ClientOptions(url=broker.url), Address(region, "hall", "n1")
    numbers = iter(range(10_000))
    (tmp_path / "metadata").mkdir()
    store = BlobStore(tmp_path / "store", 1 << 20)
    async with BlobServer(options, region, tmp_path) as server, BlobFetcher(options, address, store) as fetcher:
        await server.client.wait_connected(60)
        await fetcher.client.wait_connected(60)

        async def attempt(cancelling: Cancelling) -> None:
            path = f"metadata/{next(numbers)}.root.json"
            (tmp_path / path).write_bytes(path.encode())
            documents: RegionDocuments = fetcher.documents

            await cancelling.run(documents.part(path, 0))

            assert (await documents.part(path, 0)).data == path.encode()

        assert await cancel_at_every_place(attempt, moment)


@at_every_moment
@pytest.mark.parametrize("part", ["fetcher", "member", "server"])
async def test_opening_and_closing(
    part: str, moment: Moment, broker: Mosquitto, topic_prefix: str, tmp_path: Path
) -> None:
    region = topic_prefix.replace("/", "-")
    options, address = ClientOptions(url=broker.url), Address(region, "hall", "n1")
    store = BlobStore(tmp_path / "store", 1 << 20)

    class Idle:
        async def run(self) -> None:
            await asyncio.Event().wait()

        def close(self) -> None:
            pass

    async def attempt(cancelling: Cancelling) -> None:
        opened: Any
        if part == "server":
            opened = BlobServer(options, region, tmp_path)
        else:
            opened = BlobFetcher(options, address, store, sources=[Mirror(tmp_path)])
        if part == "member":
            member = FleetMember(Idle(), opened, Idle())  # type: ignore[arg-type]
            await member.open()
            close = member.close
        else:
            await opened.__aenter__()

            async def close() -> None:
                await opened.__aexit__(None, None, None)

        await opened.client.wait_connected(60)

        await cancelling.run(close())

        assert not running()
        await close()

    assert await cancel_at_every_place(attempt, moment)


@pytest.mark.long
@at_every_moment_in_time
async def test_a_run_of_the_regions_service(
    moment: Moment, broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is cancelled its store is free, its threads end, and the next run works."""
    monkeypatch.setattr("hedgerow.region.rollouts.service._TURN_S", 0.01)
    (tmp_path / "repository").mkdir()
    config = RegionConfig.model_validate(
        {
            "region": {"name": f"r{id(tmp_path)}"},
            "broker": {"url": broker.url},
            "store": {"url": f"{tmp_path}/region.db"},
            "metrics": {"enabled": False},
            "models": {"repository": str(tmp_path / "repository")},
        }
    )

    async def attempt(cancelling: Cancelling) -> None:
        service = RegionService(config)

        await cancelling.run(service.run(started=service.stop))

        assert not running()
        assert not threads("region-writer")
        assert not threads("region-lease")
        await until(lambda: not threads("region-rollouts"))

    assert await cancel_at_every_place(attempt, moment)


async def _no_links() -> None:
    """There are none to renew."""
