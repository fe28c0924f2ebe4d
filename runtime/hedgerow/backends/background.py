"""Low thread priority for background work: loading, compiling and testing models while others serve.

Two levels, because background and serving threads share Python's interpreter lock:
- `low_priority` lowers the thread's nice value: it keeps a small share of contended cores. A thread that holds the
  interpreter lock must keep running, or every thread that waits for the lock stalls too.
- `idle_priority`, nested in it around a call that releases the lock, uses only idle cores (SCHED_IDLE). A serving thread
  that wakes up then preempts it at once; a merely nice thread keeps the core until its time slice ends, some
  milliseconds later. If cores stay busy for `MAX_IDLE_PRIORITY_S`, the call falls back to low priority, so it always finishes.

Threads that a library starts in the block inherit the priority but serve later, so their priority is restored as well.
Raising a priority needs CAP_SYS_NICE (`LimitNICE=+0` in systemd); without it, nothing is lowered.
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

from hedgerow import tasks

NICE: Final = 10
"""Nice steps by which priority is lowered: a background thread gets about a tenth of a contended core."""

MAX_IDLE_PRIORITY_S: Final = 10.0
"""Longest time at idle priority, for all `idle_priority` blocks within one `low_priority` together."""

_LOWEST: Final = 19
_NO_PARAM: Final = os.sched_param(0)


class _IdleDeadline(threading.local):
    """Until when this thread may run at idle priority, on the monotonic clock; None: not in a `low_priority` block."""

    at: float | None = None


_idle_deadline: Final = _IdleDeadline()


@contextmanager
def low_priority() -> Iterator[None]:
    """Run this thread, and threads started within the block, at low priority."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    lowered = min(usual + NICE, _LOWEST)
    if lowered == usual or not can_raise_priority():
        yield
        return
    threads_before = _threads()
    os.setpriority(os.PRIO_PROCESS, 0, lowered)
    _idle_deadline.at = time.monotonic() + MAX_IDLE_PRIORITY_S
    try:
        yield
    finally:
        _idle_deadline.at = None
        for thread in {threading.get_native_id(), *(_threads() - threads_before)}:
            with suppress(OSError):  # it has ended
                if os.getpriority(os.PRIO_PROCESS, thread) == lowered:
                    os.setpriority(os.PRIO_PROCESS, thread, usual)


@contextmanager
def idle_priority() -> Iterator[None]:
    """Within `low_priority`, run this thread and threads started within the block on idle cores only.

    For calls that release the interpreter lock. Outside `low_priority` it does nothing.
    """
    deadline = _idle_deadline.at
    left_s = 0.0 if deadline is None else deadline - time.monotonic()
    if left_s <= 0:
        yield
        return
    threads_before = _threads()
    mine = threading.get_native_id()
    timer = threading.Timer(left_s, lambda: _leave_idle({mine, *(_threads() - threads_before)}))
    timer.daemon = True
    timer.start()
    os.sched_setscheduler(mine, os.SCHED_IDLE, _NO_PARAM)
    try:
        yield
    finally:
        timer.cancel()
        _leave_idle({mine, *(_threads() - threads_before)})


@cache
def can_raise_priority() -> bool:
    """Return whether this process may restore a thread's priority, by trying it once."""
    raised = []

    def attempt() -> None:
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual + 1)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            raised.append(True)

    tasks.start_thread(attempt, "priority").join()
    return bool(raised)


def _leave_idle(threads: set[int]) -> None:
    for thread in threads:
        with suppress(OSError):  # it has ended
            if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                os.sched_setscheduler(thread, os.SCHED_OTHER, _NO_PARAM)


def _threads() -> set[int]:
    return {int(thread.name) for thread in Path("/proc/self/task").iterdir()}
