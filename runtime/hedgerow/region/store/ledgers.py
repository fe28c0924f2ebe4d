"""Ledgers of outboxes, as stored: read when first needed, written with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Ack
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.nodes import KnownNode
from hedgerow.topics import Address

MAX_EPOCHS: Final = 1000
"""Most epochs of one outbox. A new one begins when a node has lost its outbox file."""
MAX_RANGES: Final = 4096
"""Most ranges of numbers of one priority. An outbox fills its first hole first, so many holes indicate a fault."""

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
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loaded: dict[LedgerKey, OutboxLedger] = {}
        self._epochs: Counter[int] = Counter(dict(database.rows("SELECT node, count(*) FROM ledger GROUP BY node")))

    def of(self, node: KnownNode, epoch: str) -> OutboxLedger | None:
        """Return the ledger of an epoch, creating it if necessary; None if the node has too many epochs."""
        key = (Address(node.region, node.site, node.name), epoch)
        outbox = self._loaded.get(key)
        if outbox is not None:
            return outbox
        rows = self._database.rows("SELECT id, state FROM ledger WHERE node = ? AND epoch = ?", (node.id, epoch))
        if rows:
            ((row, state),) = rows
            ledger = ledger_of(epoch, state)
        elif self._epochs[node.id] >= MAX_EPOCHS:
            return None
        else:
            ledger = Ledger(epoch)
            new = "INSERT INTO ledger (node, epoch, state) VALUES (?, ?, '{}') RETURNING id"
            ((row,),) = self._database.rows(new, (node.id, epoch))
            self._epochs[node.id] += 1
        outbox = self._loaded[key] = OutboxLedger(row, ledger)
        return outbox


def save_ledgers(database: Database, outboxes: Iterable[OutboxLedger]) -> None:
    """Update the rows of ledgers."""
    states = [(json_text(outbox.ledger.state()), outbox.id) for outbox in outboxes]
    database.many("UPDATE ledger SET state = ? WHERE id = ?", states)


def newest_acks(database: Database) -> list[tuple[LedgerKey, Ack]]:
    """Return an acknowledgement for the newest epoch of every outbox."""
    rows = database.rows(
        "SELECT n.region, n.site, n.name, l.epoch, l.state FROM ledger l JOIN node n ON n.id = l.node "
        "WHERE l.id IN (SELECT max(id) FROM ledger GROUP BY node)"
    )
    return [
        ((Address(region, site, name), epoch), ledger_of(epoch, state).ack())
        for region, site, name, epoch, state in rows
    ]


def ledger_of(epoch: str, state: str) -> Ledger:
    """Decode a stored ledger."""
    return Ledger(epoch, {int(priority): ranges for priority, ranges in orjson.loads(state).items()})


def json_text(value: Any) -> str:
    """Return a value as JSON; keys may be numbers."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
