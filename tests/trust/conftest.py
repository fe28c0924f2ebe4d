"""A repository with real keys and files, a node that follows it, and what may lie between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata

from hedgerow.labels import parse_selector
from hedgerow.models.manifest import Chunk, File, Manifest, Needs, Variant, digest_of
from hedgerow.trust import ceremony
from hedgerow.trust.client import TrustClient
from hedgerow.trust.documents import DocumentMissing, FolderDocuments
from hedgerow.trust.repository import Published, Repository, online_key_of
from hedgerow.wire.fleet import ModelRef

DAY = 86_400.0
BEGAN = 1_795_000_000.0  # November 2026


@dataclass
class Time:
    """A clock that is set by hand: what it shows, and what has really passed."""

    wall: float = BEGAN
    passed: float = 1000.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


@dataclass(frozen=True)
class Bundle:
    """Files and their manifest."""

    folder: Path
    manifest: Manifest


def make_bundle(folder: Path, content: bytes = b"weights", *, name: str = "door", version: str = "1.0.0") -> Bundle:
    """A bundle of one file, in chunks of 4 bytes."""
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
"""Gets a path and what is there, and gives what comes instead; None: nothing."""


@dataclass
class Between:
    """Documents of a repository, with somebody in between.

    Attributes:
        tamper: who is in between.
        asked: paths that were asked for.
    """

    folder: Path
    tamper: Tamper = lambda _, data: data
    piece: int = 1 << 16
    asked: list[str] = field(default_factory=list)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        self.asked.append(path)
        try:
            honest = b"".join(FolderDocuments(self.folder).get(path, max_bytes))
        except DocumentMissing:
            honest = None
        data = self.tamper(path, honest)
        if data is None:
            raise DocumentMissing(path)
        for at in range(0, len(data), self.piece):
            yield data[at : at + self.piece]


class World:
    """A repository, its keys, and a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = Time()
        self.root_keys = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.targets_key = CryptoSigner.generate_ed25519()
        self.online_key = CryptoSigner.generate_ed25519()
        self.owner_key = CryptoSigner.generate_ed25519()
        self.repository = Repository(folder / "repository", clock=lambda: self.time.wall)
        self.put_online_key(self.online_key)
        ceremony.begin(
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

    def add_owner(self, name: str, key: Signer, *models: str) -> None:
        ceremony.add_owner(self.repository, name, models=models, keys=[key.public_key], signers=[self.targets_key])

    def client(self, name: str, documents: Any = None) -> TrustClient:
        """A node that was given the first root."""
        return TrustClient(
            self.folder / name,
            self.root,
            documents or self.between,
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
        """Publish a version; what a region would ask for."""
        bundle = self.bundle(content, name=name, version=version)
        done: Published = self.repository.publish(bundle, key or self.owner_key, parse_selector(selector))
        return ModelRef(name=name, version=version, digest=done.digest)

    def read(self, name: str) -> Metadata[Any]:
        return Metadata.from_bytes((self.repository.metadata / f"{name}.json").read_bytes())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Makes a bundle."""

    def make(content: bytes = b"weights", *, name: str = "door", version: str = "1.0.0") -> Bundle:
        return make_bundle(tmp_path / "bundles" / f"{name}-{version}", content, name=name, version=version)

    return make
