"""What the control groups of this process allow it, versions 1 and 2: a container's limits, or a service's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quotas(root: Path = Path("/")) -> Iterator[float]:
    """Each CPU quota that applies, in cores.

    Args:
        root: where /proc and /sys are.
    """
    for version, folder in _groups("cpu", root):
        try:
            quota = _quota_v1(folder) if version == 1 else _quota_v2(folder)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # the folder belongs to the host and is not visible in here
        if quota is not None:
            yield quota


def memory_left(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that each memory limit leaves; what the group could drop of its caches counts as free.

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
    """Version and folder of each group that the process is in, and of all above it: the tightest limit counts."""
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


def _left(folder: Path, most: str, taken: str, cached: str) -> int | None:
    """What a group leaves. Args: most, taken: its files; cached: a row of `memory.stat`."""
    limit = (folder / most).read_text().strip()
    if limit == "max":
        return None
    stats = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
    return int(limit) - int((folder / taken).read_text()) + int(stats.get(cached, 0))
