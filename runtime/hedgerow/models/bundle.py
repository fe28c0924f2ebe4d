"""A bundle on the disk: a folder with a manifest and the files it names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hedgerow.errors import ModelError
from hedgerow.models import source
from hedgerow.models.manifest import LARGEST_MANIFEST, MANIFEST, File, Manifest, digest_of, read_manifest

_READ_BYTES = 1 << 20


class BadBundle(ModelError):
    """A folder is no bundle, or its files are not what its manifest says."""

    code = "bad-bundle"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version of a model.

    Attributes:
        folder: where it is.
        manifest: what it is.
        digest: of the manifest's bytes as they are in the folder: what identifies it.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: Path, digest: str | None = None) -> Bundle:
        """The bundle in a folder; its files are not looked at.

        Args:
            digest: what its manifest must have, if it is known.
        Raises:
            BadBundle: there is no manifest, or it cannot be read.
            BadManifest: it cannot be used.
        """
        path = folder / MANIFEST
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_MANIFEST + 1)
        except OSError as error:
            there = f"{folder} has no {MANIFEST}" if folder.is_dir() else f"There is no folder {folder}"
            raise BadBundle(
                there if not path.exists() else f"{path} cannot be read: {error.strerror}",
                remedy="Give the folder that `hedgerow model build` made.",
            ) from error
        return cls(folder, read_manifest(content, digest), digest_of(content))

    def path(self, file: File) -> Path:
        """Where one of its files is."""
        return self.folder / file.path

    def verify(self, variant: str | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Check every file against its digest.

        Args:
            variant: check what this one needs, as on a node that has fetched no more; None: all, and that there is no
                file beside them.
            progress: told of bytes that were checked.
        Raises:
            BadBundle: a file is missing, changed or not listed; the message names it.
            BadManifest: there is no such variant.
        """
        manifest = self.manifest
        variants = manifest.variants if variant is None else (manifest.variant(variant),)
        files = manifest.files() if variant is None else manifest.files_for(variants[0])
        for file in {file.path: file for file in files}.values():
            _check(self.path(file), file, progress)
        for one in variants:
            # What lies beside a model's file may belong to it, whether the manifest lists it or not.
            found = source.digest(self.folder / one.files[0].path)
            if found != one.model_digest:
                raise BadBundle(
                    f"The files of {one.name} in {self.folder} are {found}, not {one.model_digest}",
                    remedy=f"Remove what does not belong beside {one.files[0].path}, or build or fetch the model again.",
                )
        if variant is None:
            self._nothing_else(files)

    def _nothing_else(self, files: Sequence[File]) -> None:
        known = {MANIFEST, *(file.path for file in files)}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name not in known and not path.is_dir():
                raise BadBundle(
                    f"{path} is not in the manifest", remedy="Remove it, or build the model anew with what it is for."
                )


def _check(path: Path, file: File, progress: Callable[[int], None] | None) -> None:
    found, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while size <= file.size and (piece := stream.read(_READ_BYTES)):
                found.update(piece)
                size += len(piece)
                if progress is not None:
                    progress(len(piece))
    except OSError as error:
        raise BadBundle(
            f"{path} is in the manifest and cannot be read: {error.strerror}",
            remedy="Copy or fetch the bundle again, or build the model again.",
        ) from error
    if size != file.size:
        what = f"more than {file.size:,}" if size > file.size else f"{size:,}"
        raise BadBundle(
            f"{path} has {what} bytes; the manifest says {file.size:,}",
            remedy="It was changed, or cut short on its way: copy or fetch the bundle again.",
        )
    if f"sha256:{found.hexdigest()}" != file.digest:
        raise BadBundle(
            f"{path} is sha256:{found.hexdigest()}; the manifest says {file.digest}",
            remedy="It was changed or damaged: copy or fetch the bundle again. Whoever changed it on purpose builds it anew.",
        )
