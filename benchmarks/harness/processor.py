"""Processor time of the processes that are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import psutil  # type: ignore[import-untyped]

_TICK_S: Final = 0.01
"""The kernel counts a process's time in these; so nobody takes less than half of one."""


class Processor:
    """User and system time of processes by role, with all that they have started by now; this one's as `load`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._found = {role: psutil.Process(pid) for role, pid in pids.items()}
        self._below = {role: each.children(recursive=True) for role, each in self._found.items()}
        self._found["load"] = psutil.Process()

    def seconds(self) -> dict[str, float]:
        """Until now."""
        taken = {role: _seconds(each) for role, each in self._found.items()}
        for role, children in self._below.items():
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):  # a child may end
                    taken[role] += _seconds(child)
        return taken

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """From then until now."""
        return {role: max(now - before[role], _TICK_S / 2) for role, now in self.seconds().items()}


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
