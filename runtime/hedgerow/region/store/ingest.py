"""What items come to: rows of a batch, and what is remembered of nodes and their outboxes.

What is remembered runs ahead of what is stored; if a batch is not stored, it is to be read anew.
"""

from __future__ import annotations

from typing import Any, Final

from hedgerow.bus.outbox.records import PreviousEpoch, priority_of, sequence_of
from hedgerow.region.store.batch import Batch
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.ledgers import MOST_EPOCHS, MOST_RANGES, Ledgers, OutboxLedger, json_text, save_books
from hedgerow.region.store.nodes import MOST_NODES, KnownNode, add_node, load_nodes
from hedgerow.region.store.records import (
    BirthRecord,
    EventRecord,
    HealthRecord,
    MissingRecord,
    PingRecord,
    RejectedRecord,
    ReportedRecord,
    ResultRecord,
    StoreRecord,
    refused,
)
from hedgerow.topics import Channel
from hedgerow.wire.messages import clean

_SAVE_GAP: Final = (
    "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


class Ingest:
    """Takes items, one at a time.

    Args:
        database: that nodes and ledgers are in.
    Raises: StoreError: it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.nodes = load_nodes(database)
        self._books = Ledgers(database)

    def take(self, item: StoreRecord, batch: Batch) -> None:
        """Take an item into a batch; within its transaction."""
        if isinstance(item, PingRecord):
            self._ping(item, batch)
            return
        node = self._node(item, batch)
        if node is None:
            if not isinstance(item, RejectedRecord):
                item = refused(item, "too-many-nodes", f"{MOST_NODES} are known")
            self._reject(item, None, batch)
            return
        node.came(item)
        batch.outcome.bytes_up[node.site] += item.size
        batch.nodes[node.id] = node
        if isinstance(item, ResultRecord):
            self._result(item, node, batch)
        elif isinstance(item, HealthRecord):
            batch.add_health(node, item)
            node.reported(item)
        elif isinstance(item, MissingRecord):
            self._missing(item, node, batch)
        elif isinstance(item, EventRecord):
            batch.add_event(node, item)
        elif isinstance(item, BirthRecord):
            if node.born(item):
                batch.add_said(node, Channel.STATUS, item)
        elif isinstance(item, ReportedRecord):
            batch.add_said(node, Channel.REPORTED, item)
        elif isinstance(item, RejectedRecord):
            self._reject(item, node, batch)

    def _node(self, item: StoreRecord, batch: Batch) -> KnownNode | None:
        if item.address is None:
            return None
        node = self.nodes.get(item.address)
        if node is None and len(self.nodes) < MOST_NODES:
            node = self.nodes[item.address] = add_node(self._database, item.address, item.received_at)
            batch.outcome.known.append(item.address)
        return node

    def _result(self, item: ResultRecord, node: KnownNode, batch: Batch) -> None:
        number = item.number
        if number is None:
            batch.add_unnumbered(node, item)
        else:
            book = self._book(item, node, number.epoch, batch)
            if book is None:
                return
            if book.scattered(number.priority, number.sequence):
                self._reject(refused(item, "scattered-numbers", f"{MOST_RANGES} holes before {number}"), None, batch)
                return
            self._touch(item, book, batch)
            if not book.ledger.add(number):
                batch.repeat(node)
                return
            batch.add_durable(node, book, number, item)
        node.captured_at, node.stored_at = item.captured_at, batch.now
        batch.outcome.lags.append(batch.now - item.captured_at)

    def _missing(self, item: MissingRecord, node: KnownNode, batch: Batch) -> None:
        book = self._book(item, node, item.epoch, batch)
        if book is None:
            return
        gap = item.gap
        priority, first, last = priority_of(gap.first), sequence_of(gap.first), sequence_of(gap.last)
        if book.scattered(priority, first):
            self._reject(refused(item, "scattered-numbers", f"{MOST_RANGES} holes before {first}"), None, batch)
            return
        self._touch(item, book, batch)
        if not book.ledger.add_gap(gap):
            batch.repeat(node)
            return
        # One that has grown takes the place of what it was.
        self._database.run(
            "DELETE FROM gap WHERE ledger = ? AND priority = ? AND first >= ? AND last <= ?",
            (book.id, priority, first, last),
        )
        previous = [{"epoch": one.epoch, "next": one.numbers} for one in gap.previous]
        self._gap(book, priority, first, last, dict(gap.reasons), previous, item, batch)
        for one in gap.previous:
            self._ended(one, item, node, batch)

    def _ended(self, previous: PreviousEpoch, item: MissingRecord, node: KnownNode, batch: Batch) -> None:
        """An epoch ended with its store: what has not come of it never will."""
        if previous.epoch is None or previous.numbers is None:
            return
        book = self._book(item, node, previous.epoch, batch)
        if book is None:
            return
        for priority, next_number in enumerate(previous.numbers):
            for first, last in book.ledger.ranges(priority).missing(next_number - 1):
                book.ledger.ranges(priority).add(first, last)
                self._gap(book, priority, first, last, {"store-lost": last - first + 1}, [], item, batch)
        save_books(self._database, [book])

    def _gap(
        self,
        book: OutboxLedger,
        priority: int,
        first: int,
        last: int,
        reasons: dict[str, int],
        previous: list[Any],
        item: StoreRecord,
        batch: Batch,
    ) -> None:
        lost = sum(reasons.values())
        told = {clean(reason, 80): count for reason, count in reasons.items()}
        row = (book.id, priority, first, last, min(lost, 1 << 62), json_text(told), json_text(previous), item.received_at)  # fmt: skip
        self._database.run(_SAVE_GAP, row)
        batch.outcome.gaps += 1
        batch.outcome.lost += lost

    def _reject(self, item: RejectedRecord, node: KnownNode | None, batch: Batch) -> None:
        if item.number is not None and node is not None:
            book = self._book(item, node, item.number.epoch, batch)
            if book is None:
                return
            self._touch(item, book, batch)
            if not book.ledger.add(item.number):
                batch.repeat(node)
                return
        batch.add_rejected(item)

    def _ping(self, item: PingRecord, batch: Batch) -> None:
        node = None if item.address is None else self.nodes.get(item.address)
        if node is not None:
            batch.nodes[node.id] = node
            node.pinged(item)

    def _book(self, item: StoreRecord, node: KnownNode, epoch: str, batch: Batch) -> OutboxLedger | None:
        """The ledger of an epoch; None, and the item is rejected, if there are too many."""
        book = self._books.of(node, epoch)
        if book is None:
            self._reject(refused(item, "too-many-epochs", f"{MOST_EPOCHS} of {node.site}/{node.name}"), None, batch)
        return book

    def _touch(self, item: StoreRecord, book: OutboxLedger, batch: Batch) -> None:
        assert item.address is not None  # noqa: S101 - it has a node
        key = (item.address, book.ledger.epoch)
        batch.books[key] = book
        batch.records[key] += 1
        if item.asks:
            batch.asked.add(key)
