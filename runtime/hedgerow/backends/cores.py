"""Number of cores this process may use, by its affinity mask and container limits rather than by the machine's size."""

from __future__ import annotations

import os
from pathlib import Path

from hedgerow.backends.cgroups import cpu_quotas


def cores(root: Path = Path("/")) -> int:
    """Return the number of cores this process may use at once, at least 1.

    The smallest of the affinity mask and the CPU quotas of the process's control groups (version 1 or 2). Fractions are
    rounded down: with one thread too many, the kernel throttles all of them.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *cpu_quotas(root)])))
