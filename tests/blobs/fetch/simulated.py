"""Simulated site: clock, brokers, WAN, region and disks are simulated; schedulers and offers are real.

Time jumps from event to event, so hours take milliseconds, and a seed determines the run.
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
    """The link between site and region.

    Attributes:
        latency_s: one way.
        bytes_per_s: down to the site.
        corrupts: share of damaged chunks.
        outages: start and length of each; messages in flight are lost.
    """

    latency_s: float = 0.02
    bytes_per_s: float = 1e6
    corrupts: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()

    def up_at(self, now: float) -> bool:
        return not any(start <= now < start + length for start, length in self.outages)


@dataclass(frozen=True)
class Part:
    """A chunk in flight; `sender` None: the region."""

    digest: str
    sender: str | None
    good: bool


@dataclass
class SimulatedNode:
    """A node of the site.

    Attributes:
        lies: it sends damaged chunks to peers.
        mute: it offers chunks but does not send them.
        sourced: it fetches from a mirror and shares the chunks.
        stored: its chunks.
    """

    name: str
    lies: bool = False
    mute: bool = False
    sourced: bool = False
    stored: set[str] = field(default_factory=set)
    alive: bool = False
    connected: bool = True
    done_at: float | None = None
    scheduler: FetchScheduler | None = None
    offers: PeerOffers | None = None
    wake_at: float = float("inf")
    fetching: set[str] = field(default_factory=set)


class SimulatedSite:
    """The whole simulation.

    Args:
        sizes: chunk sizes by digest.
        wan: link to the region.
        seed: of all random choices.
        bytes_per_s: limit on requests by the site's nodes.
        lan_s: delay of messages between nodes.
    Attributes:
        wan_bytes: bytes received over the WAN.
        announcements: number published by nodes so far.
    """

    def __init__(
        self, sizes: dict[str, int], wan: Wan, seed: int, bytes_per_s: int | None = None, lan_s: float = LAN_S
    ) -> None:
        self.sizes = sizes
        self.wan = wan
        self.now = 0.0
        self.nodes: dict[str, SimulatedNode] = {}
        self.wan_bytes = 0
        self.announcements = 0
        self._random = Random(seed)
        self._bytes_per_s = bytes_per_s
        self._lan_s = lan_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._region_free_at = 0.0
        self._sent_at: dict[str, float] = {}

    # Events

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def join(self, node: SimulatedNode, when: float) -> None:
        self.nodes[node.name] = node
        self.at(when, lambda: self._start(node))

    def kill(self, name: str, when: float) -> None:
        def die() -> None:
            self.nodes[name].alive = False

        self.at(when, die)

    def disconnect(self, name: str, when: float, seconds: float) -> None:
        """Cut a node's link to the site's broker for some time; it misses messages sent meanwhile."""

        def cut() -> None:
            self.nodes[name].connected = False

        def reconnect() -> None:
            node = self.nodes[name]
            node.connected = True
            if node.scheduler is not None:
                node.scheduler.paused(seconds)
            self._pump(node)

        self.at(when, cut)
        self.at(when + seconds, reconnect)

    def run(self, until_s: float) -> None:
        """Run until all events are processed, or until this time."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, what = heapq.heappop(self._events)
            what()

    @property
    def unfinished(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.alive and node.done_at is None]

    # Nodes

    def _start(self, node: SimulatedNode) -> None:
        node.alive = True
        missing = {digest: size for digest, size in self.sizes.items() if digest not in node.stored}
        node.offers = PeerOffers(node.name, node.stored.__contains__, Random(self._random.random()))
        window, bucket = FetchWindow(), TokenBucket(self._bytes_per_s)
        node.scheduler = FetchScheduler(node.name, GROUP, missing, window, bucket)
        self._pump(node)

    def _pump(self, node: SimulatedNode) -> None:
        """Do what a fetcher does on every event."""
        if not node.alive or not node.connected or node.offers is None:
            return
        wake_at = float("inf")
        if node.scheduler is not None and not node.scheduler.missing:
            node.scheduler, node.done_at = None, self.now
        if node.scheduler is not None:
            steps = node.scheduler.next(self.now)
            request_kind = AnnouncementKind.TAKE if node.sourced else AnnouncementKind.ASK
            for kind, digests in (
                (AnnouncementKind.WANT, steps.want),
                (AnnouncementKind.BUSY, steps.busy),
                (request_kind, steps.request),
            ):
                if digests:
                    exclude = steps.distrusted if kind is AnnouncementKind.WANT else ()
                    self._announce(node, Announcement(kind, GROUP, tuple(digests), exclude))
            if node.sourced:
                self._fetch_from_mirror(node, steps.request)
            wake_at = min(steps.wake_at, self.now + 1.0)
        due, offers_wake_at = node.offers.next(self.now)
        for group, digests in due.items():
            self._announce(node, Announcement(AnnouncementKind.HAVE, group, tuple(digests)))
        while (request := node.offers.take()) is not None:
            if not node.mute:
                self._to_site(Part(request.digest, node.name, good=not node.lies))
        wake_at = min(wake_at, offers_wake_at)
        if wake_at < float("inf") and not self.now < node.wake_at <= wake_at:
            node.wake_at = wake_at
            self.at(wake_at, lambda: self._pump(node))

    def _announce(self, node: SimulatedNode, announcement: Announcement) -> None:
        self.announcements += 1
        if announcement.kind is AnnouncementKind.ASK and self.wan.up_at(self.now):
            self.at(self.now + self.wan.latency_s, lambda: self._region_receives(announcement))
        # The site's broker delivers everything to all nodes in one order.
        self.at(self.now + self._lan_s, lambda: self._all(lambda each: self._deliver(each, announcement, node.name)))

    def _all(self, act: Callable[[SimulatedNode], None]) -> None:
        for node in list(self.nodes.values()):
            if node.alive and node.connected:
                act(node)
                self._pump(node)

    def _deliver(self, node: SimulatedNode, announcement: Announcement, sender: str) -> None:
        assert node.offers is not None
        if announcement.kind is AnnouncementKind.WANT:
            node.offers.on_want(announcement, sender, self.now)
        elif announcement.kind is AnnouncementKind.HAVE:
            node.offers.on_have(announcement, sender, self.now)
        if node.scheduler is not None:
            node.scheduler.on_announcement(announcement, sender, self.now)

    def _to_site(self, part: Part) -> None:
        self.at(self.now + self._lan_s, lambda: self._all(lambda each: self._receive(each, part)))

    def _receive(self, node: SimulatedNode, part: Part) -> None:
        if node.scheduler is None or part.digest not in node.scheduler.missing or part.sender == node.name:
            return
        if not part.good:
            node.scheduler.failed(part.digest, part.sender, self.now)
        elif node.scheduler.arrived(part.digest, part.sender, self.now):
            node.stored.add(part.digest)

    # Region and mirrors

    def _fetch_from_mirror(self, node: SimulatedNode, digests: list[str]) -> None:
        """Fetch chunks from a mirror, each once at a time; outages make them fail."""
        for digest in digests:
            if digest in node.fetching:
                continue
            node.fetching.add(digest)
            self._region_free_at = max(self._region_free_at, self.now) + self.sizes[digest] / self.wan.bytes_per_s
            self.at(
                self._region_free_at + 2 * self.wan.latency_s, lambda digest=digest: self._mirror_delivers(node, digest)
            )

    def _mirror_delivers(self, node: SimulatedNode, digest: str) -> None:
        node.fetching.discard(digest)
        self.wan_bytes += self.sizes[digest]
        if not node.alive or node.scheduler is None or digest not in node.scheduler.missing:
            return
        if self.wan.up_at(self.now) and self._random.random() >= self.wan.corrupts:
            node.scheduler.arrived(digest, None, self.now)
            node.stored.add(digest)
            if not node.mute:
                self._to_site(Part(digest, node.name, good=not node.lies))
        else:
            node.scheduler.failed(digest, None, self.now)
        self._pump(node)

    def _region_receives(self, announcement: Announcement) -> None:
        for digest in announcement.digests:
            if self.now - self._sent_at.get(digest, float("-inf")) < RESEND_AFTER_S:
                continue
            size = self.sizes[digest]
            self._region_free_at = max(self._region_free_at, self.now) + size / self.wan.bytes_per_s
            self._sent_at[digest] = self.now  # queued by the region's broker
            part = Part(digest, None, good=self._random.random() >= self.wan.corrupts)
            self.at(self._region_free_at + self.wan.latency_s, lambda part=part: self._cross_wan(part))

    def _cross_wan(self, part: Part) -> None:
        self.wan_bytes += self.sizes[part.digest]
        if self.wan.up_at(self.now):
            self._to_site(part)
