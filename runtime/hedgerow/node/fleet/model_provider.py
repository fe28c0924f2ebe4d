"""Verifies, fetches and stores the node's model versions.

verify (trust) ─▶ fetch (blobs) ─▶ store ─▶ candidate
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from hedgerow import backends, tasks
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.store.store import BlobStore
from hedgerow.models.bundle.manifest import MANIFEST, Manifest, Variant, read_manifest
from hedgerow.models.bundle.model_file import digest
from hedgerow.models.bundle.version import DamagedModel, ModelVersion, choose_variant
from hedgerow.node.fleet.reconcile import DesiredError
from hedgerow.node.fleet.signed_pipelines import PipelinesFolder
from hedgerow.node.fleet.verify import Verifier
from hedgerow.node.pipelines.live_config import SignedPipelines
from hedgerow.node.swap.outcome import OnStep
from hedgerow.wire.fleet import ModelRef


class ModelProvider:
    """The node's model versions: those in its store, and how to get others.

    Args:
        verifier: verifies that a version may serve here.
        fetcher: fetches content.
        store: stores it.
        pipelines: stores signed pipelines.
    """

    def __init__(self, verifier: Verifier, fetcher: BlobFetcher, store: BlobStore, pipelines: PipelinesFolder) -> None:
        self._verifier = verifier
        self._fetcher = fetcher
        self._store = store
        self._pipelines = pipelines

    @property
    def used_bytes(self) -> int:
        """Bytes used by the store."""
        return self._store.used_bytes

    @property
    def max_bytes(self) -> int:
        """Most bytes the store may use."""
        return self._store.max_bytes

    async def fetch(self, ref: ModelRef, labels: dict[str, str], on_step: OnStep) -> None:
        """Verify a version, and fetch the files this node needs into the store.

        Args:
            labels: this node's labels.
        Raises:
            BusError: the region is unreachable.
            HedgerowError: it may not serve or cannot run here, or the store is full.
        """
        on_step("verify", None)
        version = await self._verifier.verify(ref, labels)
        on_step("fetch", 0.0)
        await self._fetcher.fetch(version.files, partial(on_step, "fetch"))
        on_step("install", None)
        install = partial(self._store.install, version.manifest, version.files)
        await tasks.in_thread(install, "installation of a model")

    async def fetch_pipelines(self, ref: ModelRef, labels: dict[str, str]) -> SignedPipelines:
        """Verify signed pipelines, and store them.

        Raises:
            BusError: the region is unreachable.
            HedgerowError: they may not run here, are invalid, or cannot be stored.
        """
        content = await self._verifier.verify_pipelines(ref, labels)
        keep = partial(self._pipelines.keep, content, ref)
        try:
            return await tasks.in_thread(keep, "storage of signed pipelines")
        except OSError as error:
            raise DesiredError(
                f"{ref} cannot be stored: {error.strerror}", code="disk", remedy="Free disk space on the node."
            ) from error

    def pipelines(self, ref: ModelRef) -> SignedPipelines | None:
        """Return signed pipelines that were verified before. Blocks: it reads and writes files."""
        return self._pipelines.restore(ref)

    async def verify_again(self, ref: ModelRef, labels: dict[str, str]) -> None:
        """Verify a stored version again. Raises: TrustError: it may no longer serve."""
        await self._verifier.verify_again(ref, labels)

    def installed(self) -> dict[str, Path]:
        """Return folders of the bundles with a complete variant, by digest. Blocks: it reads files."""
        folders = {each.digest: each.folder for each in self._store.installed()}
        return {key: folder for key, folder in folders.items() if _complete(_manifest(key, folder), folder)}

    def candidate(self, model: str, ref: ModelRef, variant: str | None = None) -> ModelVersion:
        """Return a stored version. Blocks: it may query drivers.

        Args:
            model: the model's name in the node's file.
            variant: one of its variants; None: the first that can run here.
        Raises: HedgerowError: it is not in the store, or cannot run here.
        """
        folder = self.installed().get(ref.digest)
        if folder is None:
            raise DesiredError(
                f"{ref} is no longer in the store",
                code="not-installed",
                remedy="The node fetches it again when the region sends a new document.",
            )
        manifest = _manifest(ref.digest, folder)
        if variant is None:
            complete = manifest.model_copy(update={"variants": _complete(manifest, folder)})
            variant = choose_variant(complete, backends.LocalDevices(), None).name
        return ModelVersion(model, ref, manifest, manifest.variant(variant), folder)

    def intact(self, model: str, ref: ModelRef, variant: str | None) -> ModelVersion:
        """Return a stored version whose model file matches its signed digest.

        A damaged file is set aside, and fetched again later.

        Raises:
            DamagedModel: it does not match.
            HedgerowError: see `candidate`.
        """
        candidate = self.candidate(model, ref, variant)
        found = digest(candidate.path)
        if found != candidate.variant.model_digest:
            self._store.check(candidate.manifest.files_for(candidate.variant))
            raise DamagedModel(candidate, found)
        return candidate

    def protect(self, digests: Collection[str]) -> None:
        """Protect these bundles, and no others, from eviction."""
        self._store.protect(digests)


def _manifest(bundle: str, folder: Path) -> Manifest:
    return read_manifest((folder / MANIFEST).read_bytes(), bundle)


def _complete(manifest: Manifest, folder: Path) -> tuple[Variant, ...]:
    """Return the variants whose files all exist."""
    return tuple(v for v in manifest.variants if all((folder / file.path).is_file() for file in v.files))
