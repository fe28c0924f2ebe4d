"""Where versions of models come from: verified, brought here once, kept, handed out to serve.

verify (trust) ─▶ fetch (blobs) ─▶ store ─▶ candidate
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hedgerow import backends
from hedgerow.models.bundle.manifest import MANIFEST, Manifest, Variant, read_manifest
from hedgerow.models.bundle.model_file import digest
from hedgerow.models.bundle.version import DamagedModel, ModelVersion, choose_variant
from hedgerow.node.reconcile import DesiredError

if TYPE_CHECKING:
    from hedgerow.blobs.fetch.fetcher import BlobFetcher
    from hedgerow.blobs.store.store import BlobStore
    from hedgerow.node.verify import Verifier
    from hedgerow.wire.fleet import ModelRef


class OnStep(Protocol):
    """Told of each step and its progress, 0..1 or unknown."""

    def __call__(self, stage: str, *, progress: float | None = None) -> None:
        """A step has begun, or gone on."""
        ...


class Supply:
    """The versions that this node has, and how it gets more.

    Args:
        verifier: says which bundles are what they are called.
        fetcher: brings their content.
        store: where that lies.
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
        """Have a version verified, and all of it brought here.

        Args:
            labels: this node's.
        Raises:
            BusError: the region cannot be reached.
            HedgerowError: it may not serve here, cannot run here, or finds no room.
        """
        on_step("verify")
        content = await self._verifier.manifest(ref, labels)
        manifest = read_manifest(content, ref.digest)
        variant = await asyncio.to_thread(choose_variant, manifest, backends.Here(), None)
        files = manifest.files_for(variant)
        on_step("fetch", progress=0.0)
        await self._fetcher.fetch(files, lambda done: on_step("fetch", progress=done))
        on_step("install")
        await asyncio.to_thread(self._store.install, content, files)

    async def recheck(self, ref: ModelRef, labels: dict[str, str]) -> None:
        """Ask whether a version that lies here may still serve. Raises: TrustError: it may not."""
        await self._verifier.again(ref, labels)

    def installed(self) -> dict[str, Path]:
        """Folders of the bundles that have a variant whole, by digest."""
        there = {each.digest: each.folder for each in self._store.installed()}
        return {key: folder for key, folder in there.items() if _whole(_manifest(key, folder), folder)}

    def candidate(self, model: str, ref: ModelRef, variant: str | None = None) -> ModelVersion:
        """A version that lies here; blocks, since drivers may be asked.

        Args:
            model: its name in the node's file.
            variant: which of its variants; None: whichever can run here.
        Raises: HedgerowError: it does not lie here, or cannot run here.
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
            whole = manifest.model_copy(update={"variants": _whole(manifest, folder)})
            variant = choose_variant(whole, backends.Here(), None).name
        return ModelVersion(model, ref, manifest, manifest.variant(variant), folder)

    def undamaged(self, model: str, ref: ModelRef, variant: str | None) -> ModelVersion:
        """As `candidate`, if its file is still what was signed; else the store sets it aside, and it is fetched anew.

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
        """Keep the store from evicting these."""
        self._store.protect(digests)


def _manifest(bundle: str, folder: Path) -> Manifest:
    return read_manifest((folder / MANIFEST).read_bytes(), bundle)


def _whole(manifest: Manifest, folder: Path) -> tuple[Variant, ...]:
    """Those variants whose files are all there."""
    return tuple(v for v in manifest.variants if all((folder / file.path).is_file() for file in v.files))
