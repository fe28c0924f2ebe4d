"""The ledgers of outboxes as a store keeps them: read when they are first needed, written with the batch."""

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

MOST_EPOCHS: Final = 1000
"""Epochs of one outbox. A new one begins when a node has lost its outbox."""
MOST_RANGES: Final = 4096
"""Ranges of numbers kept of one priority. An outbox fills its first hole first, so many are a fault."""

LedgerKey: TypeAlias = tuple[Address, str]
"""An outbox and its epoch."""


@dataclass(slots=True)
class OutboxLedger:
    """A ledger and its row."""

    id: int
    ledger: Ledger

    def scattered(self, priority: int, first: int) -> bool:
        """Whether a number would make one hole too many."""
        came = self.ledger.ranges(priority)
        return len(came) >= MOST_RANGES and first > came.through + 1


class Ledgers:
    """The ledgers of all outboxes.

    Args:
        database: that they are in.
    Raises: StoreError: it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._books: dict[LedgerKey, OutboxLedger] = {}
        self._epochs: Counter[int] = Counter(dict(database.rows("SELECT node, count(*) FROM ledger GROUP BY node")))

    def of(self, node: KnownNode, epoch: str) -> OutboxLedger | None:
        """The ledger of an epoch, a new one if need be; None if the node has too many."""
        key = (Address(node.region, node.site, node.name), epoch)
        book = self._books.get(key)
        if book is not None:
            return book
        rows = self._database.rows("SELECT id, state FROM ledger WHERE node = ? AND epoch = ?", (node.id, epoch))
        if rows:
            ((row, state),) = rows
            ledger = ledger_of(epoch, state)
        elif self._epochs[node.id] >= MOST_EPOCHS:
            return None
        else:
            ledger = Ledger(epoch)
            new = "INSERT INTO ledger (node, epoch, state) VALUES (?, ?, '{}') RETURNING id"
            ((row,),) = self._database.rows(new, (node.id, epoch))
            self._epochs[node.id] += 1
        book = self._books[key] = OutboxLedger(row, ledger)
        return book


def save_books(database: Database, books: Iterable[OutboxLedger]) -> None:
    """Write what has come of them."""
    states = [(json_text(book.ledger.state()), book.id) for book in books]
    database.many("UPDATE ledger SET state = ? WHERE id = ?", states)


def newest_acks(database: Database) -> list[tuple[LedgerKey, Ack]]:
    """What has come of every outbox, of its newest epoch."""
    rows = database.rows(
        "SELECT n.region, n.site, n.name, l.epoch, l.state FROM ledger l JOIN node n ON n.id = l.node "
        "WHERE l.id IN (SELECT max(id) FROM ledger GROUP BY node)"
    )
    return [
        ((Address(region, site, name), epoch), ledger_of(epoch, state).ack())
        for region, site, name, epoch, state in rows
    ]


def ledger_of(epoch: str, state: str) -> Ledger:
    """A ledger as it is stored."""
    return Ledger(epoch, {int(priority): ranges for priority, ranges in orjson.loads(state).items()})


def json_text(value: Any) -> str:
    """A value as JSON; keys may be numbers."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
