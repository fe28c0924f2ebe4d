"""Memory this process may still take: what the machine has available and its control groups allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be had; None: the system does not tell.

    Args:
        root: where /proc and /sys are.
    """
    there = [*_available(root), *_groups(root)]
    return max(0, min(there)) if there else None


def _available(root: Path) -> Iterator[int]:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                yield int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return


def _groups(root: Path) -> Iterator[int]:
    """What each control group above the process leaves (version 2); what it could drop of its caches counts as free."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers:
            continue
        folder = mount / path.lstrip("/")
        while True:
            try:
                limit = (folder / "memory.max").read_text().strip()
                if limit != "max":
                    stats = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / "memory.current").read_text())
                    yield int(limit) - used + int(stats.get("inactive_file", 0))
            except (OSError, ValueError):
                pass  # the folder belongs to the host, or the group has no memory controller
            if folder == mount:
                break
            folder = folder.parent
