"""Decides which chunks this node offers and sends to peers. Pure: no clock, no link.

As in SRM (Floyd et al., SIGCOMM 1995), a node that has a wanted chunk waits a random time before it offers it, and stays
silent if another offers it first. If two offer at once, the first one in the broker's order sends. Peers are served in turn, so
one that wants everything all the time delays the others by one chunk at most.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from hedgerow.blobs.announcements import MAX_DIGESTS, Announcement

PAUSE_S: Final = 0.05
"""Longest pause before an offer."""
_CLAIM_S: Final = 4.0
"""How long an offer holds."""
MAX_OPEN: Final = 1024
"""Limit on wants tracked at once; a peer that wants more waits, or asks the region."""


_FREE: Final = 2
_MAX_DOUBLINGS: Final = 6
"""A peer is sent a chunk this many times whenever it wants it; after that it waits as long as an offer holds, then twice as
long each time, so often."""
_MAX_SERVED: Final = 16_384
"""Limit on chunks and peers remembered for that."""


class PeerRequest(NamedTuple):
    """A chunk and its group."""

    group: str
    digest: str


@dataclass(slots=True)
class _Candidate:
    """A wanted chunk that this node has."""

    at: float
    wanted_by: str
    exclude: tuple[str, ...]
    offered: bool = False


class PeerOffers:
    """Offers of one node.

    Args:
        node: this node's name.
        has: returns whether a chunk is stored here.
        random: source of jitter.
    """

    def __init__(self, node: str, has: Callable[[str], bool], random: Random) -> None:
        self._node = node
        self._has = has
        self._random = random
        self._candidates: dict[PeerRequest, _Candidate] = {}
        self._claimed: OrderedDict[PeerRequest, tuple[str, float]] = (
            OrderedDict()
        )  # by whom, and until when: in that order
        self._to_send: OrderedDict[str, deque[PeerRequest]] = OrderedDict()  # by the peer that wanted it
        self._queued: set[PeerRequest] = set()
        self._served: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # how often, and when last

    def on_want(self, announcement: Announcement, sender: str, now: float) -> None:
        """Handle a peer's want."""
        if sender == self._node or self._node in announcement.exclude:
            return
        self._expire(now)
        self._make_room(sender)
        for digest in announcement.digests:
            request = PeerRequest(announcement.group, digest)
            claimed_by = self._claimed[request][0] if request in self._claimed else None
            # If this node has sent it, the peer missed it: offer it again. If another claimed it, that one sends it again.
            sent = claimed_by == self._node and request not in self._queued
            if claimed_by is not None and claimed_by not in announcement.exclude and not sent:
                continue
            if now < self._served_again_at(sender, digest):
                continue
            if len(self._candidates) < MAX_OPEN and request not in self._candidates and self._has(digest):
                self._claimed.pop(request, None)
                at = now + self._random.uniform(0, PAUSE_S)
                self._candidates[request] = _Candidate(at, sender, announcement.exclude)

    def on_have(self, announcement: Announcement, sender: str, now: float) -> None:
        """Handle an offer by any node, this one included. The first to offer sends."""
        for digest in announcement.digests:
            request = PeerRequest(announcement.group, digest)
            ours = self._candidates.get(request)
            if ours is not None and sender in ours.exclude:
                continue  # the peer that wants it distrusts the sender
            self._candidates.pop(request, None)
            wanted_by = ours.wanted_by if ours is not None and sender == self._node else None
            # This node's offers are few: those of others cannot use up their places.
            if request in self._claimed or (len(self._claimed) >= 4 * MAX_OPEN and wanted_by is None):
                continue
            self._claimed[request] = sender, now + _CLAIM_S
            if wanted_by is not None:
                self._note_served(wanted_by, digest, now)
                self._queue(wanted_by, request)

    def next(self, now: float) -> tuple[dict[str, list[str]], float]:
        """Return what to offer now.

        Returns: digests by group, and when to call again.
        """
        due: dict[str, list[str]] = {}
        for request, candidate in list(self._candidates.items()):
            if candidate.offered:
                if now > candidate.at + _CLAIM_S:  # this node's own offer did not come back
                    del self._candidates[request]
            elif candidate.at <= now and len(digests := due.setdefault(request.group, [])) < MAX_DIGESTS:
                candidate.offered = True
                digests.append(request.digest)
        return {group: digests for group, digests in due.items() if digests}, min(
            (candidate.at for candidate in self._candidates.values() if not candidate.offered), default=math.inf
        )

    def share(self, request: PeerRequest) -> None:
        """Queue a chunk for sending that no peer requested."""
        self._candidates.pop(request, None)
        self._queue(self._node, request)

    def take(self) -> PeerRequest | None:
        """Remove and return the next chunk to send, of each peer in turn; None: there is none."""
        if not self._to_send:
            return None
        peer, requests = self._to_send.popitem(last=False)
        request = requests.popleft()
        self._queued.discard(request)
        if requests:
            self._to_send[peer] = requests
        return request

    def _queue(self, peer: str, request: PeerRequest) -> None:
        if request not in self._queued:
            self._queued.add(request)
            self._to_send.setdefault(peer, deque()).append(request)

    def _note_served(self, peer: str, digest: str, now: float) -> None:
        times, _ = self._served.pop((peer, digest), (0, now))
        self._served[peer, digest] = times + 1, now
        if len(self._served) > _MAX_SERVED:
            self._served.popitem(last=False)

    def _served_again_at(self, peer: str, digest: str) -> float:
        """Return when a peer may have a chunk once more: one that keeps asking would keep this node and the broker busy."""
        served = self._served.get((peer, digest))
        if served is None or served[0] < _FREE:
            return -math.inf
        return served[1] + _CLAIM_S * 2.0 ** min(served[0] - _FREE, _MAX_DOUBLINGS)

    def _make_room(self, peer: str) -> None:
        """If all places are taken, take back those of the peer that has most, down to an equal share."""
        if len(self._candidates) < MAX_OPEN:
            return
        shares = Counter(candidate.wanted_by for candidate in self._candidates.values())
        (greediest, most), *_ = shares.most_common(1)
        spare = most - MAX_OPEN // (len(shares) + (peer not in shares))
        for request in [request for request, each in self._candidates.items() if each.wanted_by == greediest]:
            if spare <= 0 or peer == greediest:
                return
            del self._candidates[request]
            spare -= 1

    def _expire(self, now: float) -> None:
        while self._claimed and next(iter(self._claimed.values()))[1] <= now:
            self._claimed.popitem(last=False)
