"""Locates a model's file and computes its digest.

Rules:
- `package:NAME/path/inside` is found without importing NAME, whose code may need half a gigabyte of libraries that
  inference does not.
- The digest covers all of the model's files: an IR's .xml and .bin, an ONNX file and its external data.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.machinery
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from hedgerow.errors import ModelNotFound

_PACKAGE: Final = "package:"


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
    Raises: ModelNotFound: it does not exist; the remedy suggests similar names.
    """
    if path.startswith(_PACKAGE):
        file = _in_package(path)
    else:
        file = base_dir / Path(path).expanduser()
        if not file.is_file():
            raise ModelNotFound(
                f"Model file not found: {file}", remedy=_suggest(file, "Correct `path:`, or add the file.")
            )
    file = file.resolve()
    try:
        return ModelFile(file, digest(file))
    except OSError as error:
        raise ModelNotFound(
            f"Model file {file} cannot be read: {error.strerror}", remedy="Give the node's user read permission."
        ) from error


def digest(path: Path) -> str:
    """Return `sha256:…` of a model's files, cached until they change."""
    stats = tuple((file, file.stat()) for file in files_of(path))
    return _digest(tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats))


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for file, _, size in files:
        if len(files) > 1:
            total.update(f"{file.suffix} {size}\n".encode())  # so that moving bytes between files changes the digest
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def files_of(path: Path) -> tuple[Path, ...]:
    """Return all files of a model: the one that backends open, then those beside it that belong to it."""
    if path.suffix == ".xml":
        beside = [path.with_suffix(".bin")]
    else:
        beside = [path.with_name(f"{path.name}.data"), path.with_name(f"{path.name}_data")]
    return (path, *filter(Path.is_file, beside))


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
