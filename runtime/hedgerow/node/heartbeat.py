"""The node's heartbeat: detects a hung event loop, and a clock that jumps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from hedgerow.node.link.announcer import Announcer
from hedgerow.telemetry import logs, systemd
from hedgerow.telemetry.clock import Clock

log = structlog.get_logger(__name__)

BEAT_EVERY_S: Final = 1.0
_DEAD_AFTER_S: Final = 10 * BEAT_EVERY_S


class Heartbeat:
    """Beats once a second while the event loop runs.

    Args:
        announcer: publishes clock jumps.
    Attributes:
        clock: tells whether the machine's clock can be trusted.
        starting: the node is being started, whose parts have limits of their own.
        hung_stages: returns the stages that hang in this process; only a restart ends them, so systemd's watchdog starves.
    """

    def __init__(self, announcer: Announcer) -> None:
        self.clock = Clock()
        self._announcer = announcer
        self.starting = True
        self.hung_stages: Callable[[], list[str]] = list
        self._last = time.monotonic()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._last = time.monotonic()
            if self.starting:
                systemd.starting()
            if not self.hung_stages():
                systemd.alive()
            jump_s = self.clock.check(time.time(), self._last)
            if jump_s is not None:
                log.warning("clock-jumped", by_s=round(jump_s, 3))
                self._announcer.event("clock-jumped", {"by_s": round(jump_s, 3)})  # each, as each is another jump
            self._announcer.report_repeats()
            logs.report_repeats()
            await asyncio.sleep(BEAT_EVERY_S)

    def why_dead(self) -> list[str]:
        """(any thread) Return why the node counts as dead; empty if it is alive."""
        silent_s = time.monotonic() - self._last
        blocked = [f"the event loop has been blocked for {silent_s:.0f} s"] if silent_s > _DEAD_AFTER_S else []
        return blocked + self.hung_stages()
