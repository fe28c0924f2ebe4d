"""Testbed: a region with a repository and a site, on two real brokers, with a faulty WAN between them that counts bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle.manifest import Chunk, File, Manifest, digest_of
from hedgerow.testing.faults import FaultProxy
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.topics import Address
from hedgerow.topology.brokers import site_conf
from hedgerow.topology.model import Topology

REGION, SITE = "north", "hall"
SITE_ADDRESS = Address(REGION, SITE, "n1")
TIMEOUT_S = 90


def chunked_file(path: str, content: bytes, chunk_bytes: int = 64 << 10) -> tuple[File, dict[str, bytes]]:
    """Return a file as listed in a manifest, and its chunks by digest."""
    pieces = [content[at : at + chunk_bytes] for at in range(0, len(content), chunk_bytes)]
    chunks = tuple(Chunk(digest=digest_of(piece), size=len(piece)) for piece in pieces)
    file = File(path=path, size=len(content), digest=digest_of(content), chunks=chunks)
    return file, {digest_of(piece): piece for piece in pieces}


def noise(size: int, seed: int) -> bytes:
    return Random(seed).randbytes(size)


def manifest_of(files: Sequence[File], version: str = "1.0.0") -> bytes:
    """Return a manifest of one variant with these files."""
    content = {
        "schema": "hedgerow.model/1", "name": "doors", "version": version, "inputs": [], "outputs": [],
        "variants": [
            {
                "name": "fp32", "format": "onnx", "precision": "fp32", "needs": {"backends": ["onnxruntime"]},
                "files": [file.model_dump() for file in files], "model_digest": files[0].digest,
            }
        ],
    }  # fmt: skip
    return Manifest.model_validate(content).encode()


class Repository:
    """A repository's folder, written directly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "metadata").mkdir(parents=True)

    def add(self, path: str, content: bytes, chunk_bytes: int = 64 << 10) -> File:
        file, chunks = chunked_file(path, content, chunk_bytes)
        for digest, piece in chunks.items():
            self.path(digest).parent.mkdir(parents=True, exist_ok=True)
            self.path(digest).write_bytes(piece)
        return file

    def path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.folder / "blobs" / "sha256" / name[:2] / name


class Testbed:
    """The brokers of a region and a site.

    Attributes:
        repository: the region's.
        upper, lower: brokers of the region and the site.
        wan: between the two brokers; it counts bytes.
    """

    __test__ = False  # not a class of tests

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository(folder / "repository")
        self.upper = Mosquitto(config=["max_inflight_messages 1000"])
        self.upper.start()
        self.wan = FaultProxy("127.0.0.1", self.upper.port, record=True)
        self.wan.__enter__()
        self.lower = Mosquitto(config=rendered_bridge(self.wan.port))
        self.lower.start()

    @property
    def wan_bytes(self) -> int:
        return len(self.wan.up) + len(self.wan.down)

    def options(self, name: str) -> ClientOptions:
        return ClientOptions(url=self.lower.url, client_id=name, max_backoff_s=1.0)

    def store(self, name: str, max_bytes: int = 1 << 30) -> BlobStore:
        return BlobStore(self.folder / name, max_bytes)

    def fetcher(self, name: str, store: BlobStore | None = None, /, **more: object) -> BlobFetcher:
        address = SITE_ADDRESS._replace(node=name)
        return BlobFetcher(self.options(name), address, store or self.store(name), **more)  # type: ignore[arg-type]

    @asynccontextmanager
    async def fetchers(self, *names: str, **more: object) -> AsyncIterator[list[BlobFetcher]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.fetcher(name, **more)) for name in names]

    @asynccontextmanager
    async def served(self) -> AsyncIterator[BlobServer]:
        """Run the region's server, with the bridge up."""
        options = ClientOptions(url=self.upper.url)
        async with BlobServer(options, REGION, self.repository.folder) as server:
            await server.client.wait_connected(TIMEOUT_S)
            await self.wait_bridged()
            yield server

    async def wait_bridged(self) -> None:
        """Wait until messages from the region reach the site."""
        arrived = asyncio.Event()
        async with (
            Client(ClientOptions(url=self.lower.url), lambda _: arrived.set()) as site,
            Client(ClientOptions(url=self.upper.url), lambda _: None) as region,
        ):
            await site.subscribe({f"hedgerow/v1/{REGION}/{SITE}/~/blob/probe": 1})
            while not arrived.is_set():
                region.publish(f"hedgerow/v1/{REGION}/{SITE}/~/blob/probe", b"", qos=1)
                await asyncio.sleep(0.05)

    def close(self) -> None:
        self.lower.close()
        self.wan.__exit__(None, None, None)
        self.upper.close()


def rendered_bridge(port: int, site: str = SITE) -> list[str]:
    """Return the bridge as rendered from a topology, without certificates."""
    topology = Topology.model_validate(
        {
            "region": {"name": REGION, "broker": "region.example"},
            "sites": {site: {"broker": "hall.example", "nodes": ["n1"]}},
        }
    )
    text = site_conf(topology, site, {})
    lines = text[text.index("# --- The bridge") :].splitlines()
    tls = ("bridge_cafile", "bridge_certfile", "bridge_keyfile", "bridge_tls_version", "bridge_insecure")
    bridge_lines = [line for line in lines if line and not line.startswith(("#", "address", "restart_timeout", *tls))]
    at = next(number for number, line in enumerate(bridge_lines) if line.startswith("connection ")) + 1
    return [*bridge_lines[:at], f"address 127.0.0.1:{port}", "restart_timeout 1 2", *bridge_lines[at:]]


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    made = Testbed(tmp_path)
    try:
        yield made
    finally:
        made.close()


def installed_digest(store: BlobStore, manifest: bytes, file: File) -> str:
    """Install a bundle. Returns: the digest of the file in it."""
    folder = store.install(manifest, [file])
    return f"sha256:{hashlib.sha256((folder / file.path).read_bytes()).hexdigest()}"
