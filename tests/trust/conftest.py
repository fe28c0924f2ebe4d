"""A repository with real keys and files, a node that follows it, and attackers between the two.

The node receives documents over the blob channel: a real broker, the node's own fetcher, and a stand-in for the
region's server that sends what the attacker passes on.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata

from hedgerow.blobs.announcements import MAX_PART_BYTES, DocumentPart, DocumentRequest
from hedgerow.blobs.fetch.documents import RegionDocuments
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.connect import ClientOptions
from hedgerow.labels import parse_selector
from hedgerow.models.bundle.manifest import Chunk, File, Manifest, Needs, Variant, digest_of
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.topics import Address
from hedgerow.trust import key_ceremony
from hedgerow.trust.client import TrustClient
from hedgerow.trust.documents import DocumentMissing, FolderDocuments
from hedgerow.trust.repository import Published, Repository, online_key_of
from hedgerow.wire.fleet import ModelRef

DAY = 86_400.0
BEGAN = 1_795_000_000.0  # November 2026


@dataclass
class Time:
    """A manual clock: the displayed time, and the real time passed."""

    wall: float = BEGAN
    passed: float = 1000.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


@dataclass(frozen=True)
class Bundle:
    """Files and their manifest."""

    folder: Path
    manifest: Manifest


def make_bundle(folder: Path, content: bytes = b"weights", *, name: str = "door", version: str = "1.0.0") -> Bundle:
    """Make a bundle of one file, in chunks of 4 bytes."""
    path = folder / "variants" / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    chunks = [content[at : at + 4] for at in range(0, len(content), 4)]
    file = File(
        path="variants/onnx/model.onnx",
        size=len(content),
        digest=digest_of(content),
        chunks=tuple(Chunk(digest=digest_of(chunk), size=len(chunk)) for chunk in chunks),
    )
    variant = Variant(
        name="onnx",
        format="onnx",
        precision="fp32",
        files=(file,),
        model_digest=file.digest,
        needs=Needs(backends=("onnxruntime",)),
    )
    manifest = Manifest(name=name, version=version, inputs=(), outputs=(), variants=(variant,))
    (folder / "manifest.json").write_bytes(manifest.encode())
    return Bundle(folder, manifest)


Tamper = Callable[[str, Any], Any]
"""Takes a path and its content, and returns the replacement; None: the document is missing."""


class Source(Protocol):
    """Documents, possibly tampered with."""

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]: ...


@dataclass
class Between:
    """Documents of a repository, with an attacker in between.

    Attributes:
        tamper: the attacker.
        requested: paths requested so far.
    """

    folder: Path
    tamper: Tamper = lambda _, data: data
    piece: int = 1 << 16
    requested: list[str] = field(default_factory=list)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        self.requested.append(path)
        try:
            honest = b"".join(FolderDocuments(self.folder).get(path, max_bytes))
        except DocumentMissing:
            honest = None
        data = self.tamper(path, honest)
        if data is None:
            raise DocumentMissing(path)
        for at in range(0, len(data), self.piece):
            yield data[at : at + self.piece]


class Impostor(BlobServer):
    """Takes the place of the region's server, and serves what the attacker passes on."""

    def __init__(self, options: ClientOptions, region: str, source: Source) -> None:
        super().__init__(options, region, Path("nowhere"))
        self._source = source

    def _wish(self, site: str, wish: Any) -> None:
        self._sent.clear()  # as if a second had passed
        super()._wish(site, wish)

    def _document(self, ask: DocumentRequest) -> DocumentPart:
        data, whole = bytearray(), True
        try:
            for piece in self._source.get(ask.path, 1 << 62):
                data += piece
                if len(data) > ask.offset + MAX_PART_BYTES:
                    whole = False
                    break
        except DocumentMissing:
            return DocumentPart(ask.path, ask.offset, None)
        part = bytes(data[ask.offset : ask.offset + MAX_PART_BYTES])
        return DocumentPart(ask.path, ask.offset, len(data) if whole else 1 << 40, part)


