"""CPU and memory limits of this process's control groups (version 1 and 2), as containers and services set them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield each CPU quota that applies, in cores.

    Args:
        root: where /proc and /sys are.
    """
    for version, folder in _groups("cpu", root):
        try:
            quota = _quota_v1(folder) if version == 1 else _quota_v2(folder)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # the folder belongs to the host and is not visible in the container
        if quota is not None:
            yield quota


def memory_left(root: Path = Path("/")) -> Iterator[int]:
    """Yield the bytes that each memory limit leaves free; reclaimable page cache counts as free.

    Args:
        root: where /proc and /sys are.
    """
    for version, folder in _groups("memory", root):
        try:
            left = (
                _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                if version == 1
                else _left(folder, "memory.max", "memory.current", "inactive_file")
            )
        except (OSError, ValueError):
            continue  # the folder belongs to the host, or the group has no memory controller
        if left is not None:
            yield left


def _groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of each group of the process and of its ancestors: the tightest limit applies."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, mount = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, mount = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        yield version, folder
        while folder != mount:
            folder = folder.parent
            yield version, folder


def _quota_v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())


def _left(folder: Path, limit_file: str, usage_file: str, cache_row: str) -> int | None:
    """Return the bytes a group leaves free; None: no limit. Args: cache_row: row of `memory.stat`."""
    limit = (folder / limit_file).read_text().strip()
    if limit == "max":
        return None
    stats = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
    return int(limit) - int((folder / usage_file).read_text()) + int(stats.get(cache_row, 0))
