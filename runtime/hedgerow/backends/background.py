"""Low priority for what is done beside serving: loading, compiling, trying.

Two degrees, since one lock is shared with the threads that serve:
- `low_priority`: a small share of cores that others want. Who holds Python's interpreter lock must get on with it, or all who
  wait for the lock stand still too.
- `leftovers`, within it and around a call that lets go of that lock: only what nobody else wants of the cores. A woken thread
  that serves then runs at once; from one that is merely nice, Linux takes the core back at the end of its slice, some
  milliseconds later. Where nothing is left for long, it goes on with low priority, so it ends.

Threads that a library starts meanwhile inherit it, and will serve later; so they are given back what this thread had. Only
who may raise priorities can do that (CAP_SYS_NICE, or `LimitNICE=+0` of systemd); for others nothing is lowered.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

NICE: Final = 10
"""Steps by which priority is lowered: a core that both want gives a tenth to such a thread."""

PATIENCE_S: Final = 10.0
"""For so long `leftovers` makes do with what is left; of all that is done within one `low_priority`."""

_LOWEST: Final = 19
_NO_PARAM: Final = os.sched_param(0)


class _Here(threading.local):
    """Of this thread: until when it makes do with what is left, by the monotonic clock."""

    patience_until: float | None = None


_here: Final = _Here()


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
    _here.patience_until = time.monotonic() + PATIENCE_S
    try:
        yield
    finally:
        _here.patience_until = None
        for thread in {threading.get_native_id(), *(_threads() - there)}:
            with suppress(OSError):  # it has ended meanwhile
                if os.getpriority(os.PRIO_PROCESS, thread) == lowered:
                    os.setpriority(os.PRIO_PROCESS, thread, usual)


@contextmanager
def leftovers() -> Iterator[None]:
    """Within `low_priority`, let this thread, and those that are started meanwhile, have of the cores what is left.

    For calls that do not hold the interpreter lock. Elsewhere it does nothing.
    """
    until = _here.patience_until
    left_s = 0.0 if until is None else until - time.monotonic()
    if left_s <= 0:
        yield
        return
    there = _threads()
    mine = threading.get_native_id()
    enough = threading.Timer(left_s, lambda: _wake({mine, *(_threads() - there)}))
    enough.daemon = True
    enough.start()
    os.sched_setscheduler(mine, os.SCHED_IDLE, _NO_PARAM)
    try:
        yield
    finally:
        enough.cancel()
        _wake({mine, *(_threads() - there)})


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


def _wake(threads: set[int]) -> None:
    """Let threads have their share again."""
    for thread in threads:
        with suppress(OSError):  # it has ended meanwhile
            if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                os.sched_setscheduler(thread, os.SCHED_OTHER, _NO_PARAM)


def _threads() -> set[int]:
    return {int(thread.name) for thread in Path("/proc/self/task").iterdir()}
