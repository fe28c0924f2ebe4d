"""Atomic, durable file writes: after a power cut a file has its old or its new content, never a mixture."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically: write a temporary file, sync, rename, sync the folder. For one writing process.

    Raises: OSError: the file cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f"{path.name}.new")
    write(temporary, content)
    temporary.replace(path)
    sync(path.parent)


def write(path: Path, content: bytes) -> None:
    """Write a file and sync it to disk.

    Raises: OSError: the file cannot be written.
    """
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a power cut.

    Raises: OSError: the folder cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
