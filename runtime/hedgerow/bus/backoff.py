"""Pauses between tries to connect.

They grow as long as tries fail, and a random part of them is taken, so that a thousand nodes do not come back at once. A
node has several links to one broker: when one of them stands again, those that could not reach the broker try at once too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

_STEADY_S: Final = 5.0
"""A link that lasted this long was a good one: the next pause is short again."""
_STANDS_S: Final = 0.3
"""A link that lasted this long shows that the broker is back; one that is accepted and thrown out shows nothing."""
_waiting: Final[dict[tuple[asyncio.AbstractEventLoop, str], set[asyncio.Event]]] = {}


class Backoff:
    """The pauses of one session.

    Args:
        url: of the broker.
        min_s, max_s: limits of a pause; it doubles in between.
    """

    def __init__(self, url: str, min_s: float, max_s: float) -> None:
        self._url = url
        self._min_s, self._max_s = min_s, max_s
        self._pause_s = min_s
        self._up_at: float | None = None
        self._stands: asyncio.TimerHandle | None = None

    def link_up(self) -> None:
        """The broker has accepted us."""
        loop = asyncio.get_running_loop()
        self._up_at = loop.time()
        self._stands = loop.call_later(_STANDS_S, self._tell_others, loop)

    def link_down(self) -> None:
        """It has ended, whether it was up or never came to be."""
        if self._stands is not None:
            self._stands.cancel()

    async def pause(self) -> None:
        """Wait before the next try."""
        loop = asyncio.get_running_loop()
        if self._up_at is not None and loop.time() - self._up_at > _STEADY_S:
            self._pause_s = self._min_s
        pause_s = random.uniform(self._pause_s / 2, self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._max_s)
        if self._up_at is not None:  # it can be reached; so it was not that which went wrong
            self._up_at = None
            await asyncio.sleep(pause_s)
            return
        others = _waiting.setdefault((loop, self._url), set())
        others.add(back := asyncio.Event())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):  # wait_for may swallow a cancellation (Python 3.11)
                    await back.wait()
        finally:
            others.discard(back)
            if not others:
                _waiting.pop((loop, self._url), None)

    def _tell_others(self, loop: asyncio.AbstractEventLoop) -> None:
        for back in _waiting.get((loop, self._url), ()):
            back.set()
