"""Whom a node asks for which chunk, and when, so that the site pays for each once. Pure: no clock, no link.

The site's broker hands every message to all its nodes in one order, so they all see the same chunk wanted by the same node
first: that one asks, the others wait for what then comes to all. Nobody is elected and nobody coordinates.

    free ──▶ said ──▶ wanted ──▶ asked ──▶ (here)      wanted: the first who said so, as everybody has heard
                        └──▶ offered ──▶ (here)        offered: a neighbour has it and sends it

Rules:
- Neighbours first: a chunk is asked of the region only when nobody has offered it for a while. On a site where all have much
  to do, words take longer, and so do offers: the while grows with them.
- What others are after is left alone, but not for ever: who says he asks and does not, or offers and does not send, is not
  believed for a while. So a node that dies, or lies, costs time and no more than that.
- What is asked of the region counts for all nodes of the site together, against `FetchWindow` and `Bucket`.
- Should brokers order messages differently after all, a chunk comes twice. It is never missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import Final

from hedgerow.blobs.announcements import AGAIN_S, MOST_DIGESTS, Announcement, AnnouncementKind
from hedgerow.blobs.fetch.pacing import Bucket, FetchWindow

HOLD_S: Final = 0.5
"""How long neighbours have to offer a chunk, at least."""
_ECHOES: Final = 4.0
"""They have so many times as long as our own words took to come back: who is slow to hear is slow to answer."""
_MOST_HOLD_S: Final = 10.0
_HOLD_AGAIN_S: Final = AGAIN_S + 0.2
"""At least, of what came damaged: asked for sooner, the region would not send it again, and we would wait in vain."""
REFRESH_S: Final = 3.0
"""How often a node says again what it still wants."""
_LEASE_S: Final = 10.0
"""A want counts for so long after it was last said."""
_ECHO_S: Final = 5.0
_OFFER_S: Final = 5.0
"""How long who has offered may send nothing."""
_STALL_S: Final = 20.0
"""How long others may want without anything coming from the region."""
DOUBT_S: Final = 120.0
"""How long who was wrong is not believed."""
_PATIENCE_S: Final = 30.0
"""No more than this between two tries, unless answers take longer."""
_EARLIEST_S: Final = 0.01


class ChunkState(Enum):
    """How far a chunk is that is not here."""

    SAID = auto()
    WANTED = auto()
    ASKED = auto()
    OFFERED = auto()


@dataclass(slots=True)
class _ChunkEntry:
    """A chunk that somebody is after."""

    owner: str
    state: ChunkState
    at: float  # since when it is in this state
    said_at: float  # when the owner last said so
    by: str = ""  # who has offered it; of one asked for: the group, if that is another
    seen: bool = True  # of one asked for: we know it; else we were only told to wait, and it may not be under way yet
    told: bool = False  # of one of ours: we have told others to wait
    hold_s: float = HOLD_S  # of one of ours that is wanted: how long neighbours have to offer it


@dataclass(slots=True)
class Steps:
    """What is to be done now.

    Attributes:
        want, busy: to say to the neighbours.
        ask: to ask the region, or another source, for.
        but: neighbours that are not believed.
        wake_at: when to look again, if nothing happens before.
    """

    want: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    ask: list[str] = field(default_factory=list)
    but: tuple[str, ...] = ()
    wake_at: float = math.inf


class FetchScheduler:
    """The chunks of one fetch.

    Args:
        node: who we are.
        group: what is fetched.
        missing: sizes of the chunks that are not here, by digest, in the order in which they are to come.
        window, bucket: limits of what is asked of the region; they outlive a fetch.
    """

    def __init__(self, node: str, group: str, missing: Mapping[str, int], window: FetchWindow, bucket: Bucket) -> None:
        self._node = node
        self._group = group
        self._missing = dict(missing)
        self._free = dict.fromkeys(missing)
        self._entries: dict[str, _ChunkEntry] = {}
        self._tries: dict[str, int] = {}
        self._first_asked: dict[str, float] = {}
        self._doubted: dict[str, float] = {}
        self._heard_from: dict[str, float] = {}
        self._busy: list[str] = []
        self._window = window
        self._bucket = bucket
        self._progress_at: float | None = None

    @property
    def missing(self) -> Mapping[str, int]:
        """Sizes of the chunks that are not here."""
        return self._missing

    def heard(self, note: Announcement, sender: str, now: float) -> None:
        """A node of the site has said something; we hear ourselves too."""
        for digest in note.digests:
            size = self._missing.get(digest)
            if size is None:
                continue
            entry = self._entries.get(digest)
            match note.kind:
                case AnnouncementKind.ASK | AnnouncementKind.TAKE:
                    if sender != self._node:
                        self._bucket.take(size, now)
                        self._others_asked(digest, entry, sender, note.group, now)
                case AnnouncementKind.WANT if sender == self._node:
                    self._echo(digest, entry, now)
                case AnnouncementKind.WANT if note.group == self._group and not self._doubts(sender, now):
                    self._others_want(digest, entry, sender, now)
                case AnnouncementKind.BUSY if sender != self._node and not self._doubts(sender, now):
                    self._others_are_busy(digest, entry, sender, now)
                case AnnouncementKind.HAVE if sender != self._node and not self._doubts(sender, now):
                    if entry is None or entry.state in (ChunkState.SAID, ChunkState.WANTED):
                        self._heard_from[sender] = now
                        owner = self._node if entry is None else entry.owner
                        self._enter(digest, _ChunkEntry(owner, ChunkState.OFFERED, now, now, by=sender))

    def arrived(self, digest: str, sender: str | None, now: float) -> bool:
        """A chunk came and is safe. Returns: whether it was missing.

        Args:
            sender: the neighbour that sent it; None: the region, or another source beyond the site.
        """
        if self._missing.pop(digest, None) is None:
            return False
        self._free.pop(digest, None)
        entry = self._entries.pop(digest, None)
        self._progress_at = now
        if sender is not None:
            self._heard_from[sender] = now
        elif self._tries.get(digest) and digest in self._first_asked:
            self._window.late(now - self._first_asked[digest])
        elif entry is not None and entry.state is ChunkState.ASKED and entry.seen:
            self._window.answered(now - entry.at, now)
        return True

    def bad(self, digest: str, sender: str | None, now: float) -> None:
        """What came for a chunk is not it."""
        if sender is not None:
            self._doubt(sender, now)
        elif digest in self._entries:
            self._give_up(digest, now)

    def paused(self, seconds: float) -> None:
        """There was no link for so long; that time does not count."""
        for entry in self._entries.values():
            entry.at += seconds
            entry.said_at += seconds
        for times in (self._heard_from, self._first_asked):
            for name in times:
                times[name] += seconds
        if self._progress_at is not None:
            self._progress_at += seconds

    def next(self, now: float) -> Steps:
        """What to do now, and when to ask again."""
        if self._progress_at is None:
            self._progress_at = now
        self._expire(now)
        steps = Steps(busy=self._busy, but=self._not_believed())
        self._busy = []
        self._ask(steps, now)
        self._want(steps, now)
        steps.wake_at = max(min(self._deadlines(now), default=math.inf), now + _EARLIEST_S)
        return steps

    # What others do

    def _others_asked(self, digest: str, entry: _ChunkEntry | None, sender: str, group: str, now: float) -> None:
        # What others ask for with other files comes past us. The first time we wait: then they have it for us.
        if group != self._group and self._tries.get(digest):
            return
        if entry is not None and entry.state is ChunkState.ASKED and entry.owner == self._node:
            return
        self._enter(digest, _ChunkEntry(sender, ChunkState.ASKED, now, now, by="" if group == self._group else group))

    def _others_want(self, digest: str, entry: _ChunkEntry | None, sender: str, now: float) -> None:
        if (
            entry is None
            or entry.state is ChunkState.SAID
            or (entry.owner == sender and entry.state is ChunkState.ASKED)
        ):
            self._enter(
                digest, _ChunkEntry(sender, ChunkState.WANTED, now, now)
            )  # he who has asked has given up, and wants it again
        elif entry.owner == sender:
            entry.said_at = now
        elif entry.owner == self._node and len(self._busy) < MOST_DIGESTS:
            self._busy.append(digest)
            entry.told = True

    def _others_are_busy(self, digest: str, entry: _ChunkEntry | None, sender: str, now: float) -> None:
        if entry is not None and entry.state not in (ChunkState.SAID, ChunkState.WANTED):
            return
        # Two have told each other to wait: for both the one counts whose name comes first.
        if entry is None or not (entry.owner == self._node and entry.told and self._node < sender):
            self._enter(digest, _ChunkEntry(sender, ChunkState.ASKED, now, now, seen=False))

    def _echo(self, digest: str, entry: _ChunkEntry | None, now: float) -> None:
        if entry is not None and entry.owner == self._node and entry.state is ChunkState.SAID:
            least = _HOLD_AGAIN_S if self._tries.get(digest) else HOLD_S
            entry.hold_s = min(max(least, _ECHOES * (now - entry.at)), _MOST_HOLD_S)
            entry.state, entry.at, entry.said_at = ChunkState.WANTED, now, now

    # What we do

    def _ask(self, steps: Steps, now: float) -> None:
        asked = self._asked()
        for digest, entry in self._entries.items():
            if asked >= int(self._window.size) or self._bucket.free_at(now) > now:
                return
            if entry.owner == self._node and entry.state is ChunkState.WANTED and now >= entry.at + entry.hold_s:
                entry.state, entry.at = ChunkState.ASKED, now
                self._first_asked.setdefault(digest, now)
                self._bucket.take(self._missing[digest], now)
                steps.ask.append(digest)
                asked += 1

    def _want(self, steps: Steps, now: float) -> None:
        waiting = 0
        for digest, entry in self._entries.items():
            if entry.state in (ChunkState.SAID, ChunkState.WANTED):
                waiting += 1
            if entry.owner == self._node and entry.state is ChunkState.WANTED and now >= entry.said_at + REFRESH_S:
                entry.said_at = now
                steps.want.append(digest)
        ahead = self._ahead()
        if waiting > ahead / 2:
            return
        for digest in list(islice(self._free, ahead - waiting)):
            del self._free[digest]
            self._entries[digest] = _ChunkEntry(self._node, ChunkState.SAID, now, now)
            steps.want.append(digest)

    def _asked(self) -> int:
        return sum(1 for entry in self._entries.values() if entry.state is ChunkState.ASKED and entry.seen)

    def _ahead(self) -> int:
        """As many as will be asked for, or come from neighbours, while the next ones are being offered."""
        if self._window.smoothed_s is None:
            return MOST_DIGESTS
        lead = max(1.0, 2 * HOLD_S / self._window.smoothed_s) + 1
        return min(int(self._window.size * lead) + 4, MOST_DIGESTS)

    # What time does

    def _expire(self, now: float) -> None:
        stalled = self._progress_at is not None and now - self._progress_at > max(_STALL_S, 3 * self._window.timeout_s)
        for digest, entry in list(self._entries.items()):
            if now < self._ends(digest, entry) and not (stalled and self._idle(entry)):
                continue
            match entry.state:
                case ChunkState.OFFERED:
                    self._doubt(entry.by, now)
                case ChunkState.WANTED:
                    self._doubt(entry.owner, now)
                case ChunkState.ASKED:
                    if entry.seen and not entry.by:
                        self._window.lost(now)
                    self._give_up(digest, now)
                case ChunkState.SAID:
                    self._release(digest)
        for name, until in list(self._doubted.items()):
            if until <= now:
                del self._doubted[name]

    def _idle(self, entry: _ChunkEntry) -> bool:
        """Whether it is another's, who only says that he wants it."""
        return entry.owner != self._node and entry.state is ChunkState.WANTED

    def _ends(self, digest: str, entry: _ChunkEntry) -> float:
        """When a state has lasted too long."""
        match entry.state:
            case ChunkState.SAID:
                return entry.at + _ECHO_S
            case ChunkState.WANTED:
                return math.inf if entry.owner == self._node else entry.said_at + _LEASE_S
            case ChunkState.OFFERED:
                return self._heard_from[entry.by] + _OFFER_S
        usual = self._window.timeout_s
        patience = max(usual, min(usual * (1 << self._tries.get(digest, 0)), _PATIENCE_S))
        # Who has asked asks again; others leave them time for it.
        return entry.at + patience * (1.0 if entry.owner == self._node else 1.5)

    def _deadlines(self, now: float) -> Iterator[float]:
        room = self._asked() < int(self._window.size)
        for digest, entry in self._entries.items():
            yield self._ends(digest, entry)
            if entry.owner == self._node and entry.state is ChunkState.WANTED:
                yield entry.said_at + REFRESH_S
                if room:
                    yield max(entry.at + entry.hold_s, self._bucket.free_at(now))
        if self._free and len(self._entries) < MOST_DIGESTS:
            yield now + HOLD_S

    def _give_up(self, digest: str, now: float) -> None:
        self._tries[digest] = self._tries.get(digest, 0) + 1
        self._release(digest)

    def _release(self, digest: str) -> None:
        del self._entries[digest]
        self._free[digest] = None

    def _enter(self, digest: str, entry: _ChunkEntry) -> None:
        self._free.pop(digest, None)
        self._entries[digest] = entry

    def _doubt(self, name: str, now: float) -> None:
        self._doubted[name] = now + DOUBT_S
        for digest, entry in list(self._entries.items()):
            if (entry.state is ChunkState.OFFERED and entry.by == name) or (
                entry.state is ChunkState.WANTED and entry.owner == name
            ):
                self._release(digest)

    def _doubts(self, name: str, now: float) -> bool:
        return name in self._doubted and self._doubted[name] > now

    def _not_believed(self) -> tuple[str, ...]:
        return tuple(self._doubted)[:MOST_DIGESTS]
