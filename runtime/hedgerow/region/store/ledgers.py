"""Ledgers of outboxes, as stored: read when first needed, written with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson
import structlog

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Ack
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import CURRENT_ADDRESSES
from hedgerow.region.store.nodes import KnownNode
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

MAX_EPOCHS: Final = 1000
"""Most epochs of one outbox. A new one begins when a node has lost its outbox file."""
MAX_RANGES: Final = 4096
"""Most ranges of numbers of one priority. An outbox fills its first hole first, so many holes indicate a fault."""

_MOST_LOADED: Final = 10_000

LedgerKey: TypeAlias = tuple[Address, str]
"""Address of the node, and epoch of its outbox."""


@dataclass(slots=True)
class OutboxLedger:
    """A ledger and the id of its row."""

    id: int
    ledger: Ledger

    def is_scattered(self, priority: int, first: int) -> bool:
        """Whether adding a number would create one hole too many."""
        received = self.ledger.ranges(priority)
        return len(received) >= MAX_RANGES and first > received.through + 1


class Ledgers:
    """The ledgers of all outboxes.

    Args:
        database: the database with them.
        of_a_site: most epochs of the outboxes of one site.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, of_a_site: int) -> None:
        self._database = database
        self._of_a_site = of_a_site
        self._loaded: dict[LedgerKey, OutboxLedger] = {}
        self._epochs: Counter[int] = Counter(dict(database.rows("SELECT node, count(*) FROM ledger GROUP BY node")))
        counted = "SELECT n.site, count(*) FROM ledger l JOIN node n ON n.id = l.node WHERE n.forgotten_at IS NULL GROUP BY n.site"
        self._sites: Counter[str] = Counter(dict(database.rows(counted)))

    def trim(self) -> None:
        """Forget all ledgers if there are very many in memory; call it between batches."""
        if len(self._loaded) > _MOST_LOADED:
            self._loaded.clear()

    def of(self, node: KnownNode, epoch: str) -> OutboxLedger | None:
        """Return the ledger of an epoch, creating it if necessary; None if the node or its site has too many epochs."""
        key = (node.address, epoch)
        outbox = self._loaded.get(key)
        if outbox is not None:
            return outbox
        rows = self._database.rows("SELECT id, state FROM ledger WHERE node = ? AND epoch = ?", (node.id, epoch))
        if rows:
            ((row, state),) = rows
            ledger = self._read(row, epoch, state)
        elif self._epochs[node.id] >= MAX_EPOCHS or self._sites[node.site] >= self._of_a_site:
            return None
        else:
            ledger = Ledger(epoch)
            new = "INSERT INTO ledger (node, epoch, state) VALUES (?, ?, '{}') RETURNING id"
            ((row,),) = self._database.rows(new, (node.id, epoch))
            self._epochs[node.id] += 1
            self._sites[node.site] += 1
        outbox = self._loaded[key] = OutboxLedger(row, ledger)
        return outbox

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


def save_ledgers(database: Database, outboxes: Iterable[OutboxLedger]) -> None:
    """Update the rows of ledgers."""
    states = [(json_text(outbox.ledger.state()), outbox.id) for outbox in outboxes]
    database.many("UPDATE ledger SET state = ? WHERE id = ?", states)


def newest_acks(database: Database) -> list[tuple[LedgerKey, Ack]]:
    """Return an acknowledgement for the newest epoch of every outbox."""
    rows = database.rows(
        f"SELECT n.region, n.site, n.name, l.epoch, l.state FROM ledger l JOIN {CURRENT_ADDRESSES} n ON n.id = l.node "  # noqa: S608
        "WHERE l.id IN (SELECT max(id) FROM ledger GROUP BY node)"
    )
    acks = []
    for region, site, name, epoch, state in rows:
        try:
            acks.append(((Address(region, site, name), epoch), ledger_of(epoch, state).ack()))
        except Exception:
            log.exception("ledger-unreadable", node=f"{region}/{site}/{name}", epoch=epoch)
    return acks


def ledger_of(epoch: str, state: str) -> Ledger:
    """Decode a stored ledger."""
    return Ledger(epoch, {int(priority): ranges for priority, ranges in orjson.loads(state).items()})


def json_text(value: Any) -> str:
    """Return a value as JSON; keys may be numbers."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
