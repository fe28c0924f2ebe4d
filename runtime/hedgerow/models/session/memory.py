"""Memory used by this process, and memory it may still use within the machine, its control groups and its own limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hedgerow.backends.cgroups import memory_left

_LIMITS: Final = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
"""Limits of a process (`ulimit -v`, `-d`), and the fields of /proc/self/status they apply to."""


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes this process may still allocate; None: unknown.

    Args:
        root: where /proc and /sys are.
    """
    limits = [*_available(root), *memory_left(root), *_limits(root)]
    return max(0, min(limits)) if limits else None


def resident_bytes(pid: int | None = None) -> int:
    """Return a process's resident memory in bytes; 0: unknown.

    Args:
        pid: the process; None: this one.
    """
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available(root: Path) -> Iterator[int]:
    available = _field(root / "proc/meminfo", "MemAvailable")
    if available is not None:
        yield available


def _limits(root: Path) -> Iterator[int]:
    """Yield the bytes that each limit of this process leaves."""
    for limit, field in _LIMITS:
        allowed, _ = resource.getrlimit(limit)
        used = _field(root / "proc/self/status", field)
        if allowed != resource.RLIM_INFINITY and used is not None:
            yield allowed - used


def _field(path: Path, name: str) -> int | None:
    """Return the bytes of a row such as `VmData:  1234 kB`."""
    try:
        for line in path.read_text().splitlines():
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
