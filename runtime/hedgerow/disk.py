"""Files that survive a power cut: a reader sees the old one or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file that only one process writes: write aside, sync, rename, sync the folder.

    Raises: OSError: it cannot be written; the old file is as it was.
    """
    aside = path.with_name(f"{path.name}.new")
    write(aside, content)
    aside.replace(path)
    sync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file and have it on the disk. Raises: OSError: that cannot be done."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    """Let a rename in a folder survive a power cut. Raises: OSError: that cannot be done."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
