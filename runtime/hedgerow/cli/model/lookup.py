"""Opens the bundle that a verb names: a folder, or a bundle in a repository or a node's store."""

from __future__ import annotations

import errno
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.errors import ModelNotFound

if TYPE_CHECKING:
    from hedgerow.models.bundle.folder import Bundle
    from hedgerow.models.bundle.manifest import File, Manifest

BundleName = Annotated[
    str,
    typer.Argument(metavar="BUNDLE", help="A bundle's folder; with --from, its NAME, NAME/VERSION or digest."),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="STORE",
        help="Look for it in this repository, or in this state folder of a node on this machine.",
    ),
]

Files = Callable[["Manifest"], "Iterable[File]"]
"""Selects the files of a bundle that a verb needs."""


def all_files(manifest: Manifest) -> Iterable[File]:
    """Select all files."""
    return manifest.files()


def no_files(manifest: Manifest) -> Iterable[File]:  # noqa: ARG001 - a `Files` function
    """Select no files: the manifest is enough."""
    return ()


@dataclass(frozen=True, slots=True)
class _StoredBundle:
    """A bundle in a store: its chunks are in `repository`, or, if that is None, its files in `folder`."""

    name: str
    version: str
    digest: str
    folder: Path
    repository: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.version} {self.digest.partition(':')[2][:12]}"


@contextmanager
def open_bundle(reference: str, store: Path | None, files: Files) -> Iterator[Bundle]:
    """Open a bundle; the needed files of one in a repository are assembled in a temporary folder.

    Raises:
        BadBundle, BadManifest: it is not a bundle, or unusable.
        ModelNotFound: the store has no match, or several.
        BadRepository: the repository cannot be read, or lacks chunks.
    """
    from hedgerow.models.bundle.folder import Bundle

    if store is None:
        yield Bundle.open(Path(reference))
        return
    entry = _find(reference, store)
    if entry.repository is None:
        yield Bundle.open(entry.folder, entry.digest)
        return
    with tempfile.TemporaryDirectory(prefix="hedgerow.") as folder:
        _assemble(entry, entry.repository, Path(folder), files)
        yield Bundle.open(Path(folder), entry.digest)


def _find(reference: str, store: Path) -> _StoredBundle:
    entries = sorted(_entries(store), key=lambda entry: (entry.name, version_order(entry.version), entry.digest))
    digest_prefix = reference.removeprefix("sha256:")
    found = [entry for entry in entries if f"{entry.name}/{entry.version}" == reference]
    found = found or [entry for entry in entries if entry.name == reference][-1:]
    if not found and re.fullmatch(r"[0-9a-f]{6,64}", digest_prefix):
        found = [entry for entry in entries if entry.digest.partition(":")[2].startswith(digest_prefix)]
    if len({entry.digest for entry in found}) == 1:
        return found[0]
    if found:
        raise ModelNotFound(
            f"{store} has more than one {reference}: {', '.join(map(str, found))}",
            remedy="Name one by its digest, with enough digits to tell it from the others.",
        )
    raise ModelNotFound(
        f"{store} has no {reference}",
        remedy=f"Name one that it has: {', '.join(map(str, entries))}."
        if entries
        else "It has no bundles: publish one there, or name another with --from.",
    )


def _entries(store: Path) -> Iterator[_StoredBundle]:
    from hedgerow.errors import HedgerowError
    from hedgerow.models.bundle.folder import Bundle

    if (store / "metadata" / "1.root.json").is_file():
        from hedgerow.trust.repository import Repository
        from hedgerow.trust.status import read_status

        for role in read_status(Repository.open(store), time.time()).roles:
            for one in role.published:
                folder = store / "targets" / one.name / one.version
                yield _StoredBundle(one.name, one.version, one.digest, folder, store)
        return
    # A node's state folder, its fleet folder, or the store itself.
    for folder in (store / "fleet/store/bundles", store / "store/bundles", store / "bundles"):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            try:
                bundle = Bundle.open(path, f"sha256:{path.name}")
            except HedgerowError:
                continue  # being fetched or removed
            yield _StoredBundle(bundle.manifest.name, bundle.manifest.version, bundle.digest, path)
        return
    raise ModelNotFound(
        f"{store} is neither a repository nor a node's state folder with models in it",
        remedy="Name a repository created by `hedgerow trust init`, or a node's `state_dir`. For a bundle's own folder, "
        "leave out --from.",
    )


def _assemble(entry: _StoredBundle, repository: Path, folder: Path, files: Files) -> None:
    from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, MANIFEST, digest_of, read_manifest
    from hedgerow.trust.chunks import blob_path
    from hedgerow.trust.errors import BadRepository

    path = entry.folder / f"{entry.digest.partition(':')[2]}.{MANIFEST}"
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_MANIFEST + 1)
        (folder / MANIFEST).write_bytes(content)
        for file in files(read_manifest(content, entry.digest)):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / file.path).open("wb") as out:
                for chunk in file.chunks:
                    path = blob_path(repository, chunk.digest)
                    data = path.read_bytes()
                    if digest_of(data) != chunk.digest:
                        raise OSError(errno.EIO, "its content does not match its digest")
                    out.write(data)
    except OSError as error:
        raise BadRepository(
            f"Cannot read {path}: {error.strerror}", remedy="Publish the version again, or restore it from a backup."
        ) from error


def version_order(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Return a sort key for semantic versions; pre-releases precede their release."""
    core, _, pre = version.partition("+")[0].partition("-")
    parts = tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in pre.split("."))
    return tuple(map(int, core.split("."))), not pre, parts
