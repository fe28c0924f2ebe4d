"""CPU time of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import psutil  # type: ignore[import-untyped]

_TICK_S: Final = 0.01
"""Resolution of the kernel's accounting; half a tick is the least that is reported."""


class CpuTimes:
    """User and system time of processes and their present children, by role; this process's as `load`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {role: psutil.Process(pid) for role, pid in pids.items()}
        self._children = {role: each.children(recursive=True) for role, each in self._processes.items()}
        self._processes["load"] = psutil.Process()

    def seconds(self) -> dict[str, float]:
        """Return the CPU time so far."""
        used = {role: _seconds(each) for role, each in self._processes.items()}
        for role, children in self._children.items():
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):  # a child may end
                    used[role] += _seconds(child)
        return used

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the CPU time since an earlier value of `seconds`."""
        return {role: max(now - before[role], _TICK_S / 2) for role, now in self.seconds().items()}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
