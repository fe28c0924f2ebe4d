"""Quotas of sites: what a site has used today, and what of it is refused. One site never uses up what others need.

Half of a site's quota is each node's own. Beyond it a node may use what its site leaves, down to what is kept for its neighbours:
half of the quota for the rest of the day. So a lone busy node may use all of it by the end of the day, and a stolen one leaves the
others half of the rate, whenever they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from hedgerow.region.config import QuotasSection
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.nodes import KnownNode
from hedgerow.region.store.records import EventRecord, GapRecord, HealthRecord, ResultRecord, StoreRecord

MAX_SITES: Final = 1000
"""Most sites whose refusals are counted apart; those of further ones are counted together."""
_DAY_S: Final = 86_400
_STORED: Final = (ResultRecord, EventRecord, GapRecord, HealthRecord)
OWN_SHARE: Final = 0.5
"""Share of its site's quota that each node has to itself; as much is kept for all others, for the rest of the day."""
_SAVE: Final = (
    "INSERT INTO usage (node, day, stored_rows, stored_bytes, events) VALUES (?, ?, ?, ?, ?) ON CONFLICT (node) DO UPDATE "
    "SET day = excluded.day, stored_rows = excluded.stored_rows, stored_bytes = excluded.stored_bytes, events = excluded.events"
)


class Refusal(NamedTuple):
    """Why a message is refused: a code, and the numbers."""

    reason: str
    detail: str


@dataclass(slots=True)
class Usage:
    """What was stored on a day."""

    rows: int = 0
    bytes: int = 0
    events: int = 0

    def add(self, record: StoreRecord) -> None:
        """Add a record."""
        self.rows += 1
        self.bytes += record.size
        self.events += isinstance(record, EventRecord | GapRecord)

    def of(self, record: StoreRecord, limits: QuotasSection) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the use and the limit of each quota that a record counts for."""
        yield "rows", self.rows, limits.rows_per_day
        yield "bytes", self.bytes, limits.bytes_per_day
        if isinstance(record, EventRecord | GapRecord):
            yield "events", self.events, limits.events_per_day


_NOTHING: Final = Usage()


def find_over(site: Usage, node: Usage, record: StoreRecord, limits: QuotasSection, day_left: float) -> Refusal | None:
    """Return the quota that is used up for a node; None: none is. Pure.

    Args:
        site, node: what the site and this node of it have used today.
        day_left: share of the day that is left: 1 at its start.
    """
    kept = (1.0 - OWN_SHARE) * day_left
    for (name, of_site, limit), (_, of_node, _) in zip(site.of(record, limits), node.of(record, limits), strict=True):
        if of_site >= limit:
            return Refusal(f"too-many-{name}", f"its site has {of_site:,} {name} today; its quota is {limit:,}")
        if of_node >= limit * OWN_SHARE and of_site >= limit * (1.0 - kept):
            return Refusal(
                f"too-many-{name}",
                f"it has {of_node:,} {name} today, its site {of_site:,} of {limit:,}; {limit * kept:,.0f} are kept for other nodes",
            )
    return None


class SiteQuotas:
    """The quotas of all sites.

    Args:
        database: with what was used so far.
        limits: of one site.
        nodes: all known nodes.
    """

    def __init__(self, database: Database, limits: QuotasSection, nodes: list[KnownNode]) -> None:
        self._limits = limits
        self._nodes: Counter[str] = Counter(node.site for node in nodes)
        self._refused = {site for (site,) in database.rows("SELECT DISTINCT site FROM refusal")}
        self._day = 0
        self._of_site: dict[str, Usage] = {}
        self._of_node: dict[int, Usage] = {}
        self._changed: set[int] = set()
        self._stored = database.rows("SELECT u.node, n.site, u.day, u.stored_rows, u.stored_bytes, u.events FROM usage u JOIN node n ON n.id = u.node")  # fmt: skip

    def allows_node(self, site: str) -> bool:
        """Whether a site may have one more node."""
        return self._nodes[site] < self._limits.nodes

    def add_node(self, site: str) -> None:
        """Count a new node."""
        self._nodes[site] += 1

    def label(self, site: str) -> str:
        """Return the site under which a refusal is counted: itself, or "" if there are too many of them."""
        if site not in self._nodes and site not in self._refused:
            if len(self._refused) >= MAX_SITES:
                return ""
            self._refused.add(site)
        return site

    def refusal(self, record: StoreRecord, node: KnownNode, now: float) -> Refusal | None:
        """Return why a record is refused; None: it is not."""
        if not isinstance(record, _STORED):
            return None
        day, passed_s = divmod(now, _DAY_S)
        self._turn(int(day))
        site = self._of_site.get(node.site)
        if site is None:
            return None
        found = find_over(site, self._of_node.get(node.id, _NOTHING), record, self._limits, 1 - passed_s / _DAY_S)
        return found and Refusal(found.reason, f"{node.site}/{node.name}: {found.detail}")

    def add(self, record: StoreRecord, node: KnownNode) -> None:
        """Count a record that is stored."""
        self._of_site.setdefault(node.site, Usage()).add(record)
        self._of_node.setdefault(node.id, Usage()).add(record)
        self._changed.add(node.id)

    def save(self, database: Database) -> None:
        """Write what has changed, within the caller's transaction."""
        if self._changed:
            used = [(node, self._of_node[node]) for node in self._changed]
            database.many(_SAVE, [(node, self._day, one.rows, one.bytes, one.events) for node, one in used])
            self._changed.clear()

    def _turn(self, day: int) -> None:
        """Begin a new day; at first, go on with what was stored of it."""
        if day == self._day:
            return
        self._day = day
        self._of_site.clear()
        self._of_node.clear()
        self._changed.clear()
        for node, site, stored_day, rows, size, events in self._stored:
            if stored_day == day:
                self._of_node[node] = Usage(rows, size, events)
                total = self._of_site.setdefault(site, Usage())
                total.rows, total.bytes, total.events = total.rows + rows, total.bytes + size, total.events + events
        self._stored = []
