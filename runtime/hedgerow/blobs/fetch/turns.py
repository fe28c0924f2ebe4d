"""Gives peers a limited turn to fetch a chunk, then this node. Pure: no clock.

Whatever peers announce or repeat, a turn is over after a fixed time since the first of them held the chunk. A peer that delivers
may go on, but not for ever. Peers have another turn once this node has requested the chunk.
"""

from __future__ import annotations

import math
from typing import Final

from hedgerow.blobs.fetch.pacing import FetchWindow

_TURN_S: Final = 45.0
"""How long peers may hold a chunk, unless replies usually take longer."""
_MAX_TURNS: Final = 10.0
"""How long a peer that delivers other chunks meanwhile may hold it, in turns."""
PEER_TIMEOUTS: Final = 1.5
"""How long a peer's request is waited for, in timeouts of one's own: the peer retries first."""


class PeerTurns:
    """The turns of one fetch.

    Args:
        window: tells how long replies of the region usually take.
    """

    def __init__(self, window: FetchWindow) -> None:
        self._window = window
        self._began: dict[str, float] = {}  # by chunk
        self._delivered: dict[str, float] = {}  # by peer: when it last did

    def may_hold(self, digest: str, peer: str, now: float) -> bool:
        """Return whether a peer may hold a chunk; the first to do so begins the turn of all."""
        self._began.setdefault(digest, now)
        return now < self.ends(digest, peer)

    def ends(self, digest: str, peer: str) -> float:
        """Return when a peer's turn for a chunk ends."""
        began, shortest_s = self._began[digest], self._shortest_s
        extended = self._delivered.get(peer, -math.inf) + shortest_s
        return min(max(began + shortest_s, extended), began + _MAX_TURNS * shortest_s)

    def is_own(self, digest: str, now: float) -> bool:
        """Return whether this node is to request a chunk, because peers have had their turn."""
        return now >= self._began.get(digest, math.inf) + self._shortest_s

    def requested(self, digest: str) -> None:
        """Note that this node has requested a chunk."""
        self._began.pop(digest, None)

    def delivered(self, peer: str, now: float) -> None:
        """Note that a chunk arrived that a peer had requested or sent; or this node itself."""
        self._delivered[peer] = now

    def has_delivered(self, peer: str, since: float) -> bool:
        """Return whether a peer has delivered a chunk since then."""
        return self._delivered.get(peer, -math.inf) >= since

    def has_any_delivered(self, since: float) -> bool:
        """Return whether any chunk has arrived after that."""
        return max(self._delivered.values(), default=-math.inf) > since

    def paused(self, seconds: float) -> None:
        """Extend all turns by the seconds without a link."""
        for times in (self._began, self._delivered):
            for name in times:
                times[name] += seconds

    @property
    def _shortest_s(self) -> float:
        return max(_TURN_S, PEER_TIMEOUTS * self._window.timeout_s)
