"""Decides which chunk to request from whom, so that a site fetches each chunk once. Pure: no clock, no link.

The site's broker delivers every message to all its nodes in the same order, so all of them see the same node want a chunk
first. That node claims it and requests it; the others wait for the reply, which all receive. There is no election and no
coordinator.

    free ──▶ announced ──▶ claimed ──▶ requested ──▶ (stored)    claimed: first `want` in the broker's order
                              └──▶ offered ──▶ (stored)          offered: a peer has the chunk and sends it

Rules:
- Peers first: a chunk is requested from the region only if no peer offers it within the hold time. On a busy site messages and
  offers take longer, and the hold time grows with them.
- A chunk that peers claim, offer or request is left to them for one turn, whatever they say or repeat; then this node requests
  it itself, even if their requests fill the window. Only after that may peers have another turn.
- A peer that claims and does not request, offers and does not send, requests what does not arrive while other chunks do, or
  sends what is damaged, is left out for a while, each time for longer. So a node that dies or misbehaves costs only time.
- Requests to the region by all nodes of the site count against `FetchWindow` and `TokenBucket`.
- If brokers did order messages differently, a chunk would arrive twice; it would never be missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import islice
from typing import Final, NamedTuple

from hedgerow.blobs.announcements import MAX_DIGESTS, RESEND_AFTER_S, Announcement, AnnouncementKind
from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket
from hedgerow.blobs.fetch.turns import PEER_TIMEOUTS, PeerTurns
from hedgerow.blobs.peers.distrust import PeerDistrust

HOLD_S: Final = 0.5
"""Shortest time peers have to offer a chunk."""
_HOLD_ROUND_TRIPS: Final = 4.0
"""The hold time in round trips of this node's own announcement: peers that receive late also answer late."""
_MAX_HOLD_S: Final = 10.0
_HOLD_AFTER_FAILURE_S: Final = RESEND_AFTER_S + 0.2
"""Shortest hold time after a damaged chunk: the region ignores an earlier request as repeated."""
REFRESH_S: Final = 3.0
"""Interval at which a node repeats its wants."""
_LEASE_S: Final = 10.0
"""How long a peer's claim holds after its last announcement."""
_ECHO_S: Final = 5.0
"""How long to wait for this node's own announcement to come back."""
_OFFER_S: Final = 5.0
"""How long a peer that offered may take to send."""
_STALL_S: Final = 20.0
"""How long peers may hold claims without any chunk arriving."""
_MAX_TIMEOUT_S: Final = 30.0
"""Longest wait for a reply, unless replies usually take longer."""
_EARLIEST_S: Final = 0.01


class Reason(StrEnum):
    """Why a peer is left out."""

    BAD_CHUNK = "bad-chunk"
    CLAIM_NOT_KEPT = "claim-not-kept"
    OFFER_NOT_KEPT = "offer-not-kept"
    REQUEST_NOT_KEPT = "request-not-kept"


class LeftOut(NamedTuple):
    """A peer that is left out from now on, for some seconds."""

    peer: str
    reason: Reason
    seconds: float


class ChunkState(Enum):
    """State of a missing chunk that is not free."""

    ANNOUNCED = auto()
    CLAIMED = auto()
    REQUESTED = auto()
    OFFERED = auto()


@dataclass(slots=True)
class _ChunkEntry:
    """A chunk that this node or a peer is fetching."""

    owner: str
    state: ChunkState
    since: float  # when it entered this state
    announced_at: float  # when the owner last announced it
    source: str = ""  # OFFERED: the offering peer; REQUESTED: the group, if it is another one
    confirmed: bool = True  # REQUESTED: False if a peer only sent `busy`; the request may not have been sent yet
    from_mirror: bool = False  # REQUESTED: of a mirror, so the time that the region takes says nothing
    busy_sent: bool = False  # owned by this node: whether it told peers to wait
    hold_s: float = HOLD_S  # CLAIMED by this node: how long peers have to offer it


@dataclass(slots=True)
class Steps:
    """Actions to take now.

    Attributes:
        want, busy: chunks to announce to the peers.
        request: chunks to request from the region, or from a mirror.
        distrusted: peers to exclude from the wants.
        left_out: peers distrusted since the last call.
        wake_at: when to call `next` again at the latest.
    """

    want: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    request: list[str] = field(default_factory=list)
    distrusted: tuple[str, ...] = ()
    left_out: list[LeftOut] = field(default_factory=list)
    wake_at: float = math.inf


