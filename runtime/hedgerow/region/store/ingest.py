"""Turns records into rows of a batch, and updates nodes and ledgers in memory.

Memory is ahead of the database; if a batch cannot be stored, create a new `Ingest`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from hedgerow.bus.outbox.epochs import EpochEnd
from hedgerow.bus.outbox.records import Number, PreviousEpoch, priority_of, record_check, sequence_of
from hedgerow.region.config import QuotasSection
from hedgerow.region.store.batch import Batch
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.former_addresses import FormerAddresses
from hedgerow.region.store.life.identity import Forgotten, clear_topics, forgotten_nodes
from hedgerow.region.store.nodes import MAX_NODES, KnownNode, add_node, load_nodes
from hedgerow.region.store.outboxes.ledgers import (
    MAX_CLASHES,
    MAX_EPOCHS,
    MAX_RANGES,
    LedgerKey,
    Ledgers,
    OutboxLedger,
    json_text,
)
from hedgerow.region.store.quotas import SiteQuotas
from hedgerow.region.store.records import (
    EventRecord,
    GapRecord,
    HealthRecord,
    PingRecord,
    RefusedRecord,
    RejectedRecord,
    ReportedRecord,
    ResultRecord,
    ServicesRecord,
    StatusRecord,
    StoreRecord,
    reject,
)
from hedgerow.region.store.twins.rows import TwinKind, save_other_services
from hedgerow.region.store.twins.watch import TwinChange, TwinWatch
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import clean
from hedgerow.wire.ranges import MAX_COUNT

FORGOTTEN: Final = "forgotten"
"""Why the messages of a node are refused that an operator has forgotten."""
_CLEAR_EVERY_S: Final = 60.0
_HELD: Final = 0
"""No ledger has this id: the store has the result already."""
_SAVE_GAP: Final = (
    "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
EVENTS: Final[dict[tuple[TwinKind, bool], str]] = {
    ("name", True): "name-in-use",
    ("name", False): "name-free",
    ("turns", True): "name-in-turns",
    ("turns", False): "name-in-turns-ended",
    ("state", True): "state-shared",
    ("state", False): "state-not-shared",
    ("key", True): "key-shared",
    ("key", False): "key-not-shared",
}
"""Kinds of the events about what two processes began or ceased to use."""


class Ingest:
    """Adds records to batches.

    Args:
        database: the database with nodes and ledgers.
        quotas: of each site.
        clock: a monotonic clock, in seconds.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, quotas: QuotasSection, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self.nodes = load_nodes(database)
        self._forgotten: Mapping[Address | None, Forgotten] = dict(forgotten_nodes(database).items())
        self._former = FormerAddresses(database, self.nodes.values())
        self._cleared: dict[str, float] = {}
        self._by_row = {node.id: address for address, node in self.nodes.items()}
        self.twins = TwinWatch(database, self._by_row)
        self.quotas = SiteQuotas(database, quotas, list(self.nodes.values()))
        self._ledgers = Ledgers(database, quotas.epochs)

    def save_ledgers(self, batch: Batch) -> None:
        """Write the ledgers of a batch, within its transaction."""
        if batch.outboxes:
            self._ledgers.save(batch.outboxes.values(), batch.now)

    def forget_ledgers(self) -> None:
        """Read the ledgers again when they are needed: retention has deleted some."""
        self._ledgers.forget()

    def begin(self) -> None:
        """Begin a batch: forget ledgers if there are very many of them in memory."""
        self._ledgers.trim()

    def add(self, record: StoreRecord, batch: Batch) -> None:
        """Add a record to a batch, within its transaction."""
        if isinstance(record, PingRecord):
            self._ping(record, batch)
            return
        if isinstance(record, ServicesRecord):
            save_other_services(self._database, record.services)
            return
        if isinstance(record, RefusedRecord):
            batch.count_refused(self.quotas.label(record.site), record.reason, record.detail, record.count)
            return
        node = self._node(record, batch)
        if node is None:
            if (gone := self._forgotten.get(record.address)) is not None:
                self._refuse_forgotten(record, gone, batch)
                return
            if not isinstance(record, RejectedRecord):
                record = reject(record, "too-many-nodes", f"the quota of its site, or {MAX_NODES:,} nodes in all")
            self._reject(record, None, batch)
            return
        if self._former.is_outdated(record):
            return
        node.count_message(record)
        batch.outcome.bytes_up[node.site] += record.size
        batch.nodes[node.id] = node
        if (refusal := self.quotas.refusal(record, node, batch.now)) is not None:
            self._reject(reject(record, *refusal), None, batch)
            return
        if isinstance(record, ResultRecord):
            self._result(record, node, batch)
        elif isinstance(record, HealthRecord):
            batch.add_health(node, record)
            self.quotas.add(record, node)
            is_back = record.session != node.health_session and self.twins.is_known(node, record.session)
            self._announce(self.twins.report(node, record, self._clock()), batch)
            if runs := self.twins.sharing_name(node.id):
                batch.outcome.shared_names[record.address or node.address] = runs
            node.update_health(record, is_back=is_back)
        elif isinstance(record, GapRecord):
            self._missing(record, node, batch)
        elif isinstance(record, EventRecord):
            batch.add_event(node, record)
            self.quotas.add(record, node)
        elif isinstance(record, StatusRecord):
            if node.update_status(record, is_known=self.twins.is_known(node, record.session)):
                batch.add_last_message(node, Channel.STATUS, record)
        elif isinstance(record, ReportedRecord):
            batch.add_last_message(node, Channel.REPORTED, record)
        elif isinstance(record, RejectedRecord):
            self._reject(record, node, batch)

    def _node(self, record: StoreRecord, batch: Batch) -> KnownNode | None:
        if record.address is None:
            return None
        node = self.nodes.get(record.address)
        if node is not None:
            if self._former.unseen:
                self._former.note(node, record, batch.now)
            return node
        if record.address in self._forgotten:
            return None
        if (former := self._former.find(record, batch.now)) is not None:
            return former
        if len(self.nodes) < MAX_NODES and self.quotas.allows_node(record.address.site):
            node = self.nodes[record.address] = add_node(self._database, record.address, record.received_at)
            self._by_row[node.id] = record.address
            self.quotas.add_node(node.site)
            batch.outcome.new_nodes.append(record.address)
        return node

    def _refuse_forgotten(self, record: StoreRecord, gone: Forgotten, batch: Batch) -> None:
        """Refuse a message of a forgotten node; a result is not acknowledged, and so stays on the node's disk.

        What brokers keep of it comes back with every bridge that reconnects, and is cleared again.
        """
        address = record.address
        assert address is not None  # noqa: S101 - it was found by its address
        detail = f"{address.site}/{address.node} was forgotten {gone.because}; to take it in again: hedgerow node admit {address.site}/{address.node}"  # fmt: skip
        batch.count_refused(self.quotas.label(address.site), FORGOTTEN, detail)
        if isinstance(record, StatusRecord | ReportedRecord):
            topic = address.topic(Channel.STATUS if isinstance(record, StatusRecord) else Channel.REPORTED)
            if batch.now - self._cleared.get(topic, 0.0) >= _CLEAR_EVERY_S:
                self._cleared[topic] = batch.now
                clear_topics(self._database, [topic])

    def tidy(self, batch: Batch) -> None:
        """Forget what two processes used that are long gone, within the batch's transaction."""
        if self.twins.twins:
            heard = {node.id: node.heard_at or 0.0 for node in self.nodes.values()}
            self._announce(self.twins.tidy(heard, batch.now), batch)

    def _announce(self, changes: list[TwinChange], batch: Batch) -> None:
        """Keep as events what two processes began or ceased to use."""
        for change in changes:
            address = self._by_row[change.node]
            batch.outcome.twins.append((address, change))
            node = self.nodes[address]
            detail = {"error": change.text, "remedy": change.remedy}
            record = batch.own_event(node, EVENTS[change.kind, change.began], detail)
            if self.quotas.refusal(record, node, batch.now) is None:
                batch.add_event(node, record)
                self.quotas.add(record, node)

    def _result(self, record: ResultRecord, node: KnownNode, batch: Batch) -> None:
        number = record.number
        if record.named is not None and record.named not in self._former.names(node):
            self._reject(reject(record, "another-node", f"it names {record.named}", durable=True), node, batch)
            return
        if number is None:
            batch.add_unnumbered(node, record)
        else:
            outbox = self._outbox(record, node, number.epoch, batch)
            if outbox is None:
                return
            if outbox.is_scattered(number.priority, number.sequence):
                self._reject(reject(record, "scattered-numbers", f"{MAX_RANGES} holes before {number}"), None, batch)
                return
            if record.check is None:
                record = replace(record, check=record_check(record.sender_id or "", record.payload))
            ledger = self._place(record, number, outbox, batch)
            if ledger is None:
                reason = f"{MAX_CLASHES} other results have the number {number}"
                self._reject(reject(record, "too-many-clashes", reason), None, batch)
                return
            self._touch(record, outbox, batch)
            batch.hold(_key(record, outbox), number, record.check)
            if record.ended is not None and number.sequence == 1:
                self._end(record.ended, number.epoch, record, node, batch)
            if ledger == _HELD:
                if record.wants_ack:
                    batch.asked_again.add(_key(record, outbox))
                batch.add_duplicate(node)
                return
            batch.add_durable(node, ledger, number, record)
        self.quotas.add(record, node)
        node.captured_at, node.stored_at = record.captured_at, batch.now
        batch.outcome.lags.append(batch.now - record.captured_at)

    def _place(self, record: ResultRecord, number: Number, outbox: OutboxLedger, batch: Batch) -> int | None:
        """Return the ledger under which to store a result; `_HELD` if the store has it, None if there is no place left.

        A number that was received, or declared lost, proves nothing: another outbox may use it too, as a copy of a process
        that ran does. So the results are compared. One that cannot be compared, since retention has deleted it, is kept.
        """
        is_new = outbox.ledger.add(number)
        if any(self._has(record, former, outbox.node, batch) for former in record.was):
            return _HELD
        if is_new:
            return outbox.id
        ledgers = [outbox.id, *outbox.clashes]
        checks = [self._check_at(ledger, number, record, batch) for ledger in ledgers]
        if record.check in checks:
            return _HELD
        place = next((ledger for ledger, check in zip(ledgers, checks, strict=True) if check is None), None)
        if place == outbox.id:
            return place
        if place is None:
            place = self._ledgers.add_clash(outbox, batch.now)
            if place is not None:
                self._tell_clash(record, number, outbox, batch)
        batch.outcome.clashes += place is not None
        for check in checks:
            if check is not None:
                batch.hold(_key(record, outbox), number, check)  # tells the outbox that it is not alone
        return place

    def _has(self, record: ResultRecord, number: Number, node: KnownNode, batch: Batch) -> bool:
        """Whether the store has a result under an earlier number."""
        outbox = self._ledgers.find(node, number.epoch)
        return outbox is not None and any(
            self._check_at(ledger, number, record, batch) == record.check for ledger in (outbox.id, *outbox.clashes)
        )

    def _check_at(self, ledger: int, number: Number, record: ResultRecord, batch: Batch) -> int | None:
        """Return the check of the result that the store has under a number; None if it has none."""
        place = (ledger, number.priority, number.sequence)
        if place in batch.numbers:
            return batch.numbers[place]
        query = "SELECT check_value, CASE WHEN check_value IS NULL THEN payload END FROM result WHERE ledger = ? AND priority = ? AND sequence = ?"
        for check, payload in self._database.rows(query, place):
            if check is not None:
                return int(check)
            same = bytes(payload) == bytes(record.payload)  # stored by an earlier version
            return record.check if same else ~(record.check or 0)
        return None

    def _tell_clash(self, record: ResultRecord, number: Number, outbox: OutboxLedger, batch: Batch) -> None:
        node = outbox.node
        query = "SELECT said_id, received_at FROM result WHERE ledger = ? AND priority = ? AND sequence = ?"
        place = (outbox.id, number.priority, number.sequence)
        rows = batch.find(place) or self._database.rows(query, place)
        first = {"id": rows[0][0], "received_at": rows[0][1]} if rows else {}
        detail = {
            "number": str(number),
            "results": [first, {"id": record.sender_id, "received_at": record.received_at}],
            "session": node.session,
            "remedy": "Two outboxes use one epoch: a copy of this node runs too. Both results are stored, and the outboxes "
            "begin new epochs. Stop the copy, or give it a name of its own.",
        }
        batch.add_event(node, batch.own_event(node, "outbox-clash", detail))

    def _end(self, end: EpochEnd, epoch: str, record: StoreRecord, node: KnownNode, batch: Batch) -> None:
        """Note the end of the epoch before, so that what is missing at its end is known."""
        done = self._ledgers.find(node, end.epoch)  # without numbers, all of it is acknowledged
        outbox = self._outbox(record, node, end.epoch, batch) if end.lasts else done
        if outbox is None or end.epoch == epoch:
            return
        outbox.end(end.lasts.items())
        self._ledgers.save([outbox], batch.now)

    def _missing(self, record: GapRecord, node: KnownNode, batch: Batch) -> None:
        outbox = self._outbox(record, node, record.epoch, batch)
        if outbox is None:
            return
        gap = record.gap
        priority, first, last = priority_of(gap.first), sequence_of(gap.first), sequence_of(gap.last)
        if outbox.is_scattered(priority, first):
            self._reject(reject(record, "scattered-numbers", f"{MAX_RANGES} holes before {first}"), None, batch)
            return
        self._touch(record, outbox, batch)
        if record.ended is not None and first == 1:
            self._end(record.ended, record.epoch, record, node, batch)
        if not outbox.ledger.add_gap(gap):
            batch.add_duplicate(node)
            return
        self.quotas.add(record, node)
        # A gap that has grown replaces the smaller ones.
        self._database.run(
            "DELETE FROM gap WHERE ledger = ? AND priority = ? AND first >= ? AND last <= ?",
            (outbox.id, priority, first, last),
        )
        previous = [{"epoch": one.epoch, "next": one.numbers} for one in gap.previous]
        self._gap(outbox, priority, first, last, dict(gap.reasons), previous, record, batch)
        for one in gap.previous:
            self._ended(one, record, node, batch)

    def _ended(self, previous: PreviousEpoch, record: GapRecord, node: KnownNode, batch: Batch) -> None:
        """Declare the numbers missing from an epoch lost: its outbox file is gone."""
        if previous.epoch is None or previous.numbers is None:
            return
        outbox = self._outbox(record, node, previous.epoch, batch)
        if outbox is None:
            return
        outbox.end(
            (priority, next_number - 1) for priority, next_number in enumerate(previous.numbers) if next_number > 1
        )
        for priority, next_number in enumerate(previous.numbers):
            missing = outbox.ledger.ranges(priority).missing(next_number - 1)
            if not missing:
                continue
            lost = sum(last - first + 1 for first, last in missing)
            first, last = missing[0][0], missing[-1][1]
            outbox.ledger.ranges(priority).add(first, last)
            if previous.moved:
                continue  # they come under a new epoch
            self._gap(outbox, priority, first, last, {"store-lost": lost}, [], record, batch)
        self._ledgers.save([outbox], batch.now)

    def _gap(
        self,
        outbox: OutboxLedger,
        priority: int,
        first: int,
        last: int,
        reasons: dict[str, int],
        previous: list[Any],
        record: StoreRecord,
        batch: Batch,
    ) -> None:
        lost = sum(reasons.values())
        cleaned = {clean(reason, 80): count for reason, count in reasons.items()}
        row = (outbox.id, priority, first, last, min(lost, MAX_COUNT), json_text(cleaned), json_text(previous), record.received_at)  # fmt: skip
        self._database.run(_SAVE_GAP, row)
        batch.outcome.gaps += 1
        batch.outcome.lost += lost

    def _reject(self, record: RejectedRecord, node: KnownNode | None, batch: Batch) -> None:
        if record.number is not None and node is not None:
            outbox = self._outbox(record, node, record.number.epoch, batch)
            if outbox is None:
                return
            self._touch(record, outbox, batch)
            batch.hold(_key(record, outbox), record.number, record.check)
            if not outbox.ledger.add(record.number) and self._was_rejected(record):
                batch.add_duplicate(node)
                return
        batch.add_rejected(replace(record, site=self.quotas.label(record.site)))

    def _was_rejected(self, record: RejectedRecord) -> bool:
        """Whether this message was rejected before; that its number is known does not tell, since a copy of the node may use it too."""
        rows = self._database.rows("SELECT size, payload FROM rejected WHERE number = ?", (str(record.number),))
        return any(size == record.size and bytes(payload) == bytes(record.payload) for size, payload in rows)

    def _ping(self, record: PingRecord, batch: Batch) -> None:
        node = None if record.address is None else self.nodes.get(record.address)
        if node is not None and node.id not in self._former.unseen:  # it is not there to answer yet
            batch.nodes[node.id] = node
            node.record_ping(record)

    def _outbox(self, record: StoreRecord, node: KnownNode, epoch: str, batch: Batch) -> OutboxLedger | None:
        """Return the ledger of an epoch; None, after rejecting the record, if there are too many."""
        outbox = self._ledgers.of(node, epoch)
        if outbox is None:
            self._reject(
                reject(record, "too-many-epochs", f"{MAX_EPOCHS} of {node.site}/{node.name}, or the quota of its site"),
                None,
                batch,
            )
        return outbox

    def _touch(self, record: StoreRecord, outbox: OutboxLedger, batch: Batch) -> None:
        key = _key(record, outbox)
        batch.outboxes[key] = outbox
        batch.record_counts[key] += 1
        if record.wants_ack:
            batch.urgent.add(key)


def _key(record: StoreRecord, outbox: OutboxLedger) -> LedgerKey:
    """Return where to acknowledge a record: a renamed node may still run under its former address."""
    assert record.address is not None  # noqa: S101 - it has a node
    return record.address, outbox.ledger.epoch
