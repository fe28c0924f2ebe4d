"""Limits how many messages a second each site, and each of its nodes, may send. Pure: no clock.

Four minutes' worth may come at once: after an outage, all that waits at the broker does. A node may use half of its site's rate,
so that a stolen one leaves the other half to its neighbours. What is beyond is refused unread: it costs the service almost nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

BURST_S: Final = 240.0
"""By default, half of it is more than the largest queue for the service at a rendered broker: 100,000 messages."""

MOST_NODES: Final = 5000
"""Names of one site that have a rate of their own. Those beyond share one, so that a site that invents names uses no memory."""

_MOST_SITES: Final = 10_000
REASON: Final = "too-many-messages"


@dataclass(slots=True)
class _Bucket:
    """A token bucket: how many messages it admits now, and when that was computed."""

    left: float
    at: float

    def fill(self, per_s: float, now: float) -> None:
        self.left = min(per_s * BURST_S, self.left + (now - self.at) * per_s)
        self.at = now


@dataclass(slots=True)
class _Site:
    """The bucket of a site, and those of its nodes."""

    all: _Bucket
    nodes: dict[str, _Bucket] = field(default_factory=dict)


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
        self._sites: dict[str, _Site] = {}

    def admits(self, topic: str, now: float) -> bool:
        """Count a message, and return whether it is within the rates.

        Args:
            topic: `hedgerow/v1/REGION/SITE/NODE/…`; others share one rate.
            now: monotonic seconds.
        """
        levels = topic.split("/", 5)
        site, name = (levels[3], levels[4]) if len(levels) > 5 else ("", "")
        if site not in self._sites and len(self._sites) >= _MOST_SITES:
            site = ""
        of_site = self._sites.get(site)
        if of_site is None:
            of_site = self._sites[site] = _Site(_Bucket(self.per_s * BURST_S, now))
        of_site.all.fill(self.per_s, now)
        if of_site.all.left < 1:
            self.refused[site] += 1
            return False
        if name not in of_site.nodes and len(of_site.nodes) >= MOST_NODES:
            name = ""
        of_node = of_site.nodes.get(name)
        if of_node is None:
            of_node = of_site.nodes[name] = _Bucket(self.per_s / 2 * BURST_S, now)
        of_node.fill(self.per_s / 2, now)
        if of_node.left < 1:
            self.refused[site] += 1
            return False
        of_node.left -= 1
        of_site.all.left -= 1
        return True

    def take_refused(self) -> Counter[str]:
        """Return how many messages were refused since the last call, by site."""
        refused, self.refused = self.refused, Counter()
        return refused
