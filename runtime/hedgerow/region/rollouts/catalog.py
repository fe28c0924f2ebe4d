"""Catalog of the region's models: manifests in its repository, by name and version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hedgerow.errors import ModelError
from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, LARGEST_PIPELINES, PIPELINES, digest_of, read_manifest
from hedgerow.region.rollouts.planning.spec import ModelSection
from hedgerow.topics import is_name
from hedgerow.wire.fleet import VERSION_PATTERN, ModelRef


class UnknownModel(ModelError):
    """The repository has no such version of a model."""

    code = "unknown-model"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A version of a model.

    Attributes:
        ref: name, version and digest.
        files: digests of the files that may serve it; empty: unknown.
    """

    ref: ModelRef
    files: frozenset[str] = frozenset()


def look_up(repository: Path | None, name: str, section: ModelSection) -> CatalogEntry:
    """Find the version that a plan names.

    Args:
        repository: folder of the repository; None: there is none, so the plan must give the digest.
        name: the model's name in the nodes' files.
        section: the plan's section about it.
    Raises:
        UnknownModel: the repository does not have it, or has another digest.
        BadManifest: its manifest is invalid.
    """
    bundle = section.model or name
    if repository is None:
        if section.digest is None:
            raise UnknownModel(
                f"Cannot look up {bundle} {section.version}: the region has no repository",
                remedy="Set `models: {repository: PATH}` in region.yaml, or give the `digest` in the rollout's file.",
            )
        return CatalogEntry(ModelRef(name=bundle, version=section.version, digest=section.digest))
    found = {
        digest_of(content): content
        for path in sorted((repository / "targets" / bundle / section.version).glob("*manifest.json"))
        if len(content := _read(path)) <= LARGEST_MANIFEST
    }
    if section.digest is not None:
        found = {digest: content for digest, content in found.items() if digest == section.digest}
    if len(found) != 1:
        what = f"{bundle} {section.version}" + (f" with {section.digest}" if section.digest else "")
        raise UnknownModel(
            f"{repository} has {'no' if not found else 'more than one'} {what}",
            remedy=f"Publish it with `hedgerow model publish`. Existing versions: {_versions(repository, bundle)}."
            if not found
            else f"Choose one by its `digest`: {', '.join(found)}.",
        )
    ((digest, content),) = found.items()
    manifest = read_manifest(content, digest)
    files = frozenset(variant.model_digest for variant in manifest.variants)
    return CatalogEntry(ModelRef(name=bundle, version=section.version, digest=digest), files)


def look_up_pipelines(repository: Path | None, name: str, version: str) -> ModelRef:
    """Find published pipelines. Raises: UnknownModel: the repository does not have them."""
    if repository is None or not is_name(name) or re.fullmatch(VERSION_PATTERN, version) is None:
        raise UnknownModel(
            f"Cannot look up pipelines {name[:100]} {version[:100]}",
            remedy="Name published pipelines, and set `models: {repository: PATH}` in region.yaml.",
        )
    found = {
        digest_of(content)
        for path in (repository / "targets" / name / version).glob(f"*{PIPELINES}")
        if len(content := _read(path)) <= LARGEST_PIPELINES
    }
    if len(found) != 1:
        raise UnknownModel(
            f"{repository} has {'no' if not found else 'more than one'} pipelines {name} {version}",
            remedy=f"Publish them with `hedgerow trust publish-pipelines`. Versions: {_versions(repository, name)}.",
        )
    return ModelRef(name=name, version=version, digest=found.pop())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnknownModel(
            f"{path} cannot be read: {error.strerror}", remedy="Let the service's user read the repository."
        ) from error


def _versions(repository: Path, bundle: str) -> str:
    folder = repository / "targets" / bundle
    return ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "none"
