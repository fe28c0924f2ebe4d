"""Processor time of the processes that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psutil  # type: ignore[import-untyped]

_TICK_S: Final = 0.01
"""The kernel counts a process's time in these; so nobody takes less than half of one."""


class Processor:
    """User and system time of processes by role, with all that they have started by now; this one's as `load`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        found = {role: psutil.Process(pid) for role, pid in pids.items()}
        self._processes = {role: [each, *each.children(recursive=True)] for role, each in found.items()}
        self._processes["load"] = [psutil.Process()]

    def seconds(self) -> dict[str, float]:
        """Until now."""
        times = {role: [each.cpu_times() for each in processes] for role, processes in self._processes.items()}
        return {role: sum(each.user + each.system for each in of) for role, of in times.items()}

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """From then until now."""
        return {role: max(now - before[role], _TICK_S / 2) for role, now in self.seconds().items()}
