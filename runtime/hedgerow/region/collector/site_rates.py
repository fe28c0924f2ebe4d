"""Limits how much each site, and each of its nodes, may send: messages a second, and the time that reading them takes. Pure: no clock.

Four minutes' worth of messages may come at once: after an outage, all that waits at the broker does. A node may use half of its
site's share, so that a stolen one leaves the other half to its neighbours. What is beyond is refused unread: it costs the service
almost nothing.

Messages alone are no measure: a megabyte of empty lists takes as long to read as ten thousand results. So the time is limited too,
of messages that take unusually long.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

BURST_S: Final = 240.0
"""By default, half of it is more than the largest queue for the service at a rendered broker: 100,000 messages."""

USUAL_S: Final = 0.0005
"""Time that reading a message may take without being charged: several times what a result takes."""

WORK_SHARE: Final = 0.25
"""Share of the service's time that reading one site's unusual messages may take."""
WORK_BURST_S: Final = 2.0
"""How long it may take at once."""
_MOST_SITES: Final = 10_000
_OTHERS: Final = "…"
REASON: Final = "too-many-messages"


@dataclass(slots=True)
class _Allowance:
    """Token buckets: what is left now, and when that was computed."""

    messages: float
    work_s: float
    at: float

    def refill(self, per_s: float, share: float, now: float) -> bool:
        """Add what came back since, up to a burst; return whether something is left."""
        passed_s, self.at = now - self.at, now
        self.messages = min(BURST_S * per_s * share, self.messages + passed_s * per_s * share)
        self.work_s = min(WORK_BURST_S * share, self.work_s + passed_s * WORK_SHARE * share)
        return self.messages >= 1 and self.work_s > 0


@dataclass(slots=True)
class _Site:
    own: _Allowance
    nodes: dict[str, _Allowance] = field(default_factory=dict)


class SiteRates:
    """The rates of all sites.

    Args:
        per_s: messages per second of one site.
        nodes: most nodes of one site; what it sends under further names shares one rate.
    Attributes:
        refused: messages refused since `take_refused`, by site.
    """

    def __init__(self, per_s: float, nodes: int = 1000) -> None:
        self.per_s = per_s
        self.refused: Counter[str] = Counter()
        self._most_nodes = nodes
        self._sites: dict[str, _Site] = {}

    def admits(self, topic: str, now: float) -> bool:
        """Count a message, and return whether it is within the rates.

        Args:
            topic: `hedgerow/v1/REGION/SITE/NODE/…`; others share one rate.
            now: monotonic seconds.
        """
        name, node_name = _names(topic)
        site = self._site(name, now)
        if site.own.refill(self.per_s, 1.0, now):  # else its nodes are not looked at: it can invent any number
            node = self._node(site, node_name, now)
            if node.refill(self.per_s, 0.5, now):
                site.own.messages -= 1
                node.messages -= 1
                return True
        self.refused[name] += 1
        return False

    def charge(self, topic: str, work_s: float, now: float) -> None:
        """Count the time that reading an admitted message took, in seconds of this thread."""
        if (work_s := work_s - USUAL_S) <= 0:
            return
        name, node_name = _names(topic)
        site = self._site(name, now)
        site.own.work_s -= work_s
        self._node(site, node_name, now).work_s -= work_s

    def take_refused(self) -> Counter[str]:
        """Return how many messages were refused since the last call, by site."""
        refused, self.refused = self.refused, Counter()
        return refused

    def _site(self, name: str, now: float) -> _Site:
        if name not in self._sites and len(self._sites) >= _MOST_SITES:
            name = _OTHERS
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(self._new(1.0, now))
        return site

    def _node(self, site: _Site, name: str, now: float) -> _Allowance:
        if name not in site.nodes and len(site.nodes) >= self._most_nodes:
            name = _OTHERS
        node = site.nodes.get(name)
        if node is None:
            node = site.nodes[name] = self._new(0.5, now)
        return node

    def _new(self, share: float, now: float) -> _Allowance:
        return _Allowance(BURST_S * self.per_s * share, WORK_BURST_S * share, now)


def _names(topic: str) -> tuple[str, str]:
    """Return the site and the node that a topic names."""
    levels = topic.split("/", 5)
    return (levels[3], levels[4]) if len(levels) > 5 else ("", "")