class FetchScheduler:
    """Schedules the chunks of one fetch.

    Args:
        node: this node's name.
        group: the group to fetch.
        missing: sizes of the missing chunks by digest, in the order in which to fetch them.
        window, bucket: limits on requests to the region; they outlive a fetch.
        distrust: peers left out; it outlives a fetch. None: none so far.
    """

    def __init__(
        self,
        node: str,
        group: str,
        missing: Mapping[str, int],
        window: FetchWindow,
        bucket: TokenBucket,
        distrust: PeerDistrust | None = None,
    ) -> None:
        self._node = node
        self._group = group
        self._missing = dict(missing)
        self._free = dict.fromkeys(missing)
        self._entries: dict[str, _ChunkEntry] = {}
        self._attempts: dict[str, int] = {}
        self._first_requested_at: dict[str, float] = {}
        self._distrust = distrust or PeerDistrust()
        self._left_out: list[LeftOut] = []
        self._turns = PeerTurns(window)
        self._charged: set[str] = set()
        self._last_seen: dict[str, float] = {}
        self._busy: list[str] = []
        self._window = window
        self._bucket = bucket
        self._progress_at: float | None = None

    @property
    def missing(self) -> Mapping[str, int]:
        """Sizes of the missing chunks by digest."""
        return self._missing

    def on_announcement(self, announcement: Announcement, sender: str, now: float) -> None:
        """Handle an announcement by a node of the site, this one included."""
        for digest in announcement.digests:
            size = self._missing.get(digest)
            if size is None:
                continue
            entry = self._entries.get(digest)
            match announcement.kind:
                case AnnouncementKind.ASK | AnnouncementKind.TAKE:
                    if sender != self._node:
                        self._charge(digest, size, now)
                        if not self._distrust.includes(sender, now):
                            self._peer_requested(digest, entry, sender, announcement, now)
                case AnnouncementKind.WANT if sender == self._node:
                    self._own_want_received(digest, entry, now)
                case AnnouncementKind.WANT if announcement.group == self._group and not self._distrust.includes(
                    sender, now
                ):
                    self._peer_wants(digest, entry, sender, now)
                case AnnouncementKind.BUSY if sender != self._node and not self._distrust.includes(sender, now):
                    self._peer_is_busy(digest, entry, sender, now)
                case AnnouncementKind.HAVE if sender != self._node and not self._distrust.includes(sender, now):
                    waiting = entry is None or entry.state in (ChunkState.ANNOUNCED, ChunkState.CLAIMED)
                    if waiting and self._turns.may_hold(digest, sender, now):
                        self._last_seen[sender] = now
                        owner = self._node if entry is None else entry.owner
                        self._set_entry(digest, _ChunkEntry(owner, ChunkState.OFFERED, now, now, source=sender))

    def arrived(self, digest: str, sender: str | None, now: float) -> bool:
        """Handle a chunk that was received and stored. Returns: whether it was missing.

        Args:
            sender: the peer that sent it; None: the region or a mirror.
        """
        if self._missing.pop(digest, None) is None:
            return False
        self._free.pop(digest, None)
        entry = self._entries.pop(digest, None)
        self._progress_at = now
        deliverer = sender or (entry.owner if entry is not None and entry.state is ChunkState.REQUESTED else self._node)
        self._turns.delivered(deliverer, now)
        if sender is not None:
            self._last_seen[sender] = now
        elif self._attempts.get(digest) and digest in self._first_requested_at:
            self._window.on_late_reply(now - self._first_requested_at[digest])
        elif entry is not None and entry.state is ChunkState.REQUESTED and entry.confirmed and not entry.from_mirror:
            self._window.on_reply(now - entry.since, now)
        return True

    def failed(self, digest: str, sender: str | None, now: float) -> None:
        """Handle a chunk that arrived damaged, or that a mirror could not deliver."""
        if sender is not None:
            self._leave_out(sender, Reason.BAD_CHUNK, now)
        elif digest in self._entries:
            self._give_up(digest, now)

    def paused(self, seconds: float) -> None:
        """Extend all deadlines by the seconds without a link."""
        for entry in self._entries.values():
            entry.since += seconds
            entry.announced_at += seconds
        self._turns.paused(seconds)
        for times in (self._last_seen, self._first_requested_at):
            for name in times:
                times[name] += seconds
        if self._progress_at is not None:
            self._progress_at += seconds

    def next(self, now: float) -> Steps:
        """Return what to do now, and when to call again."""
        if self._progress_at is None:
            self._progress_at = now
        self._expire(now)
        steps = Steps(busy=self._busy, distrusted=self._distrust.names(now, MAX_DIGESTS), left_out=self._left_out)
        self._busy, self._left_out = [], []
        self._request_chunks(steps, now)
        self._announce_wants(steps, now)
        steps.wake_at = max(min(self._wake_times(now), default=math.inf), now + _EARLIEST_S)
        return steps

    # Peers

    def _charge(self, digest: str, size: int, now: float) -> None:
        """Count a peer's request against the rate limit: once, or repetitions could keep this node from requesting."""
        if digest not in self._charged:
            self._charged.add(digest)
            self._bucket.take(size, now)

    def _peer_requested(
        self, digest: str, entry: _ChunkEntry | None, sender: str, announcement: Announcement, now: float
    ) -> None:
        # A chunk requested with another group goes to its topic, not to this node's. Wait once: then a peer has it.
        other_group = "" if announcement.group == self._group else announcement.group
        if other_group and self._attempts.get(digest):
            return
        # Neither does a repetition extend a peer's request, nor does any replace one of this node's.
        if entry is not None and entry.state is ChunkState.REQUESTED and entry.confirmed:
            return
        if self._turns.may_hold(digest, sender, now):
            taken = announcement.kind is AnnouncementKind.TAKE
            self._set_entry(
                digest, _ChunkEntry(sender, ChunkState.REQUESTED, now, now, source=other_group, from_mirror=taken)
            )

    def _peer_wants(self, digest: str, entry: _ChunkEntry | None, sender: str, now: float) -> None:
        if (
            entry is None
            or entry.state is ChunkState.ANNOUNCED
            or (entry.owner == sender and entry.state is ChunkState.REQUESTED)
        ):
            # A peer that requested it and wants it again has given up on its request.
            if self._turns.may_hold(digest, sender, now):
                self._set_entry(digest, _ChunkEntry(sender, ChunkState.CLAIMED, now, now))
        elif entry.owner == sender:
            entry.announced_at = now
        elif entry.owner == self._node and len(self._busy) < MAX_DIGESTS:
            self._busy.append(digest)
            entry.busy_sent = True

    def _peer_is_busy(self, digest: str, entry: _ChunkEntry | None, sender: str, now: float) -> None:
        if entry is not None and entry.state not in (ChunkState.ANNOUNCED, ChunkState.CLAIMED):
            return
        # If two nodes told each other to wait, the one whose name sorts first wins on both.
        if entry is not None and entry.owner == self._node and entry.busy_sent and self._node < sender:
            return
        if self._turns.may_hold(digest, sender, now):
            self._set_entry(digest, _ChunkEntry(sender, ChunkState.REQUESTED, now, now, confirmed=False))

    def _own_want_received(self, digest: str, entry: _ChunkEntry | None, now: float) -> None:
        if entry is not None and entry.owner == self._node and entry.state is ChunkState.ANNOUNCED:
            least = _HOLD_AFTER_FAILURE_S if self._attempts.get(digest) else HOLD_S
            entry.hold_s = min(max(least, _HOLD_ROUND_TRIPS * (now - entry.since)), _MAX_HOLD_S)
            entry.state, entry.since, entry.announced_at = ChunkState.CLAIMED, now, now

    # This node

    def _request_chunks(self, steps: Steps, now: float) -> None:
        in_flight, own = self._requests_in_flight()
        for digest, entry in self._entries.items():
            if self._bucket.free_at(now) > now:
                return
            if (own if self._turns.is_own(digest, now) else in_flight) >= int(self._window.size):
                continue
            if entry.owner == self._node and entry.state is ChunkState.CLAIMED and now >= entry.since + entry.hold_s:
                entry.state, entry.since = ChunkState.REQUESTED, now
                self._turns.requested(digest)
                self._first_requested_at.setdefault(digest, now)
                self._bucket.take(self._missing[digest], now)
                steps.request.append(digest)
                in_flight, own = in_flight + 1, own + 1

    def _announce_wants(self, steps: Steps, now: float) -> None:
        waiting = 0
        for digest, entry in self._entries.items():
            if entry.state in (ChunkState.ANNOUNCED, ChunkState.CLAIMED):
                waiting += 1
            if (
                entry.owner == self._node
                and entry.state is ChunkState.CLAIMED
                and now >= entry.announced_at + REFRESH_S
            ):
                entry.announced_at = now
                steps.want.append(digest)
        ahead = self._ahead()
        if waiting > ahead / 2:
            return
        for digest in list(islice(self._free, ahead - waiting)):
            del self._free[digest]
            self._entries[digest] = _ChunkEntry(self._node, ChunkState.ANNOUNCED, now, now)
            steps.want.append(digest)

    def _requests_in_flight(self) -> tuple[int, int]:
        """Return how many chunks are requested, and how many of them by this node."""
        owners = [
            entry.owner for entry in self._entries.values() if entry.state is ChunkState.REQUESTED and entry.confirmed
        ]
        return len(owners), owners.count(self._node)

    def _ahead(self) -> int:
        """Return how many chunks to announce ahead: as many as arrive while the next ones are being offered."""
        if self._window.smoothed_rtt_s is None:
            return MAX_DIGESTS
        lead = max(1.0, 2 * HOLD_S / self._window.smoothed_rtt_s) + 1
        return min(int(self._window.size * lead) + 4, MAX_DIGESTS)

    # Timeouts

    def _expire(self, now: float) -> None:
        stalled = self._progress_at is not None and now - self._progress_at > max(_STALL_S, 3 * self._window.timeout_s)
        for digest, entry in list(self._entries.items()):
            if now < self._deadline(digest, entry) and not (stalled and self._is_peer_claim(entry)):
                continue
            match entry.state:
                case ChunkState.OFFERED:
                    self._claim_ended(digest, entry.source, Reason.OFFER_NOT_KEPT, entry, now)
                case ChunkState.CLAIMED:
                    self._claim_ended(digest, entry.owner, Reason.CLAIM_NOT_KEPT, entry, now)
                case ChunkState.REQUESTED:
                    if entry.confirmed and not entry.source:
                        self._window.on_loss(now)
                    self._give_up(digest, now)
                    if entry.owner != self._node and self._turns.has_any_delivered(entry.since):
                        self._leave_out(entry.owner, Reason.REQUEST_NOT_KEPT, now)
                case ChunkState.ANNOUNCED:
                    self._release(digest)

    def _claim_ended(self, digest: str, peer: str, reason: Reason, entry: _ChunkEntry, now: float) -> None:
        """Take a chunk back from a peer, and leave the peer out unless it was busy delivering others to the end."""
        if now >= self._turns.ends(digest, peer) and self._turns.has_delivered(peer, entry.since):
            self._release(digest)
        else:
            self._leave_out(peer, reason, now)

    def _is_peer_claim(self, entry: _ChunkEntry) -> bool:
        """Return whether a peer claims it and has not requested it."""
        return entry.owner != self._node and entry.state is ChunkState.CLAIMED

    def _deadline(self, digest: str, entry: _ChunkEntry) -> float:
        """Return when an entry's state times out."""
        match entry.state:
            case ChunkState.ANNOUNCED:
                return entry.since + _ECHO_S
            case ChunkState.CLAIMED if entry.owner == self._node:
                return math.inf
            case ChunkState.CLAIMED:
                return min(entry.announced_at + _LEASE_S, self._turns.ends(digest, entry.owner))
            case ChunkState.OFFERED:
                return min(self._last_seen[entry.source] + _OFFER_S, self._turns.ends(digest, entry.source))
        usual = self._window.timeout_s
        timeout_s = max(usual, min(usual * (1 << self._attempts.get(digest, 0)), _MAX_TIMEOUT_S))
        if entry.owner == self._node:
            return entry.since + timeout_s
        # The requesting node retries; peers give it time for that.
        return min(entry.since + PEER_TIMEOUTS * timeout_s, self._turns.ends(digest, entry.owner))

    def _wake_times(self, now: float) -> Iterator[float]:
        in_flight, own = self._requests_in_flight()
        for digest, entry in self._entries.items():
            yield self._deadline(digest, entry)
            if entry.owner == self._node and entry.state is ChunkState.CLAIMED:
                yield entry.announced_at + REFRESH_S
                if (own if self._turns.is_own(digest, now) else in_flight) < int(self._window.size):
                    yield max(entry.since + entry.hold_s, self._bucket.free_at(now))
        if self._free and len(self._entries) < MAX_DIGESTS:
            yield now + HOLD_S

    def _give_up(self, digest: str, now: float) -> None:
        self._attempts[digest] = self._attempts.get(digest, 0) + 1
        self._release(digest)

    def _release(self, digest: str) -> None:
        del self._entries[digest]
        self._free[digest] = None

    def _set_entry(self, digest: str, entry: _ChunkEntry) -> None:
        self._free.pop(digest, None)
        self._entries[digest] = entry

    def _leave_out(self, name: str, reason: Reason, now: float) -> None:
        if seconds := self._distrust.leave_out(name, now):
            self._left_out.append(LeftOut(name, reason, seconds))
        for digest, entry in list(self._entries.items()):
            if (entry.state is ChunkState.OFFERED and entry.source == name) or (
                entry.state is ChunkState.CLAIMED and entry.owner == name
            ):
                self._release(digest)
