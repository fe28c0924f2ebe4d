"""Locates a model's file and computes its digest.

Rules:
- `package:NAME/path/inside` is found without importing NAME, whose code may need half a gigabyte of libraries that
  inference does not.
- The digest covers all of the model's files: an IR's .xml and .bin, an ONNX file and its external data.
- A link keeps its name, since further files are found beside the link: in a hub's cache, `snapshots/…/model.onnx` points to
  `blobs/0a1b…`. If they lie beside its target only, the target is used.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.machinery
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from hedgerow.backends.graphs.onnx_file import read_onnx
from hedgerow.errors import ModelNotFound, ModelUnreadable

_PACKAGE: Final = "package:"
_SUFFIXES: Final = frozenset([".onnx", ".xml", ".tflite", ".gguf"])
_EMPTY: Final = ("an empty file", "Copy the file again.")
_NO_MODELS: Final = {
    b"version https://git-lfs": ("a Git LFS pointer", "Fetch the file that it stands for: `git lfs pull`."),
    b"<!doctype html": ("a web page", "Download the file itself; the site may want you to sign in."),
    b"<html": ("a web page", "Download the file itself; the site may want you to sign in."),
    b"pk\x03\x04": ("a ZIP archive, perhaps PyTorch's", "Unpack it, or export the model to ONNX."),
}
"""What downloads leave in a model's place, by how it begins."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's file.

    Attributes:
        path: absolute path.
        digest: `sha256:…` of its content.
    """

    path: Path
    digest: str


def resolve(path: str, base_dir: Path) -> ModelFile:
    """Find a model's file.

    Args:
        path: as in the configuration: a path, or `package:NAME/path/inside`.
        base_dir: folder that relative paths are relative to.
    Raises:
        ModelNotFound: it does not exist, and the remedy suggests similar names; or a file with its weights does not.
        ModelUnreadable: its weights are outside its folder, or it is what downloads leave in a model's place.
    """
    if path.startswith(_PACKAGE):
        file = _in_package(path)
    else:
        file = base_dir / Path(path).expanduser()
        if not file.is_file():
            raise ModelNotFound(
                f"Model file not found: {file}",
                remedy=_suggest(file, "Correct `path:`, or add the file."),
                outside=f"Model file not found: {path}",
            )
    try:
        file = _among_its_files(file)
        _require_model(file)
        _require_weights(file)
        return ModelFile(file, digest(file))
    except OSError as error:
        raise ModelNotFound(
            f"Model file {file} cannot be read: {error.strerror}", remedy="Give the node's user read permission."
        ) from error


def digest(path: Path) -> str:
    """Return `sha256:…` of a model's files, cached until they change."""
    return _digest(tuple((file, _stamp(file)) for file in files_of(path)))


def files_of(path: Path) -> tuple[Path, ...]:
    """Return all files of a model: the one that backends open, then those beside it that belong to it.

    Weights outside its folder are not among them: backends refuse to read them, as `resolve` does.
    """
    named = (f"{path.name}.data", f"{path.name}_data")  # by custom, even if the model names others
    names = {*_weights(path), *(() if path.suffix.lower() == ".xml" else named)}
    return (path, *(file for name in sorted(names) if not _outside(name) and (file := path.parent / name).is_file()))


_Stamp = tuple[int, int, int, int]


def _stamp(file: Path) -> _Stamp:
    """Return what changes with a file's content, even if its size and time of modification stay the same."""
    status = file.stat()
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[Path, _Stamp], ...]) -> str:
    total = hashlib.sha256()
    for file, (*_, size) in files:
        if len(files) > 1:
            total.update(f"{file.suffix} {size}\n".encode())  # so that moving bytes between files changes the digest
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def _weights(path: Path) -> frozenset[str]:
    """Return the names of further files that a backend reads with a model, relative to its folder."""
    if path.suffix.lower() == ".xml":
        return frozenset([path.with_suffix(".bin").name])
    return _external_data(path, _stamp(path)) if path.suffix.lower() == ".onnx" else frozenset()


@lru_cache(maxsize=256)
def _external_data(path: Path, stamp: _Stamp) -> frozenset[str]:  # noqa: ARG001 - a key of the cache
    try:
        return frozenset(read_onnx(path).external)
    except ValueError:  # damaged: the backend says so
        return frozenset()


def _outside(name: str) -> bool:
    return Path(name).is_absolute() or os.path.normpath(name).partition("/")[0] == ".."


def _among_its_files(file: Path) -> Path:
    """Return an absolute path: a link's own if its files are there, else its target's."""
    link, target = file.parent.resolve() / file.name, file.resolve()
    if link.suffix.lower() not in _SUFFIXES:
        return target
    # A target without a suffix is the hub's own name for a file, beside which there is nothing.
    return target if target.suffix and _missing(link) and not _missing(target) else link


def _missing(path: Path) -> list[str]:
    return sorted(name for name in _weights(path) if not (path.parent / name).is_file())


def _require_model(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    found = next((kind for start, kind in _NO_MODELS.items() if head.startswith(start)), None if head else _EMPTY)
    if found is not None:
        raise ModelUnreadable(f"{path} is {found[0]}, not a model", remedy=found[1])


def _require_weights(path: Path) -> None:
    if path.suffix.lower() != ".onnx":  # an IR may have no weights
        return
    for name in sorted(_weights(path)):
        if _outside(name):
            raise ModelUnreadable(
                f"{path.name} has weights in {name}, outside its folder, where they could change unnoticed",
                remedy="Put them beside the model: "
                f'`onnx.save(model, path, save_as_external_data=True, location="{path.name}.data")`.',
            )
    if missing := _missing(path):
        raise ModelNotFound(
            f"{path} has weights in {missing[0]}, which is missing", remedy=f"Copy it to {path.parent / missing[0]}."
        )


def _in_package(path: str) -> Path:
    package, _, inside = path.removeprefix(_PACKAGE).partition("/")
    if not package or not inside or ".." in Path(inside).parts:
        raise ModelNotFound(f"{path!r} does not name a file in a package", remedy="Use `package:NAME/path/inside`.")
    # PathFinder finds the package on sys.path without running its code, not even a parent's __init__.
    spec = importlib.machinery.PathFinder.find_spec(package.replace("-", "_"), sys.path)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    if not folders:
        raise ModelNotFound(
            f"The Python package {package}, which {path} refers to, is not installed",
            remedy=f"Run `pip install {package.replace('_', '-')}`, or copy the model file and give its path.",
        )
    for folder in folders:
        if (folder / inside).is_file():
            return folder / inside
    file = folders[0] / inside
    raise ModelNotFound(
        f"The installed package {package} has no file {inside}",
        remedy=_suggest(file, f"Correct `path:`, or install another version of {package}."),
        outside=f"The installed package {package} has no file {inside}",
    )


def _suggest(file: Path, remedy: str) -> str:
    """Extend a remedy with files similar to the missing one, or else with models in its folder."""
    folder = file.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist. {remedy}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    similar = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    if not similar:
        similar = [name for name in names if Path(name).suffix in (".onnx", ".xml", ".tflite")][:5]
    return f"{folder} has {', '.join(similar)}. {remedy}" if similar else remedy