class NoDelay(Random):
    """Always returns the shortest pause."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Wire:
    """The blob channel of a site: nodes' fetchers on one end, the region's stand-in on the other."""

    def __init__(self, broker: Mosquitto) -> None:
        self._options = ClientOptions(url=broker.url)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def over(self, source: Source, folder: Path, stack: AsyncExitStack) -> RegionDocuments:
        """Return a source through which a node receives the served documents."""
        return self.run(self._connect(source, folder, stack))

    async def _connect(self, source: Source, folder: Path, stack: AsyncExitStack) -> RegionDocuments:
        address = Address(f"region-{next(self._numbers)}", "hall", "n1")
        await stack.enter_async_context(Impostor(self._options, address.region, source))
        store = BlobStore(folder / "store", 1 << 20)
        fetcher = BlobFetcher(self._options, address, store, serve_neighbours=False, random=NoDelay())
        return (await stack.enter_async_context(fetcher)).documents

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class DirectDocuments:
    """Documents without a channel in between, for tests that need thousands of them."""

    source: Source
    forgotten: int = 0

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        return self.source.get(path, max_bytes)

    def forget(self) -> None:
        self.forgotten += 1


class World:
    """A repository, its keys, and a node."""

    def __init__(self, folder: Path, wire: Wire | None = None) -> None:
        self.folder = folder
        self.wire = wire
        self.links = AsyncExitStack()
        self.documents: list[Any] = []
        self.time = Time()
        self.time_began = self.time.wall
        self.root_keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.targets_key = CryptoSigner.generate_ed25519()
        self.online_key = CryptoSigner.generate_ed25519()
        self.owner_key = CryptoSigner.generate_ed25519()
        self.repository = Repository(folder / "repository", clock=lambda: self.time.wall)
        self.put_online_key(self.online_key)
        key_ceremony.create(
            self.repository,
            root_keys=[key.public_key for key in self.root_keys],
            root_threshold=2,
            targets_keys=[self.targets_key.public_key],
            online_key=self.online_key.public_key,
            signers=[*self.root_keys[:2], self.targets_key],
        )
        self.root = (self.repository.metadata / "1.root.json").read_bytes()
        self.add_owner("doors", self.owner_key, "door", "gate-*")
        self.between = Between(self.repository.folder)
        self.node = self.client("node")

    def put_online_key(self, key: CryptoSigner) -> None:
        private: Any = key._private_key
        online_key_of(self.repository.folder).write_bytes(
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    def replace_online_key(self) -> None:
        """Let the root replace the online key."""
        before, self.online_key = self.online_key, CryptoSigner.generate_ed25519()
        self.put_online_key(self.online_key)
        key_ceremony.rotate(
            self.repository,
            ("snapshot", "timestamp"),
            new=[self.online_key.public_key],
            old=[before.public_key.keyid],
            signers=self.root_keys[:2],
        )

    def add_owner(self, name: str, key: Signer, *models: str) -> None:
        key_ceremony.add_owner(self.repository, name, models=models, keys=[key.public_key], signers=[self.targets_key])

    def client(self, name: str, source: Source | None = None) -> TrustClient:
        """Return a node that starts from the first root."""
        source = source or self.between
        documents = self.wire.over(source, self.folder / name, self.links) if self.wire else DirectDocuments(source)
        self.documents.append(documents)
        return TrustClient(
            self.folder / name,
            self.root,
            documents,
            clock=lambda: self.time.wall,
            monotonic=lambda: self.time.passed,
        )

    def bundle(self, content: bytes = b"weights", *, name: str = "door", version: str = "1.0.0") -> Bundle:
        return make_bundle(self.folder / "bundles" / f"{name}-{version}", content, name=name, version=version)

    def publish(
        self,
        version: str = "1.0.0",
        content: bytes = b"weights",
        *,
        name: str = "door",
        selector: str = "",
        key: Signer | None = None,
    ) -> ModelRef:
        """Publish a version and return the reference a region would request."""
        bundle = self.bundle(content, name=name, version=version)
        published: Published = self.repository.publish(bundle, key or self.owner_key, parse_selector(selector))
        return ModelRef(name=name, version=version, digest=published.digest)

    def read(self, name: str) -> Metadata[Any]:
        return Metadata.from_bytes((self.repository.metadata / f"{name}.json").read_bytes())

    def expire_caches(self) -> None:
        """Clear the channels' caches, as if they had expired."""
        for documents in self.documents:
            documents.forget()

    def close(self) -> None:
        if self.wire is not None:
            self.wire.run(self.links.aclose())


@pytest.fixture(scope="session")
def wire(broker: Mosquitto) -> Iterator[Wire]:
    world_ = Wire(broker)
    yield world_
    world_.close()


@pytest.fixture
def near(tmp_path: Path) -> World:
    """A node and its repository, connected by function calls."""
    return World(tmp_path)


@pytest.fixture
def world(near: World) -> World:
    """The default world."""
    return near


@pytest.fixture
def wired(tmp_path: Path, wire: Wire) -> Iterator[World]:
    """A node and its repository, connected by a broker."""
    world_ = World(tmp_path, wire)
    yield world_
    world_.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Return a function that makes a bundle."""

    def make(content: bytes = b"weights", *, name: str = "door", version: str = "1.0.0") -> Bundle:
        return make_bundle(tmp_path / "bundles" / f"{name}-{version}", content, name=name, version=version)

    return make
