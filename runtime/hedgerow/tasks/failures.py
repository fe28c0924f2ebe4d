"""Failures of tasks and threads: logged, counted, and followed by a pause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_PAUSE_S: Final = (0.1, 60.0)
"""Pause before what failed starts again: at first, and at most. It doubles with each failure."""
_STEADY_S: Final = 60.0
"""What ran this long before it failed starts again after the shortest pause."""

_failures: Counter[str] = Counter()


def expect(name: str) -> None:
    """Show a count of 0 in the metrics, so that the first failure is an increase."""
    _failures[name] += 0


def report(name: str, error: BaseException) -> None:
    """Log and count a failure."""
    _failures[name] += 1
    log.error("task-failed", task=name, exc_info=error)


def gauges() -> Iterator[tuple[str, str, dict[str, str], float]]:
    """Yield metrics: name, help, labels, value."""
    for name, count in dict(_failures).items():
        yield "hedgerow_task_failures", "Times that a part of the process failed unexpectedly.", {"task": name}, count


class RestartPause:
    """The pauses of one task that fails again and again."""

    def __init__(self) -> None:
        self._pause_s = _PAUSE_S[0]
        self._began = time.monotonic()

    def began(self) -> None:
        """Note that it starts."""
        self._began = time.monotonic()

    def next_s(self) -> float:
        """Return how long to wait after a failure."""
        if time.monotonic() - self._began > _STEADY_S:
            self._pause_s = _PAUSE_S[0]
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _PAUSE_S[1])
        return pause_s
