"""Where a node's models come from: verified, fetched once, stored, handed out to serve.

verify (trust) ─▶ fetch (blobs) ─▶ store ─▶ candidate
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from pathlib import Path

from hedgerow import backends
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.store.store import BlobStore
from hedgerow.models.bundle.manifest import MANIFEST, Manifest, Variant, read_manifest
from hedgerow.models.bundle.model_file import digest
from hedgerow.models.bundle.version import DamagedModel, ModelVersion, choose_variant
from hedgerow.node.fleet.reconcile import DesiredError
from hedgerow.node.fleet.verify import Verifier
from hedgerow.node.swap.outcome import OnStep
from hedgerow.wire.fleet import ModelRef


class ModelSource:
    """The versions that this node has, and how it gets more.

    Args:
        verifier: says which versions may serve here.
        fetcher: fetches their content.
        store: keeps it.
    """

    def __init__(self, verifier: Verifier, fetcher: BlobFetcher, store: BlobStore) -> None:
        self._verifier = verifier
        self._fetcher = fetcher
        self._store = store

    @property
    def used_bytes(self) -> int:
        """Bytes that the store takes."""
        return self._store.used_bytes

    @property
    def max_bytes(self) -> int:
        """Bytes that the store may take."""
        return self._store.max_bytes

    async def fetch(self, ref: ModelRef, labels: dict[str, str], on_step: OnStep) -> None:
        """Verify a version and bring what this node needs of it into the store.

        Args:
            labels: this node's.
        Raises:
            BusError: the region cannot be reached.
            HedgerowError: it may not serve here, cannot run here, or finds no room.
        """
        on_step("verify", None)
        version = await self._verifier.verify(ref, labels)
        on_step("fetch", 0.0)
        await self._fetcher.fetch(version.files, partial(on_step, "fetch"))
        on_step("install", None)
        await asyncio.to_thread(self._store.install, version.manifest, version.files)

    async def verify_again(self, ref: ModelRef, labels: dict[str, str]) -> None:
        """Verify a version that is in the store once more. Raises: TrustError: it may not serve any more."""
        await self._verifier.verify_again(ref, labels)

    def installed(self) -> dict[str, Path]:
        """Folders of the bundles that have a complete variant, by digest; reads files."""
        folders = {each.digest: each.folder for each in self._store.installed()}
        return {key: folder for key, folder in folders.items() if _complete(_manifest(key, folder), folder)}

    def candidate(self, model: str, ref: ModelRef, variant: str | None = None) -> ModelVersion:
        """A version that is in the store; blocks, since drivers may be asked.

        Args:
            model: its name in the node's file.
            variant: which of its variants; None: the first that can run here.
        Raises: HedgerowError: it is not in the store, or cannot run here.
        """
        folder = self.installed().get(ref.digest)
        if folder is None:
            raise DesiredError(
                f"{ref} is not in the store any more",
                code="not-installed",
                remedy="It is fetched again when the region sends a new document.",
            )
        manifest = _manifest(ref.digest, folder)
        if variant is None:
            complete = manifest.model_copy(update={"variants": _complete(manifest, folder)})
            variant = choose_variant(complete, backends.LocalDevices(), None).name
        return ModelVersion(model, ref, manifest, manifest.variant(variant), folder)

    def undamaged(self, model: str, ref: ModelRef, variant: str | None) -> ModelVersion:
        """As `candidate`, if its file is what was signed; otherwise the store sets it aside, and it is fetched again.

        Raises:
            DamagedModel: it is not.
            HedgerowError: as `candidate`.
        """
        candidate = self.candidate(model, ref, variant)
        found = digest(candidate.path)
        if found != candidate.variant.model_digest:
            self._store.check(candidate.manifest.files_for(candidate.variant))
            raise DamagedModel(candidate, found)
        return candidate

    def protect(self, digests: Collection[str]) -> None:
        """Keep the store from evicting these bundles, and no others."""
        self._store.protect(digests)


def _manifest(bundle: str, folder: Path) -> Manifest:
    return read_manifest((folder / MANIFEST).read_bytes(), bundle)


def _complete(manifest: Manifest, folder: Path) -> tuple[Variant, ...]:
    """The variants whose files are all there."""
    return tuple(v for v in manifest.variants if all((folder / file.path).is_file() for file in v.files))
