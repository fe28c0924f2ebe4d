"""Limits how many messages a second each site, and each of its nodes, may send. Pure: no clock.

Four minutes' worth may come at once: after an outage, all that waits at the broker does. A node may use half of its site's rate,
so that a stolen one leaves the other half to its neighbours. What is beyond is refused unread: it costs the service almost nothing.

Each site's nodes are remembered apart, and only so many: a site that invents names uses up nothing that other sites need.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from hedgerow.topics import is_name

BURST_S: Final = 240.0
"""By default, half of it is more than the largest queue for the service at a rendered broker: 100,000 messages."""

MOST_SITES: Final = 10_000
MOST_NODES: Final = 1000
"""Most sites, and most nodes of each, that have a rate of their own; further ones share one."""
_SHARED: Final = ""
REASON: Final = "too-many-messages"


@dataclass(slots=True)
class _Bucket:
    """A token bucket: how many messages it admits now, and when that was computed."""

    left: float
    at: float

    def has_one(self, per_s: float, now: float) -> bool:
        """Add what has come since the last call, and return whether a message is admitted."""
        self.left = min(per_s * BURST_S, self.left + (now - self.at) * per_s)
        self.at = now
        return self.left >= 1


@dataclass(slots=True)
class _SiteBuckets:
    """The buckets of a site and of its nodes."""

    whole: _Bucket
    nodes: dict[str, _Bucket] = field(default_factory=dict)
    swept_at: float = 0.0

    def of_node(self, name: str, per_s: float, now: float) -> _Bucket:
        """Return the bucket of a node."""
        bucket = self.nodes.get(name)
        if bucket is not None:
            return bucket
        if (
            len(self.nodes) >= MOST_NODES and now - self.swept_at >= BURST_S
        ):  # the ones that are full again are not needed
            self.nodes = {name: one for name, one in self.nodes.items() if now - one.at < BURST_S}
            self.swept_at = now
        name = name if len(self.nodes) < MOST_NODES else _SHARED
        return self.nodes.setdefault(name, _Bucket(per_s * BURST_S, now))


class SiteRates:
    """The rates of all sites.

    Args:
        per_s: messages per second of one site.
    Attributes:
        refused: messages refused since `take_refused`, by site.
    """

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self.refused: Counter[str] = Counter()
        self._sites: dict[str, _SiteBuckets] = {}

    def admits(self, topic: str, now: float) -> bool:
        """Count a message, and return whether it is within the rates.

        Args:
            topic: `hedgerow/v1/REGION/SITE/NODE/…`; others share one rate.
            now: monotonic seconds.
        """
        levels = topic.split("/", 5)
        site, node = (levels[3], levels[4]) if len(levels) > 5 else (_SHARED, _SHARED)
        buckets = self._sites.get(site)
        if buckets is None:
            site = site if is_name(site) and len(self._sites) < MOST_SITES else _SHARED
            buckets = self._sites.setdefault(site, _SiteBuckets(_Bucket(self.per_s * BURST_S, now)))
        if buckets.whole.has_one(self.per_s, now):
            of_node = buckets.of_node(node, self.per_s / 2, now)
            if of_node.has_one(self.per_s / 2, now):
                of_node.left -= 1
                buckets.whole.left -= 1
                return True
        self.refused[site] += 1
        return False

    def take_refused(self) -> Counter[str]:
        """Return how many messages were refused since the last call, by site."""
        refused, self.refused = self.refused, Counter()
        return refused
