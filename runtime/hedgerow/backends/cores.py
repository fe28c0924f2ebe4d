"""How many cores this process owns: what its affinity mask and its container allow, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from hedgerow.backends.cgroups import cpu_quotas


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use at once, at least 1.

    The smaller of the affinity mask and the CPU quota of every control group the process is in (version 1 or 2).
    A fraction is rounded down: one thread too many is throttled along with all the others.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *cpu_quotas(root)])))
