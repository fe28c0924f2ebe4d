"""How many cores this process owns: what its affinity mask and its container allow, not what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use at once, at least 1.

    The smaller of the affinity mask and the CPU quota of every control group the process is in (version 1 or 2).
    A fraction is rounded down: one thread too many is throttled along with all the others.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas that apply, in cores."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folders, read = _upwards(mount, path), _quota_v2
        elif "cpu" in controllers.split(","):
            folders, read = _upwards(mount / "cpu", path), _quota_v1
        else:
            continue
        for folder in folders:
            try:
                quota = read(folder)
            except (OSError, ValueError, ZeroDivisionError):
                continue  # the folder belongs to the host and is not visible in here
            if quota is not None:
                yield quota


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A control group's folder and all above it: the tightest quota on the way counts."""
    folder = mount / path.lstrip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _quota_v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
