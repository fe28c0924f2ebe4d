"""Limits of one input: which errors a target may raise, and how much time and memory it may take."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from .targets import Target

MOST_CPU_S: Final = 1.0
MOST_GROWTH_BYTES: Final = 64 << 20


class TooSlow(BaseException):  # no `except Exception` on the way may catch it
    """An input took more than `MOST_CPU_S` of processor time."""


class TooLarge(AssertionError):
    """The process grew by more than `MOST_GROWTH_BYTES` through one input."""


_late = False


def _on_alarm(number: int, frame: FrameType | None) -> None:
    global _late  # noqa: PLW0603 - a signal handler has no other way
    _late = True
    raise TooSlow(f"more than {MOST_CPU_S:g} s of processor time")


@contextmanager
def arm() -> Iterator[None]:
    """Make `attempt` possible; only in the main thread."""
    before = signal.signal(signal.SIGPROF, _on_alarm)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


def attempt(target: Target, data: bytes) -> None:
    """Run a target on an input. Within `arm`.

    Raises:
        TooSlow: it takes too long. Another load of the machine does not count.
        TooLarge: it takes too much memory.
        Exception: it raises an error that it does not document, or an assertion fails.
    """
    global _late  # noqa: PLW0603
    _late = False
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    try:
        target.run(data)
    except target.errors:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if _late:  # something on the way has caught it
        raise TooSlow(f"more than {MOST_CPU_S:g} s of processor time")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if growth > MOST_GROWTH_BYTES:
        raise TooLarge(f"an input of {len(data)} bytes took {growth >> 20} MiB")
