"""Memory this process takes, and may still take: what the machine has available, its groups and its own limits allow."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hedgerow.backends.cgroups import memory_left

_LIMITS: Final = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
"""Limits on a process (`ulimit -v`, `-d`), and what of /proc/self/status they are on."""


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be had; None: the system does not tell.

    Args:
        root: where /proc and /sys are.
    """
    there = [*_available(root), *memory_left(root), *_limits(root)]
    return max(0, min(there)) if there else None


def resident_bytes() -> int:
    """Memory this process has in RAM; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available(root: Path) -> Iterator[int]:
    available = _field(root / "proc/meminfo", "MemAvailable")
    if available is not None:
        yield available


def _limits(root: Path) -> Iterator[int]:
    """What each limit on this process leaves."""
    for limit, field in _LIMITS:
        most, _ = resource.getrlimit(limit)
        taken = _field(root / "proc/self/status", field)
        if most != resource.RLIM_INFINITY and taken is not None:
            yield most - taken


def _field(path: Path, name: str) -> int | None:
    """Bytes of a row such as `VmData:  1234 kB`."""
    try:
        for line in path.read_text().splitlines():
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
