"""Model versions for tests of the store."""

from __future__ import annotations

import os
from pathlib import Path

from tests.blobs.conftest import chunked_file, manifest_of

from hedgerow.blobs.store.store import BlobStore
from hedgerow.models.bundle.manifest import File, digest_of

CHUNK = 1024


class Version:
    """A model version: its manifest, files and their chunks."""

    def __init__(self, version: str, *contents: bytes) -> None:
        built = [chunked_file(f"model-{number}.onnx", content, CHUNK) for number, content in enumerate(contents)]
        self.files: list[File] = [file for file, _ in built]
        self.contents = contents
        self.chunks = {digest: piece for _, pieces in built for digest, piece in pieces.items()}
        self.manifest = manifest_of(self.files, version)
        self.digest = digest_of(self.manifest)

    def fetch(self, store: BlobStore, limit: int = 1 << 30) -> int:
        """Put missing chunks, at most `limit`. Returns: how many."""
        missing = store.missing(self.files)[:limit]
        for chunk in missing:
            store.put(chunk.digest, self.chunks[chunk.digest])
        return len(missing)

    def install(self, store: BlobStore) -> Path:
        """Fetch and install, as a node does: chunks damaged on disk are fetched again."""
        self.fetch(store)
        if store.check(self.files):
            self.fetch(store)
        return store.install(self.manifest, self.files)

    def is_intact_in(self, store: BlobStore) -> bool:
        found = {each.digest: each.folder for each in store.installed()}
        return self.digest in found and all(
            (found[self.digest] / file.path).read_bytes() == content
            for file, content in zip(self.files, self.contents, strict=True)
        )


def set_age(store: BlobStore, *versions: Version) -> None:
    """Make the versions last used in this order, long ago."""
    for age, version in enumerate(versions):
        (folder,) = [each.folder for each in store.installed() if each.digest == version.digest]
        os.utime(folder / "manifest.json", (1e9 + age, 1e9 + age))
