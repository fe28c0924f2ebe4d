"""A site that is simulated: clock, brokers, WAN, region and disks are made up. What decides is real: plans and offers.

Time jumps from event to event, so hours take milliseconds, and one seed gives one course of things.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from hedgerow.blobs.announcements import RESEND_AFTER_S, Announcement, AnnouncementKind
from hedgerow.blobs.fetch.pacing import FetchWindow, TokenBucket
from hedgerow.blobs.fetch.scheduler import FetchScheduler
from hedgerow.blobs.peers.peer_offers import PeerOffers

GROUP = "0123456789abcdef"
LAN_S = 0.002


@dataclass(frozen=True)
class Wan:
    """Between the site and the region.

    Attributes:
        latency_s: one way.
        bytes_per_s: downwards.
        corrupts: share of the chunks that come damaged.
        outages: from when, for how long: what is under way then is lost.
    """

    latency_s: float = 0.02
    bytes_per_s: float = 1e6
    corrupts: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()

    def up_at(self, now: float) -> bool:
        return not any(begin <= now < begin + length for begin, length in self.outages)


@dataclass(frozen=True)
class Part:
    """A chunk on its way; `sender` None: the region."""

    digest: str
    sender: str | None
    good: bool


@dataclass
class SimulatedNode:
    """A node of the site.

    Attributes:
        lies: what it gives to neighbours is damaged.
        mute: it offers, and sends nothing.
        sourced: it asks another source than the region, and gives all what comes.
        here: chunks that it has.
    """

    name: str
    lies: bool = False
    mute: bool = False
    sourced: bool = False
    here: set[str] = field(default_factory=set)
    alive: bool = False
    connected: bool = True
    done_at: float | None = None
    plan: FetchScheduler | None = None
    offers: PeerOffers | None = None
    wakes_at: float = float("inf")
    bringing: set[str] = field(default_factory=set)


class SimulatedSite:
    """All of it.

    Args:
        sizes: of the chunks, by digest.
        bytes_per_s: what the site's nodes may ask for.
        lan_s: how long words and chunks take from node to node.
    Attributes:
        wan_bytes: that came over the WAN.
        notes: said by nodes so far.
    """

    def __init__(
        self, sizes: dict[str, int], wan: Wan, seed: int, bytes_per_s: int | None = None, lan_s: float = LAN_S
    ) -> None:
        self.sizes = sizes
        self.wan = wan
        self.now = 0.0
        self.nodes: dict[str, SimulatedNode] = {}
        self.wan_bytes = 0
        self.notes = 0
        self._random = Random(seed)
        self._bytes_per_s = bytes_per_s
        self._lan_s = lan_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._region_free_at = 0.0
        self._sent_at: dict[str, float] = {}

    # What happens

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def joins(self, node: SimulatedNode, when: float) -> None:
        self.nodes[node.name] = node
        self.at(when, lambda: self._begin(node))

    def dies(self, name: str, when: float) -> None:
        def die() -> None:
            self.nodes[name].alive = False

        self.at(when, die)

    def is_away(self, name: str, when: float, seconds: float) -> None:
        """Its link to the site's broker is down; what is said meanwhile it never hears."""

        def go() -> None:
            self.nodes[name].connected = False

        def come() -> None:
            node = self.nodes[name]
            node.connected = True
            if node.plan is not None:
                node.plan.paused(seconds)
            self._pump(node)

        self.at(when, go)
        self.at(when + seconds, come)

    def run(self, until_s: float) -> None:
        """Until everybody is done, or for so long."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, what = heapq.heappop(self._events)
            what()

    @property
    def unfinished(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.alive and node.done_at is None]

    # Nodes

    def _begin(self, node: SimulatedNode) -> None:
        node.alive = True
        missing = {digest: size for digest, size in self.sizes.items() if digest not in node.here}
        node.offers = PeerOffers(node.name, node.here.__contains__, Random(self._random.random()))
        window, bucket = FetchWindow(), TokenBucket(self._bytes_per_s)
        node.plan = FetchScheduler(node.name, GROUP, missing, window, bucket)
        self._pump(node)

    def _pump(self, node: SimulatedNode) -> None:
        """What a fetcher does whenever something came, or it is time."""
        if not node.alive or not node.connected or node.offers is None:
            return
        wakes_at = float("inf")
        if node.plan is not None and not node.plan.missing:
            node.plan, node.done_at = None, self.now
        if node.plan is not None:
            steps = node.plan.next(self.now)
            ask = AnnouncementKind.TAKE if node.sourced else AnnouncementKind.ASK
            for kind, digests in (
                (AnnouncementKind.WANT, steps.want),
                (AnnouncementKind.BUSY, steps.busy),
                (ask, steps.request),
            ):
                if digests:
                    but = steps.distrusted if kind is AnnouncementKind.WANT else ()
                    self._say(node, Announcement(kind, GROUP, tuple(digests), but))
            if node.sourced:
                self._bring(node, steps.request)
            wakes_at = min(steps.wake_at, self.now + 1.0)
        due, again_at = node.offers.next(self.now)
        for group, digests in due.items():
            self._say(node, Announcement(AnnouncementKind.HAVE, group, tuple(digests)))
        while (wanted := node.offers.take()) is not None:
            if not node.mute:
                self._to_site(Part(wanted.digest, node.name, good=not node.lies))
        wakes_at = min(wakes_at, again_at)
        if wakes_at < float("inf") and not self.now < node.wakes_at <= wakes_at:
            node.wakes_at = wakes_at
            self.at(wakes_at, lambda: self._pump(node))

    def _say(self, node: SimulatedNode, announcement: Announcement) -> None:
        self.notes += 1
        if announcement.kind is AnnouncementKind.ASK and self.wan.up_at(self.now):
            self.at(self.now + self.wan.latency_s, lambda: self._region_hears(announcement))
        # The site's broker: all hear everything, in one order.
        self.at(self.now + self._lan_s, lambda: self._all(lambda each: self._hear(each, announcement, node.name)))

    def _all(self, act: Callable[[SimulatedNode], None]) -> None:
        for node in list(self.nodes.values()):
            if node.alive and node.connected:
                act(node)
                self._pump(node)

    def _hear(self, node: SimulatedNode, announcement: Announcement, sender: str) -> None:
        assert node.offers is not None
        if announcement.kind is AnnouncementKind.WANT:
            node.offers.on_want(announcement, sender, self.now)
        elif announcement.kind is AnnouncementKind.HAVE:
            node.offers.on_have(announcement, sender, self.now)
        if node.plan is not None:
            node.plan.on_announcement(announcement, sender, self.now)

    def _to_site(self, part: Part) -> None:
        self.at(self.now + self._lan_s, lambda: self._all(lambda each: self._receive(each, part)))

    def _receive(self, node: SimulatedNode, part: Part) -> None:
        if node.plan is None or part.digest not in node.plan.missing or part.sender == node.name:
            return
        if not part.good:
            node.plan.failed(part.digest, part.sender, self.now)
        elif node.plan.arrived(part.digest, part.sender, self.now):
            node.here.add(part.digest)

    # Beyond the site

    def _bring(self, node: SimulatedNode, digests: list[str]) -> None:
        """Another source gives chunks to one node; a cut breaks them off, and a chunk is asked for once at a time."""
        for digest in digests:
            if digest in node.bringing:
                continue
            node.bringing.add(digest)
            self._region_free_at = max(self._region_free_at, self.now) + self.sizes[digest] / self.wan.bytes_per_s
            self.at(self._region_free_at + 2 * self.wan.latency_s, lambda digest=digest: self._bring_in(node, digest))

    def _bring_in(self, node: SimulatedNode, digest: str) -> None:
        node.bringing.discard(digest)
        self.wan_bytes += self.sizes[digest]
        if not node.alive or node.plan is None or digest not in node.plan.missing:
            return
        if self.wan.up_at(self.now) and self._random.random() >= self.wan.corrupts:
            node.plan.arrived(digest, None, self.now)
            node.here.add(digest)
            if not node.mute:
                self._to_site(Part(digest, node.name, good=not node.lies))
        else:
            node.plan.failed(digest, None, self.now)
        self._pump(node)

    def _region_hears(self, announcement: Announcement) -> None:
        for digest in announcement.digests:
            if self.now - self._sent_at.get(digest, float("-inf")) < RESEND_AFTER_S:
                continue
            size = self.sizes[digest]
            self._region_free_at = max(self._region_free_at, self.now) + size / self.wan.bytes_per_s
            self._sent_at[digest] = self.now  # handed to its broker, which has it wait for the link
            part = Part(digest, None, good=self._random.random() >= self.wan.corrupts)
            self.at(self._region_free_at + self.wan.latency_s, lambda part=part: self._over(part))

    def _over(self, part: Part) -> None:
        self.wan_bytes += self.sizes[part.digest]
        if self.wan.up_at(self.now):
            self._to_site(part)
