"""Limits how many messages a second each site, and each of its nodes, may send. Pure: no clock.

A minute's worth may come at once, as after an outage. A node may use half of its site's rate, so that a stolen one leaves the
other half to its neighbours. What is beyond is refused unread: it costs the service almost nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

BURST_S: Final = 60.0
_MOST_BUCKETS: Final = 100_000
REASON: Final = "too-many-messages"


@dataclass(slots=True)
class _Bucket:
    """A token bucket: how many messages it admits now, and when that was computed."""

    left: float
    at: float


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
        self._buckets: dict[str, _Bucket] = {}

    def admits(self, topic: str, now: float) -> bool:
        """Count a message, and return whether it is within the rates.

        Args:
            topic: `hedgerow/v1/REGION/SITE/NODE/…`; others share one rate.
            now: monotonic seconds.
        """
        levels = topic.split("/", 5)
        site, name = (levels[3], levels[4]) if len(levels) > 5 else ("", "")
        node = f"{site}/{name}"
        of_node, of_site = self._bucket(node, self.per_s / 2, now), self._bucket(site, self.per_s, now)
        if of_node.left < 1 or of_site.left < 1:
            self.refused[site] += 1
            return False
        of_node.left -= 1
        of_site.left -= 1
        return True

    def take_refused(self) -> Counter[str]:
        """Return how many messages were refused since the last call, by site."""
        refused, self.refused = self.refused, Counter()
        return refused

    def _bucket(self, name: str, per_s: float, now: float) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _MOST_BUCKETS:  # the ones that are full again are not needed
                full_since = now - BURST_S
                self._buckets = {key: one for key, one in self._buckets.items() if one.at > full_since}
                if len(self._buckets) >= _MOST_BUCKETS:
                    name = "…"
            bucket = self._buckets.setdefault(name, _Bucket(per_s * BURST_S, now))
        bucket.left = min(per_s * BURST_S, bucket.left + (now - bucket.at) * per_s)
        bucket.at = now
        return bucket
