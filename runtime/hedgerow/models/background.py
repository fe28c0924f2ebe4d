"""Low priority for what is done beside serving: loading, compiling, trying.

Threads that a library starts meanwhile inherit it, and will serve later; so they are given back what this thread had. Only
who may raise priorities can do that (CAP_SYS_NICE, or `LimitNICE=+0` of systemd); for others nothing is lowered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

NICE: Final = 10
"""Steps by which priority is lowered: a core that both want gives a tenth to such a thread."""

_LOWEST: Final = 19


@contextmanager
def low_priority() -> Iterator[None]:
    """Let this thread, and those that are started by it within the block, have little of the cores while others want them."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    lowered = min(usual + NICE, _LOWEST)
    if lowered == usual or not may_raise():
        yield
        return
    there = _threads()
    os.setpriority(os.PRIO_PROCESS, 0, lowered)
    try:
        yield
    finally:
        for thread in {threading.get_native_id(), *(_threads() - there)}:
            with suppress(OSError):  # it has ended meanwhile
                if os.getpriority(os.PRIO_PROCESS, thread) == lowered:
                    os.setpriority(os.PRIO_PROCESS, thread, usual)


@cache
def may_raise() -> bool:
    """Whether this process may raise a thread's priority to what it was; found out by doing it."""
    raised = []

    def attempt() -> None:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual + 1)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            raised.append(True)

    thread = threading.Thread(target=attempt, name="priority")
    thread.start()
    thread.join()
    return bool(raised)


def _threads() -> set[int]:
    return {int(thread.name) for thread in Path("/proc/self/task").iterdir()}
