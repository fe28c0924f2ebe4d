"""Disk cache of compiled models: one folder per model, within a quota.

Backends own the folders' content. Eviction removes whole folders, least recently used first, never the current one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 512 * 2**20
"""Quota for all folders together."""


def folder(state_dir: Path, digest: str) -> Path:
    """Return the folder for a model's compiled forms; it may not exist yet."""
    return state_dir.absolute() / "compiled" / digest.rpartition(":")[2][:32]


def mark_used(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Record that a folder has just been used, and evict others that exceed the quota."""
    if not folder.exists():
        return
    os.utime(folder)
    total = 0
    for other in sorted(folder.parent.iterdir(), key=_mtime, reverse=True):
        total += _size(other)
        if total > max_bytes and other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _mtime(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # evicted by another node that shares the cache
        return 0


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
