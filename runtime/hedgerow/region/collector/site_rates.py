"""Limits how much each site, and each of its nodes, may send: messages a second, and the time that reading them takes. Pure: no clock.

Four minutes' worth of messages may come at once: after an outage, all that waits at the broker does. Half of a site's rate is each
node's own. Beyond it a node may use what its site leaves, down to the half that is kept for its neighbours: a lone busy node has
the whole rate, and a stolen one leaves half of it to the others, whenever they come. What is beyond is refused unread: it costs
the service almost nothing.

Messages alone are no measure: a megabyte of empty lists takes as long to read as ten thousand results. So the time is limited too,
of messages that take unusually long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from hedgerow.topics import Address, is_name

BURST_S: Final = 240.0
"""By default, half of it is more than the largest queue for the service at a rendered broker: 100,000 messages."""
OWN_SHARE: Final = 0.5
"""Share of its site's rate that each node has to itself; as much is kept for all others."""

USUAL_S: Final = 0.0005
"""Time that reading a message may take without being charged: several times what a result takes."""

WORK_SHARE: Final = 0.25
"""Share of the service's time that reading one site's unusual messages may take."""
WORK_BURST_S: Final = 2.0
"""How long it may take at once."""
_MOST_SITES: Final = 10_000
REASON: Final = "too-many-messages"


@dataclass(slots=True)
class _Allowance:
    """Token buckets: what is left now, and when that was computed."""

    messages: float
    work_s: float
    at: float

    def refill(self, per_s: float, share: float, now: float) -> None:
        """Add what came back since, up to a burst."""
        passed_s, self.at = now - self.at, now
        self.messages = min(BURST_S * per_s * share, self.messages + passed_s * per_s * share)
        self.work_s = min(WORK_BURST_S * share, self.work_s + passed_s * WORK_SHARE * share)


@dataclass(slots=True)
class _Site:
    """A site's allowance, those of its known nodes, and one for all other names that it uses."""

    name: str
    own: _Allowance
    unknown: _Allowance
    nodes: dict[str, _Allowance] = field(default_factory=dict)


class SiteRates:
    """The rates of all sites.

    Names are the sender's choice, so only nodes in the store have a rate each; all others of a site share one, as nodes that it
    invents do.

    Args:
        per_s: messages per second of one site.
        nodes: most nodes of one site.
    Attributes:
        refused: messages refused since `take_refused`, by site; "": no valid name.
    """

    def __init__(self, per_s: float, nodes: int = 1000) -> None:
        self.per_s = per_s
        self.refused: Counter[str] = Counter()
        self._most_nodes = nodes
        self._sites: dict[str, _Site] = {}

    def know(self, nodes: Iterable[Address], now: float) -> None:
        """Give each of these nodes, which are in the store, a rate of its own."""
        for node in nodes:
            site = self._site(node.site, now)
            if node.node not in site.nodes and len(site.nodes) < self._most_nodes:
                site.nodes[node.node] = self._new(OWN_SHARE, now)

    def admits(self, topic: str, now: float) -> bool:
        """Count a message, and return whether it is within the rates.

        Args:
            topic: `hedgerow/v1/REGION/SITE/NODE/…`; others share one rate.
            now: monotonic seconds.
        """
        site, node = self._find(topic, now)
        whole = site.own
        whole.refill(self.per_s, 1.0, now)
        node.refill(self.per_s, OWN_SHARE, now)
        kept = 1.0 - OWN_SHARE
        if (
            whole.messages >= 1
            and whole.work_s > 0
            and (node.messages >= 1 or whole.messages >= BURST_S * self.per_s * kept + 1)
            and (node.work_s > 0 or whole.work_s > WORK_BURST_S * kept)
        ):
            whole.messages -= 1
            if node.messages >= 1:  # else it is lent what its neighbours leave
                node.messages -= 1
            return True
        self.refused[site.name] += 1
        return False

    def charge(self, topic: str, work_s: float, now: float) -> None:
        """Count the time that reading an admitted message took, in seconds of this thread."""
        if (work_s := work_s - USUAL_S) <= 0:
            return
        site, node = self._find(topic, now)
        site.own.work_s -= work_s
        if node.work_s > 0:
            node.work_s -= work_s

    def take_refused(self) -> Counter[str]:
        """Return how many messages were refused since the last call, by site."""
        refused, self.refused = self.refused, Counter()
        return refused

    def _find(self, topic: str, now: float) -> tuple[_Site, _Allowance]:
        levels = topic.split("/", 5)
        name, node = (levels[3], levels[4]) if len(levels) > 5 else ("", "")
        site = self._sites.get(name) or self._site(name, now)
        return site, site.nodes.get(node, site.unknown)

    def _site(self, name: str, now: float) -> _Site:
        if not is_name(name) or (name not in self._sites and len(self._sites) >= _MOST_SITES):
            name = ""
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = _Site(name, self._new(1.0, now), self._new(OWN_SHARE, now))
        return site

    def _new(self, share: float, now: float) -> _Allowance:
        return _Allowance(BURST_S * self.per_s * share, WORK_BURST_S * share, now)
