"""Writes rendered texts to files. The first line of each holds a digest of the rest, so that edits by hand are noticed
and never overwritten silently.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from hedgerow.errors import ConfigError

_HEAD: Final = re.compile(r"\A(?:#|<!--) Made by `hedgerow topology render` .* digest ([0-9a-f]{16})[^\n]*\n")


class EditedByHand(ConfigError):
    """Files to be overwritten have changed since they were rendered."""

    code = "edited-by-hand"

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(
            "Nothing was written, because these files were edited by hand or not rendered by Hedgerow:\n"
            + "\n".join(f"  {path}" for path in paths),
            remedy="Move the changes into the topology, then render with --force; or render into another folder.",
        )
        self.paths = tuple(paths)


@dataclass(frozen=True)
class Written:
    """Outcome of writing.

    Attributes:
        created, changed, unchanged: the topology's files.
        obsolete: files rendered earlier that are no longer part of the topology; they are not deleted.
    """

    created: tuple[Path, ...]
    changed: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    obsolete: tuple[Path, ...]


def headed(path: PurePosixPath, text: str, source: str) -> str:
    """Return a text with its header line.

    Args:
        source: name of the topology file.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    source = re.sub(r"[^\w. +@-]|--+", "_", source)  # a file's name may hold anything, even a line break
    line = f"Made by `hedgerow topology render` from {source}; digest {digest}. Change that file, not this one."
    return f"<!-- {line} -->\n{text}" if path.suffix == ".md" else f"# {line}\n{text}"


def is_unedited(text: str) -> bool:
    """Whether a file's text is unchanged since `headed` returned it."""
    head = _HEAD.match(text)
    return head is not None and hashlib.sha256(text[head.end() :].encode()).hexdigest()[:16] == head[1]


def write(texts: Mapping[PurePosixPath, str], source: str, folder: Path, *, force: bool = False) -> Written:
    """Write texts to a folder: all of them, or none if any file was edited by hand.

    Raises:
        EditedByHand: without `force`.
        ConfigError: a file cannot be read or written.
    """
    wanted = {folder / path: headed(path, text, source) for path, text in sorted(texts.items())}
    try:
        there = {path: path.read_text("utf-8", errors="replace") for path in wanted if path.exists()}
        edited = [path for path, text in there.items() if text != wanted[path] and not is_unedited(text)]
        if edited and not force:
            raise EditedByHand(edited)
        for path, text in wanted.items():
            if there.get(path) != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
        left = [path for path in _made_earlier(folder) if path not in wanted]
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            remedy="Choose a folder that you may write to, with --out.",
        ) from error
    return Written(
        created=tuple(path for path in wanted if path not in there),
        changed=tuple(path for path, text in there.items() if text != wanted[path]),
        unchanged=tuple(path for path, text in there.items() if text == wanted[path]),
        obsolete=tuple(sorted(left)),
    )


def copy_models(models: Mapping[str, Mapping[Path, Path]], folder: Path) -> None:
    """Copy model files next to the nodes' configurations.

    Raises: ConfigError: one cannot be read or written.
    """
    for site, files in models.items():
        for path, source in files.items():
            target = folder / site / "nodes" / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise ConfigError(
                    f"{source} cannot be copied to {target}: {error.strerror}",
                    remedy="Choose a folder that you may write to, with --out.",
                ) from error


def _made_earlier(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*/**/*"):
        if path.is_file() and path.stat().st_size < 1 << 20:  # larger files are models or state of brokers
            with path.open("rb") as file:
                first = file.readline(400).decode("utf-8", "replace")
            if _HEAD.match(first):
                found.append(path)
    return found
