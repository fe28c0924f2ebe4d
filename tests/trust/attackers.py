"""Attackers between the repository and a node, or with a stolen key, and the documents they send."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from hedgerow.models.bundle.manifest import digest_of
from hedgerow.wire.fleet import ModelRef

World = Any
Tamper = Callable[[str, Any], Any]


@contextmanager
def attacked(world: World, tamper: Tamper) -> Iterator[None]:
    """Tamper with documents; afterwards the node accepts the genuine repository again."""
    honest, world.between.tamper = world.between.tamper, tamper
    world.expire_caches()
    try:
        yield
    finally:
        world.between.tamper = honest
        world.expire_caches()


def replaced(path: str, content: bytes) -> Tamper:
    return lambda requested, data: content if requested == path else data


def current(world: World, role: str) -> str:
    """Return the path of a role's metadata that nodes see."""
    if role == "timestamp":
        return "metadata/timestamp.json"
    if role == "snapshot":
        return f"metadata/{world.repository.timestamp().signed.snapshot_meta.version}.snapshot.json"
    return f"metadata/{world.repository.snapshot().signed.meta[f'{role}.json'].version}.{role}.json"


def sign(metadata: Metadata[Any], *keys: CryptoSigner) -> bytes:
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(key, append=True)
    return metadata.to_bytes()


class OnlineKeyThief:
    """An attacker with the online key, who signs and serves any metadata."""

    def __init__(self, world: World, documents: dict[str, bytes] | None = None) -> None:
        self.world = world
        self.documents = documents or {}
        self.snapshot = world.read(str(Path(current(world, "snapshot")).stem))
        self.timestamp = world.read("timestamp")

    def replace(self, role: str, content: bytes, version: int | None = None) -> OnlineKeyThief:
        """Serve this metadata for a role; `version`: the version in the snapshot."""
        version = version or json.loads(content)["signed"]["version"]
        self.snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, content, ["sha256"])
        self.documents[f"metadata/{version}.{role}.json"] = content
        return self

    def sign(self, *, snapshot_version: int | None = None, content: bytes | None = None) -> OnlineKeyThief:
        """Sign the timestamp, and the snapshot unless `content` replaces it."""
        self.snapshot.signed.version = snapshot_version or self.snapshot.signed.version + 1
        content = content or sign(self.snapshot, self.world.online_key)
        self.timestamp.signed.version += 1
        self.timestamp.signed.snapshot_meta = MetaFile.from_data(self.snapshot.signed.version, content, ["sha256"])
        self.documents[f"metadata/{self.snapshot.signed.version}.snapshot.json"] = content
        self.documents["metadata/timestamp.json"] = sign(self.timestamp, self.world.online_key)
        return self

    def tamper(self, path: str, data: Any) -> Any:
        return self.documents.get(path, data)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if path in self.documents:
            yield self.documents[path]
        else:
            yield from self.world.between.get(path, max_bytes)


class ExtendedRepository:
    """Serves the repository with additional or replaced documents."""

    def __init__(self, world: World, documents: dict[str, bytes]) -> None:
        self.world, self.documents = world, documents

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if path in self.documents:
            yield self.documents[path]
        else:
            yield from self.world.between.get(path, max_bytes)


def make_root(
    world: World, *keys: CryptoSigner, version: int = 2, change: Callable[[Any], None] = lambda _: None
) -> bytes:
    """Return a changed root, signed with these keys."""
    root = world.read("1.root")
    root.signed.version = version
    change(root.signed)
    return sign(root, *keys)


def with_owner_metadata(world: World, change: Callable[[Any], None]) -> OnlineKeyThief:
    """Serve changed metadata, signed by its owner with other tools and included in a snapshot with the online key."""
    metadata = world.read(Path(current(world, "doors")).stem)
    metadata.signed.version += 1
    change(metadata.signed)
    return OnlineKeyThief(world).replace("doors", sign(metadata, world.owner_key)).sign()


def other_target(name: str, content: bytes = b"{}", version: str = "1.0.0") -> tuple[TargetFile, ModelRef, str]:
    """Return a target, its reference, and the path of its document."""
    path = f"{name}/{version}/manifest.json"
    target = TargetFile.from_data(path, content, ["sha256"])
    document = f"targets/{name}/{version}/{target.hashes['sha256']}.manifest.json"
    return target, ModelRef(name=name, version=version, digest=digest_of(content)), document
