"""WAN cost of a rollout: three sites with three nodes each, real brokers, rendered bridges, signatures.

A proxy in place of the WAN counts every byte over each bridge: the whole TCP payload.
"""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.blobs.conftest import REGION, manifest_of, rendered_bridge

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle import model_file
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.manifest import Manifest, read_manifest
from hedgerow.testing.faults import FaultProxy
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.repository import TestRepository, make_repository
from hedgerow.topics import Address, Channel
from hedgerow.trust.client import TrustClient
from hedgerow.wire.fleet import ModelRef

PACKAGES = Path(sysconfig.get_path("purelib"))
SMALL = PACKAGES / "silero_vad" / "data" / "silero_vad.onnx"  # 2.3 MB
LARGE = PACKAGES / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx"  # 10.9 MB
SITES = ("hall", "mill", "yard")
NODES = ("n1", "n2", "n3")
OVERHEAD = 64 << 10
"""Metadata, manifest, and messages between bridges and nodes: independent of the model's size."""


@dataclass
class Site:
    """A site, and the results it sends meanwhile.

    Attributes:
        wan: between its broker and the region's.
        sent: number of results sent.
        arrived: numbers of the results that reached the region.
        before: bytes over the WAN before the measurement.
    """

    name: str
    wan: FaultProxy
    broker: Mosquitto
    sent: int = 0
    arrived: list[int] = field(default_factory=list)
    before: int = 0

    @property
    def bytes(self) -> int:
        return len(self.wan.up) + len(self.wan.down) - self.before


class Sites:
    """A region and its sites."""

    def __init__(self) -> None:
        self.upper = Mosquitto(config=["max_inflight_messages 1000"])
        self.upper.start()
        self.sites: list[Site] = []
        for name in SITES:
            wan = FaultProxy("127.0.0.1", self.upper.port, record=True)
            wan.__enter__()
            results = f"topic hedgerow/v1/{REGION}/{name}/+/result/# out 1"  # as for a pipeline whose results go to the region
            broker = Mosquitto(config=[*rendered_bridge(wan.port, name), results])
            broker.start()
            self.sites.append(Site(name, wan, broker))

    def close(self) -> None:
        for site in self.sites:
            site.broker.close()
            site.wan.__exit__(None, None, None)
        self.upper.close()

    @asynccontextmanager
    async def results(self) -> AsyncIterator[None]:
        """Let every site send results, which the region receives."""
        everything = Address(REGION, "+", "+").topic(Channel.RESULT, "+")

        def on_messages(messages: list) -> None:  # type: ignore[type-arg]
            for message in messages:
                name = message.topic.split("/")[3]
                (site,) = (site for site in self.sites if site.name == name)
                site.arrived.append(int(bytes(message.payload)))
                region.ack(message)

        async with AsyncExitStack() as stack:
            region = await stack.enter_async_context(Client(ClientOptions(url=self.upper.url), on_messages))
            await region.subscribe({everything: 1})
            region.resume()
            sending = [
                asyncio.create_task(self._send(site, await stack.enter_async_context(_client(site))))
                for site in self.sites
            ]
            try:
                yield
            finally:
                for task in sending:
                    task.cancel()

    async def _send(self, site: Site, client: Client) -> None:
        topic = Address(REGION, site.name, "n1").topic(Channel.RESULT, "doors")
        while True:
            client.publish(topic, str(site.sent).encode(), qos=1)
            site.sent += 1
            await asyncio.sleep(0.02)


def _client(site: Site) -> Client:
    return Client(ClientOptions(url=site.broker.url), lambda _: None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110 - the condition depends on several counters
            await asyncio.sleep(0.02)


@pytest.fixture
def sites() -> Iterator[Sites]:
    running = Sites()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def models(tmp_path: Path) -> TestRepository:
    return make_repository(tmp_path / "repository", ["door"])


def publish(models: TestRepository, folder: Path, model: Path) -> tuple[ModelRef, int]:
    """Publish a signed version with one variant. Returns: its reference, and the model's size."""
    path = folder / "bundle" / "variants" / "fp32" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.read_bytes())
    file = describe_file(path, "variants/fp32/model.onnx")
    manifest = Manifest.model_validate_json(manifest_of([file]))
    variant = manifest.variants[0].model_copy(update={"model_digest": model_file.digest(path)})
    manifest = manifest.model_copy(update={"name": "door", "variants": (variant,)})
    (folder / "bundle" / "manifest.json").write_bytes(manifest.encode())
    published = models.repository.publish(Bundle.open(folder / "bundle"), models.owner)
    return ModelRef(name="door", version=manifest.version, digest=published.digest), file.size


