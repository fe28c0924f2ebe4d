"""A bundle on the disk: a folder with a manifest and the files it names.

Only plain files count, in plain folders. A link could lead anywhere, and whoever opens a pipe waits for ever.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hedgerow.errors import ModelError
from hedgerow.models.bundle import model_file
from hedgerow.models.bundle.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    File,
    Manifest,
    Variant,
    digest_of,
    read_manifest,
)


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
            with _open(folder, MANIFEST) as file:
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

    def fetched(self) -> list[Variant]:
        """Variants whose files are there, as far as one can tell without looking into them; a node fetches but one."""
        variants = self.manifest.variants
        return [one for one in variants if all(self.path(file).is_file() for file in self.manifest.files_for(one))]

    def verify(self, variant: str | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Check every file and every chunk of it against its digest.

        Args:
            variant: check what this one needs, as on a node that has fetched no more; None: all, and that there is no
                file beside them.
            progress: told of bytes that were checked.
        Raises:
            BadBundle: a file is missing, changed or not listed; the message names it.
            BadManifest: there is no such variant.
        """
        for problem in self.problems(variant, progress):
            raise problem

    def problems(
        self, variant: str | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[BadBundle]:
        """All that `verify` would find, one after the other. Raises: BadManifest: there is no such variant."""
        manifest = self.manifest
        variants = manifest.variants if variant is None else (manifest.variant(variant),)
        files = manifest.files() if variant is None else manifest.files_for(variants[0])
        harmed = set()
        for file in {file.path: file for file in files}.values():
            try:
                _check(self.folder, file, progress)
            except BadBundle as problem:
                harmed.add(file.path)
                yield problem
        for one in variants:
            if harmed.isdisjoint(file.path for file in one.files):
                yield from self._mismatch(one)
        if variant is None:
            yield from self._others(files)

    def _mismatch(self, variant: Variant) -> Iterator[BadBundle]:
        """What lies beside a model's file may belong to it, whether the manifest lists it or not."""
        found = model_file.digest(self.folder / variant.files[0].path)
        if found != variant.model_digest:
            yield BadBundle(
                f"The files of {variant.name} in {self.folder} are {found}, not {variant.model_digest}",
                remedy=f"Remove what does not belong beside {variant.files[0].path}, or build or fetch the model again.",
            )

    def _others(self, files: Sequence[File]) -> Iterator[BadBundle]:
        known = {MANIFEST, *(file.path for file in files)}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name not in known and (path.is_symlink() or not path.is_dir()):
                yield BadBundle(
                    f"{path} is not in the manifest", remedy="Remove it, or build the model anew with what it is for."
                )


def _check(folder: Path, file: File, progress: Callable[[int], None] | None) -> None:
    path, found, size, wrong = folder / file.path, hashlib.sha256(), 0, None
    try:
        with _open(folder, file.path) as stream:
            for number, chunk in enumerate(file.chunks):
                piece = stream.read(chunk.size)
                found.update(piece)
                size += len(piece)
                if digest_of(piece) != chunk.digest and wrong is None:
                    wrong = number
                if progress is not None:
                    progress(len(piece))
            more = bool(stream.read(1))
    except OSError as error:
        raise BadBundle(
            f"{path} is in the manifest and cannot be read: {error.strerror}",
            remedy="Copy or fetch the bundle again, or build the model again.",
        ) from error
    if more or size != file.size:
        raise BadBundle(
            f"{path} has {f'more than {file.size:,}' if more else f'{size:,}'} bytes; the manifest says {file.size:,}",
            remedy="It was changed, or cut short on its way: copy or fetch the bundle again.",
        )
    if f"sha256:{found.hexdigest()}" != file.digest:
        raise BadBundle(
            f"{path} is sha256:{found.hexdigest()}; the manifest says {file.digest}",
            remedy="It was changed or damaged: copy or fetch the bundle again. Whoever changed it on purpose builds it anew.",
        )
    if wrong is not None:
        raise BadBundle(
            f"{path} is what it should be, but its chunk {wrong + 1} of {len(file.chunks):,} is not what the manifest says",
            remedy="The manifest is wrong, and no node could fetch the file by it: build the model again.",
        )


def _open(folder: Path, inside: str) -> BinaryIO:
    """Open a plain file of a folder. Raises: OSError: it is not there, or no such file."""
    path = folder / inside
    for part in (*Path(inside).parents, Path(inside)):
        if part != Path() and (folder / part).is_symlink():
            raise OSError(errno.ELOOP, f"{part} is a link")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no plain file")
    return os.fdopen(handle, "rb")
