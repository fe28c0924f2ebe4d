"""Ledgers of outboxes, as stored: read when first needed, written with the batch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import orjson
import structlog

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Ack, Held, StorePosition
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import CURRENT_ADDRESSES
from hedgerow.region.store.nodes import KnownNode
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

MAX_EPOCHS: Final = 1000
"""Most epochs of one outbox that are not closed."""
MAX_RANGES: Final = 4096
"""Most ranges of numbers of one priority. An outbox fills its first hole first, so many holes indicate a fault."""
MAX_CLASHES: Final = 8
"""Most results that are kept beside another one of the same number."""

_MOST_LOADED: Final = 10_000
_NEWEST: Final = 512
"""Results, of each priority, whose checks an outbox gets that asks again: as many as it may have in flight, and more."""

LedgerKey: TypeAlias = tuple[Address, str]
"""Address of the node, and epoch of its outbox."""


@dataclass(slots=True)
class OutboxLedger:
    """The ledger of an epoch, and its row.

    Attributes:
        id: of its row.
        node: its node.
        ledger: the numbers received.
        ended: its last number of each priority, as far as its outbox has told.
        has_ended: whether its outbox has begun another epoch.
        is_closed: whether it has ended and nothing of it is missing; as stored.
        clashes: ids of the ledgers with further results of its numbers.
        has_renumbered: whether some of its results are stored under later numbers.
    """

    id: int
    node: KnownNode
    ledger: Ledger
    ended: dict[int, int] = field(default_factory=dict)
    has_ended: bool = False
    is_closed: bool = False
    clashes: list[int] = field(default_factory=list)
    has_renumbered: bool = False

    def is_scattered(self, priority: int, first: int) -> bool:
        """Whether adding a number would create one hole too many."""
        received = self.ledger.ranges(priority)
        return len(received) >= MAX_RANGES and first > received.through + 1

    def end(self, lasts: Iterable[tuple[int, int]]) -> None:
        """Note that the epoch has ended, and its last numbers."""
        self.has_ended = True
        for priority, last in lasts:
            self.ended[priority] = max(last, self.ended.get(priority, 0))


class Ledgers:
    """The ledgers of all outboxes.

    Args:
        database: the database with them.
        of_a_site: most epochs of the outboxes of one site that are not closed.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, of_a_site: int) -> None:
        self._database = database
        self._of_a_site = of_a_site
        self._loaded: dict[LedgerKey, OutboxLedger] = {}
        counted = "SELECT node, count(*) FROM ledger WHERE closed_at IS NULL GROUP BY node"
        self._epochs: Counter[int] = Counter(dict(database.rows(counted)))
        counted = "SELECT n.site, count(*) FROM ledger l JOIN node n ON n.id = l.node WHERE l.closed_at IS NULL AND n.forgotten_at IS NULL GROUP BY n.site"
        self._sites: Counter[str] = Counter(dict(database.rows(counted)))

    def trim(self) -> None:
        """Forget all ledgers if there are very many in memory; call it between batches."""
        if len(self._loaded) > _MOST_LOADED:
            self.forget()

    def forget(self) -> None:
        """Read all ledgers again when they are needed: rows were deleted."""
        self._loaded.clear()

    def find(self, node: KnownNode, epoch: str) -> OutboxLedger | None:
        """Return the ledger of an epoch; None if there is none."""
        key = (node.address, epoch)
        outbox = self._loaded.get(key)
        if outbox is not None:
            return outbox
        rows = self._database.rows(
            "SELECT id, state, ended, closed_at FROM ledger WHERE node = ? AND epoch = ? AND clash_of IS NULL",
            (node.id, epoch),
        )
        if not rows:
            return None
        ((row, state, ended, closed_at),) = rows
        clashes = [
            one for (one,) in self._database.rows("SELECT id FROM ledger WHERE clash_of = ? ORDER BY id", (row,))
        ]
        lasts = ended_of(ended)
        renumbered = bool(self._database.rows("SELECT 1 FROM renumbered WHERE ledger = ? LIMIT 1", (row,)))
        outbox = OutboxLedger(
            row,
            node,
            self._read(row, epoch, state),
            lasts or {},
            lasts is not None,
            closed_at is not None,
            clashes,
            renumbered,
        )
        self._loaded[key] = outbox
        return outbox

    def of(self, node: KnownNode, epoch: str) -> OutboxLedger | None:
        """Return the ledger of an epoch, creating it if necessary; None if the node or its site has too many epochs."""
        outbox = self.find(node, epoch)
        if outbox is not None:
            return outbox
        own = min(MAX_EPOCHS, max(1, self._of_a_site // 2))  # the rest is kept for its neighbours
        if self._epochs[node.id] >= own or self._sites[node.site] >= self._of_a_site:
            return None
        new = "INSERT INTO ledger (node, epoch, state) VALUES (?, ?, '{}') RETURNING id"
        ((row,),) = self._database.rows(new, (node.id, epoch))
        self._count(node, 1)
        outbox = self._loaded[node.address, epoch] = OutboxLedger(row, node, Ledger(epoch))
        return outbox

    def _count(self, node: KnownNode, change: int) -> None:
        self._epochs[node.id] += change
        self._sites[node.site] += change

    def add_clash(self, outbox: OutboxLedger, now: float) -> int | None:
        """Create a ledger for further results of an epoch's numbers. Returns: its id; None if there are too many."""
        if len(outbox.clashes) >= MAX_CLASHES:
            return None
        rows = self._database.rows("SELECT epoch FROM ledger WHERE clash_of = ?", (outbox.id,))
        last = max(
            (int(name.rpartition("~")[2]) for (name,) in rows), default=0
        )  # retention may have deleted earlier ones
        epoch = f"{outbox.ledger.epoch}~{last + 1}"  # no outbox can send such a name
        new = "INSERT INTO ledger (node, epoch, state, clash_of, closed_at) VALUES (?, ?, '{}', ?, ?) RETURNING id"
        ((row,),) = self._database.rows(new, (outbox.node.id, epoch, outbox.id, now))
        outbox.clashes.append(row)
        return int(row)

    def save(self, outboxes: Iterable[OutboxLedger], now: float) -> None:
        """Update the rows of ledgers, and close those that have ended and of which nothing is missing."""
        rows = []
        for outbox in outboxes:
            closed = outbox.has_ended and not any(missing_ranges(outbox.ledger, outbox.ended))
            if closed != outbox.is_closed:
                self._count(outbox.node, -1 if closed else 1)
                outbox.is_closed = closed
            ended = json_text(outbox.ended) if outbox.has_ended else ""
            rows.append((json_text(outbox.ledger.state()), ended, now if closed else None, outbox.id))
        self._database.many("UPDATE ledger SET state = ?, ended = ?, closed_at = ? WHERE id = ?", rows)

    def _read(self, row: int, epoch: str, state: str) -> Ledger:
        """Decode a ledger; if that fails, recover it from the stored results and gaps, so that nothing is stored twice."""
        try:
            return ledger_of(epoch, state)
        except Exception:
            log.exception("ledger-unreadable", ledger=row, epoch=epoch)
        ledger = Ledger(epoch)
        known = "SELECT priority, sequence, sequence FROM result WHERE ledger = ? UNION SELECT priority, first, last FROM gap WHERE ledger = ?"
        for priority, first, last in self._database.rows(known, (row, row)):
            ledger.ranges(priority).add(first, last)
        return ledger


def missing_ranges(ledger: Ledger, ended: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield the numbers that have not come although later ones have, or are known to have been given: priority, first, last."""
    received = ledger.state()
    for priority in received.keys() | ended.keys():
        ranges = ledger.ranges(priority)
        last = max(ended.get(priority, 0), received[priority][-1][1] if priority in received else 0)
        for first, until in ranges.missing(last):
            yield priority, first, until


def newest_checks(database: Database, outbox_id: int, clashes: Iterable[int] = (), limit: int = _NEWEST) -> Held:
    """Return the checks of the newest results of an epoch."""
    held: defaultdict[int, list[tuple[int, int | None]]] = defaultdict(list)
    for ledger in (outbox_id, *clashes):
        priorities = database.rows("SELECT DISTINCT priority FROM result WHERE ledger = ?", (ledger,))
        for (priority,) in priorities:
            query = (
                "SELECT sequence, check_value FROM result WHERE ledger = ? AND priority = ? AND check_value IS NOT NULL "
                "ORDER BY sequence DESC LIMIT ?"
            )
            held[priority] += reversed(database.rows(query, (ledger, priority, limit)))
    return dict(held)


def newest_acks(database: Database, at: StorePosition) -> list[tuple[LedgerKey, Ack]]:
    """Return an acknowledgement for the newest epoch of every outbox, as of the store's present position."""
    rows = database.rows(
        f"SELECT n.region, n.site, n.name, l.id, l.epoch, l.state FROM ledger l JOIN {CURRENT_ADDRESSES} n ON n.id = l.node "  # noqa: S608
        "WHERE l.id IN (SELECT max(id) FROM ledger WHERE clash_of IS NULL GROUP BY node)"
    )
    acks = []
    for region, site, name, row, epoch, state in rows:
        try:
            clashes = [one for (one,) in database.rows("SELECT id FROM ledger WHERE clash_of = ? ORDER BY id", (row,))]
            ack = replace(ledger_of(epoch, state).ack(), held=newest_checks(database, row, clashes, limit=64), at=at)
            acks.append(((Address(region, site, name), epoch), ack))
        except Exception:
            log.exception("ledger-unreadable", node=f"{region}/{site}/{name}", epoch=epoch)
    return acks


def ledger_of(epoch: str, state: str) -> Ledger:
    """Decode a stored ledger."""
    return Ledger(epoch, {int(priority): ranges for priority, ranges in orjson.loads(state).items()})


def ended_of(ended: str) -> dict[int, int] | None:
    """Decode the last numbers of an epoch; None if it has not ended."""
    return {int(priority): int(last) for priority, last in orjson.loads(ended).items()} if ended else None


def json_text(value: Any) -> str:
    """Return a value as JSON; keys may be numbers."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