class Node:
    """The model part of a node: verifies, fetches and installs."""

    def __init__(self, site: Site, name: str, models: TestRepository, folder: Path, bytes_per_s: int | None) -> None:
        self.site = site
        folder = folder / site.name / name
        self.store = BlobStore(folder / "store", 1 << 30)
        address = Address(REGION, site.name, name)
        options = ClientOptions(url=site.broker.url, max_backoff_s=1.0)
        self.fetcher = BlobFetcher(options, address, self.store, max_bytes_per_s=bytes_per_s)
        self.trust = TrustClient(folder / "trust", models.root, self.fetcher.documents)

    async def install(self, ref: ModelRef) -> None:
        """Install a version as the agent does, waiting while the region is unavailable."""
        while True:
            try:
                await asyncio.to_thread(self.trust.refresh)
                content = await asyncio.to_thread(self.trust.manifest, ref, {})
                break
            except Exception as error:
                if getattr(error, "code", "") != "region-away":
                    raise
        files = read_manifest(content, ref.digest).files()
        await self.fetcher.fetch(files)
        await asyncio.to_thread(self.store.install, content, files)


async def roll_out(
    sites: Sites,
    models: TestRepository,
    folder: Path,
    model: Path,
    *,
    bytes_per_s: int | None = None,
    cut: bool = False,
) -> dict[str, tuple[int, int]]:
    """Let all nodes install a version at once. Returns by site: results sent and arrived until its nodes had it."""
    ref, size = publish(models, folder, model)
    meanwhile: dict[str, tuple[int, int]] = {}
    # All nodes and the region share this process: provide as many threads as they would have together.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    async with AsyncExitStack() as stack:
        options = ClientOptions(url=sites.upper.url)
        server = await stack.enter_async_context(BlobServer(options, REGION, models.repository.folder))
        await server.client.wait_connected(60)
        nodes = [Node(site, name, models, folder, bytes_per_s) for site in sites.sites for name in NODES]
        for node in nodes:
            await stack.enter_async_context(node.fetcher)
        await stack.enter_async_context(sites.results())
        await until(lambda: all(site.arrived for site in sites.sites))
        for site in sites.sites:
            site.before += site.bytes

        async def all_of(site: Site) -> None:
            sent, arrived = site.sent, len(site.arrived)
            await asyncio.gather(*(node.install(ref) for node in nodes if node.site is site))
            meanwhile[site.name] = site.sent - sent, len(site.arrived) - arrived

        async def cut_off(site: Site) -> None:
            await until(lambda: site.bytes > size / 3)
            site.wan.cut()
            await asyncio.sleep(3)  # long enough for nodes to repeat requests
            site.wan.restore()

        async with asyncio.timeout(120):
            await asyncio.gather(*map(all_of, sites.sites), *([cut_off(sites.sites[0])] if cut else []))
        shares = [site.bytes / size for site in sites.sites]
        print(f"{size:,} bytes; share over each bridge: {', '.join(f'{each:.3f}' for each in shares)}; {meanwhile}")
        assert all(node.store.installed()[0].digest == ref.digest for node in nodes)
    return meanwhile


def wan_share(sites: Sites, size: int) -> list[float]:
    """Return the bytes over each bridge, without fixed overhead and results, as a share of the model's size."""
    return [(site.bytes - OVERHEAD - 120 * site.sent) / size for site in sites.sites]


async def test_each_of_three_sites_pays_once_for_its_three_nodes(
    sites: Sites, models: TestRepository, tmp_path: Path
) -> None:
    """One of them is cut off during the fetch; results keep flowing wherever there is a link."""
    meanwhile = await roll_out(sites, models, tmp_path, SMALL, bytes_per_s=1_000_000, cut=True)

    assert max(wan_share(sites, SMALL.stat().st_size)) <= 1.05
    del meanwhile[SITES[0]]
    assert all(arrived > 0.5 * sent - 5 for sent, arrived in meanwhile.values()), meanwhile


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
async def test_each_of_three_sites_pays_once_for_a_large_model(
    sites: Sites, models: TestRepository, tmp_path: Path, cut: bool
) -> None:
    meanwhile = await roll_out(sites, models, tmp_path, LARGE, bytes_per_s=1_000_000, cut=cut)

    assert max(wan_share(sites, LARGE.stat().st_size)) <= 1.05
    if cut:
        del meanwhile[SITES[0]]
    assert all(arrived > 0.5 * sent - 5 for sent, arrived in meanwhile.values()), meanwhile
