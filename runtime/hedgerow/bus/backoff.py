"""Exponential backoff with jitter between connection attempts.

Jitter keeps a thousand nodes from reconnecting at once. A node has several links to one broker: when one of them is up
again, those that could not reach the broker retry at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

_STABLE_S: Final = 5.0
"""A link that lasted longer than this resets the pause to its minimum."""
_PROVEN_S: Final = 0.3
"""A link that lasts this long shows that the broker is back; one that is accepted and dropped at once does not."""
_waiting: Final[dict[tuple[asyncio.AbstractEventLoop, str], set[asyncio.Event]]] = {}


class Backoff:
    """Backoff of one session.

    Args:
        url: the broker's; sessions with the same broker wake each other.
        min_s, max_s: shortest and longest pause; it doubles after each failure.
    """

    def __init__(self, url: str, min_s: float, max_s: float) -> None:
        self._url = url
        self._min_s, self._max_s = min_s, max_s
        self._pause_s = min_s
        self._up_at: float | None = None
        self._wake_timer: asyncio.TimerHandle | None = None

    def link_up(self) -> None:
        """Note that the broker accepted the connection."""
        loop = asyncio.get_running_loop()
        self._up_at = loop.time()
        self._wake_timer = loop.call_later(_PROVEN_S, self._wake_others, loop)

    def link_down(self) -> None:
        """Note that the link ended, or was never established."""
        if self._wake_timer is not None:
            self._wake_timer.cancel()

    async def pause(self) -> None:
        """Wait before the next attempt."""
        loop = asyncio.get_running_loop()
        if self._up_at is not None and loop.time() - self._up_at > _STABLE_S:
            self._pause_s = self._min_s
        pause_s = random.uniform(self._pause_s / 2, self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._max_s)
        if self._up_at is not None:  # the broker was reachable, so another link that is up does not help
            self._up_at = None
            await asyncio.sleep(pause_s)
            return
        waiting = _waiting.setdefault((loop, self._url), set())
        waiting.add(woken := asyncio.Event())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):  # wait_for may swallow a cancellation (Python 3.11)
                    await woken.wait()
        finally:
            waiting.discard(woken)
            if not waiting:
                _waiting.pop((loop, self._url), None)

    def _wake_others(self, loop: asyncio.AbstractEventLoop) -> None:
        for woken in _waiting.get((loop, self._url), ()):
            woken.set()
