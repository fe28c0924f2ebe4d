"""A bundle on disk: a folder with a manifest and the files it lists.

Only regular files in regular folders are read: a link could point anywhere, and opening a pipe blocks for ever.
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
    """A folder is not a bundle, or its files do not match its manifest."""

    code = "bad-bundle"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in a folder.

    Attributes:
        folder: the folder.
        manifest: its manifest.
        digest: digest of the manifest's bytes in the folder, which identifies the bundle.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: Path, digest: str | None = None) -> Bundle:
        """Open the bundle in a folder, reading only its manifest.

        Args:
            digest: expected digest of the manifest, if known.
        Raises:
            BadBundle: the manifest is missing, or cannot be read.
            BadManifest: the manifest is invalid, or has another digest.
        """
        path = folder / MANIFEST
        try:
            with _open(folder, MANIFEST) as file:
                content = file.read(LARGEST_MANIFEST + 1)
        except OSError as error:
            missing = f"{folder} has no {MANIFEST}" if folder.is_dir() else f"The folder {folder} does not exist"
            raise BadBundle(
                missing if not path.exists() else f"{path} cannot be read: {error.strerror}",
                remedy="Use a folder created by `hedgerow model build`.",
            ) from error
        return cls(folder, read_manifest(content, digest), digest_of(content))

    def path(self, file: File) -> Path:
        """Return the path of a file."""
        return self.folder / file.path

    def fetched(self) -> list[Variant]:
        """Return variants whose files exist, without checking their content; a node fetches only one."""
        variants = self.manifest.variants
        return [one for one in variants if all(self.path(file).is_file() for file in self.manifest.files_for(one))]

    def verify(self, variant: str | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Check every file and chunk against its digest.

        Args:
            variant: check only this variant's files, as on a node that fetched only these; None: check all files, and
                that there are no others.
            progress: called with the number of bytes just checked.
        Raises:
            BadBundle: a file is missing, changed or not listed; the message names it.
            BadManifest: the bundle has no such variant.
        """
        for problem in self.problems(variant, progress):
            raise problem

    def problems(
        self, variant: str | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[BadBundle]:
        """Yield every problem that `verify` would raise. Raises: BadManifest: the bundle has no such variant."""
        manifest = self.manifest
        variants = manifest.variants if variant is None else (manifest.variant(variant),)
        files = manifest.files() if variant is None else manifest.files_for(variants[0])
        damaged = set()
        for file in {file.path: file for file in files}.values():
            try:
                _check(self.folder, file, progress)
            except BadBundle as problem:
                damaged.add(file.path)
                yield problem
        for one in variants:
            if damaged.isdisjoint(file.path for file in one.files):
                yield from self._mismatch(one)
        if variant is None:
            yield from self._unlisted(files)

    def _mismatch(self, variant: Variant) -> Iterator[BadBundle]:
        """Check the model's digest, which covers files beside the model's file even if the manifest does not list them."""
        found = model_file.digest(self.folder / variant.files[0].path)
        if found != variant.model_digest:
            yield BadBundle(
                f"The files of {variant.name} in {self.folder} are {found}, not {variant.model_digest}",
                remedy=f"Remove files that do not belong beside {variant.files[0].path}, or build or fetch the model again.",
            )

    def _unlisted(self, files: Sequence[File]) -> Iterator[BadBundle]:
        known = {MANIFEST, *(file.path for file in files)}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name not in known and (path.is_symlink() or not path.is_dir()):
                yield BadBundle(
                    f"{path} is not in the manifest",
                    remedy="Remove it; or, if it belongs to the model, build the bundle again.",
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
            f"{path} is in the manifest, but cannot be read: {error.strerror}",
            remedy="Copy or fetch the bundle again, or build it again.",
        ) from error
    if more or size != file.size:
        raise BadBundle(
            f"{path} has {f'more than {file.size:,}' if more else f'{size:,}'} bytes; the manifest says {file.size:,}",
            remedy="It was changed or truncated: copy or fetch the bundle again.",
        )
    if f"sha256:{found.hexdigest()}" != file.digest:
        raise BadBundle(
            f"{path} is sha256:{found.hexdigest()}; the manifest says {file.digest}",
            remedy="It was changed or damaged: copy or fetch the bundle again; after an intended change, build it again.",
        )
    if wrong is not None:
        raise BadBundle(
            f"{path} is intact, but its chunk {wrong + 1} of {len(file.chunks):,} does not match the manifest",
            remedy="The manifest is wrong, and no node could fetch the file with it: build the bundle again.",
        )


def _open(folder: Path, inside: str) -> BinaryIO:
    """Open a regular file in a folder. Raises: OSError: it does not exist, or is not a regular file."""
    path = folder / inside
    for part in (*Path(inside).parents, Path(inside)):
        if part != Path() and (folder / part).is_symlink():
            raise OSError(errno.ELOOP, f"{part} is a symbolic link")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(handle, "rb")
