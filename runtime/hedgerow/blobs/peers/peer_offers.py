"""Which of the chunks that neighbours want this node sends. Pure: no clock, no link.

As in SRM (Floyd et al., SIGCOMM 1995), whoever has what is wanted waits a random moment before saying so, and stays silent
when another has said it first. Where two speak at once, the site's broker puts one first, for all to hear.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from hedgerow.blobs.announcements import MOST_DIGESTS, Announcement

PAUSE_S: Final = 0.05
"""Longest pause before an offer."""
_TAKEN_S: Final = 4.0
"""How long another's offer counts."""
MOST_OPEN: Final = 1024
"""Wants that are remembered at once; whoever wants more has to wait, or asks the region."""


class PeerRequest(NamedTuple):
    """A chunk, and with what it is fetched."""

    group: str
    digest: str


@dataclass(slots=True)
class _Chance:
    """A chunk that we could send."""

    at: float
    but: tuple[str, ...]
    said: bool = False


class PeerOffers:
    """What this node could send, and does.

    Args:
        node: who we are.
        has: whether a chunk is here.
        random: draws pauses.
    """

    def __init__(self, node: str, has: Callable[[str], bool], random: Random) -> None:
        self._node = node
        self._has = has
        self._random = random
        self._chances: dict[PeerRequest, _Chance] = {}
        self._taken: dict[PeerRequest, tuple[str, float]] = {}
        self._to_send: deque[PeerRequest] = deque()

    def wanted(self, note: Announcement, sender: str, now: float) -> None:
        """A neighbour wants chunks."""
        if sender == self._node or self._node in note.but:
            return
        self._forget(now)
        for digest in note.digests:
            wanted = PeerRequest(note.group, digest)
            taken_by = self._taken[wanted][0] if wanted in self._taken else None
            # What we have sent already, this one came too late for; what another has sent, he sends again.
            sent = taken_by == self._node and wanted not in self._to_send
            if taken_by is not None and taken_by not in note.but and not sent:
                continue
            if len(self._chances) < MOST_OPEN and wanted not in self._chances and self._has(digest):
                self._taken.pop(wanted, None)
                self._chances[wanted] = _Chance(now + self._random.uniform(0, PAUSE_S), note.but)

    def offered(self, note: Announcement, sender: str, now: float) -> None:
        """Somebody offers chunks; we hear ourselves too. The first one sends."""
        for digest in note.digests:
            wanted = PeerRequest(note.group, digest)
            ours = self._chances.get(wanted)
            if ours is not None and sender in ours.but:
                continue  # he who wants it does not believe this one
            self._chances.pop(wanted, None)
            if wanted in self._taken or len(self._taken) >= 4 * MOST_OPEN:
                continue
            self._taken[wanted] = sender, now + _TAKEN_S
            if sender == self._node and ours is not None:
                self._to_send.append(wanted)

    def next(self, now: float) -> tuple[dict[str, list[str]], float]:
        """What to offer now.

        Returns: digests by group, and when to ask again.
        """
        due: dict[str, list[str]] = {}
        for wanted, chance in list(self._chances.items()):
            if chance.said:
                if now > chance.at + _TAKEN_S:  # our own words did not come back
                    del self._chances[wanted]
            elif chance.at <= now and len(digests := due.setdefault(wanted.group, [])) < MOST_DIGESTS:
                chance.said = True
                digests.append(wanted.digest)
        return {group: digests for group, digests in due.items() if digests}, min(
            (chance.at for chance in self._chances.values() if not chance.said), default=math.inf
        )

    def give(self, wanted: PeerRequest) -> None:
        """We brought a chunk for all, and send it without being asked."""
        self._chances.pop(wanted, None)
        self._to_send.append(wanted)

    def take(self) -> PeerRequest | None:
        """The next chunk to send; None: there is none."""
        return self._to_send.popleft() if self._to_send else None

    def _forget(self, now: float) -> None:
        for wanted, (_, until) in list(self._taken.items()):
            if until <= now:
                del self._taken[wanted]
