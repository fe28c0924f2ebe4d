"""Compiled models on disk, a folder for each model, within a quota.

A backend writes into the folder as it likes. Whole folders go, the longest unused first, never the one in use now.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 512 * 2**20
"""Quota of all folders together."""


def folder(state_dir: Path, digest: str) -> Path:
    """The folder for compiled forms of a model; it need not exist."""
    return state_dir.absolute() / "compiled" / digest.rpartition(":")[2][:32]


def used(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Note that a folder has just been used, and clear away what goes over the quota."""
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
    except OSError:  # another node that shares the folder has cleared it away
        return 0


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
