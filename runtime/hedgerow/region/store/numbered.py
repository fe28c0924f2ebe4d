"""Numbered results and gaps of outboxes: each is stored once, compared with what has its number, and noted for the acknowledgement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from hedgerow.bus.outbox.epochs import EpochEnd
from hedgerow.bus.outbox.records import Number, PreviousEpoch, priority_of, record_check, sequence_of
from hedgerow.region.store.batch import Batch
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.nodes import KnownNode
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
from hedgerow.region.store.records import GapRecord, RejectedRecord, ResultRecord, StoreRecord, reject
from hedgerow.wire.messages import clean
from hedgerow.wire.ranges import MAX_COUNT

_HELD: Final = 0
"""No ledger has this id: the store has the result already."""
_SAVE_GAP: Final = (
    "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


class NumberedIntake:
    """Adds numbered results and gaps to batches.

    Args:
        database: the database with the ledgers.
        quotas: of each site.
        ledgers: the ledgers of all outboxes.
    """

    def __init__(self, database: Database, quotas: SiteQuotas, ledgers: Ledgers) -> None:
        self._database = database
        self._quotas = quotas
        self._ledgers = ledgers

    def add(self, record: ResultRecord, number: Number, node: KnownNode, batch: Batch) -> bool:
        """Add a result. Returns: whether it is new, and has a place."""
        outbox = self._outbox(record, node, number.epoch, batch)
        if outbox is None:
            return False
        if outbox.is_scattered(number.priority, number.sequence):
            self.reject(reject(record, "scattered-numbers", f"{MAX_RANGES} holes before {number}"), None, batch)
            return False
        if record.check is None:
            record = replace(record, check=record_check(record.sender_id or "", record.payload))
        ledger = self._place(record, number, outbox, batch)
        if ledger is None:
            reason = f"{MAX_CLASHES} other results have the number {number}"
            self.reject(reject(record, "too-many-clashes", reason), None, batch)
            return False
        self._note_former(record, node, batch)
        self._touch(record, outbox, batch)
        batch.hold(_key(record, outbox), number, record.check)
        if record.ended is not None and number.sequence == 1:
            self._end(record.ended, number.epoch, record, node, batch)
        if ledger == _HELD:
            if record.wants_ack:
                batch.asked_again.add(_key(record, outbox))
            batch.add_duplicate(node)
            return False
        batch.add_durable(node, ledger, number, record)
        return True

    def _place(self, record: ResultRecord, number: Number, outbox: OutboxLedger, batch: Batch) -> int | None:
        """Return the ledger under which to store a result; `_HELD` if the store has it, None if there is no place left.

        A number that was received, or declared lost, proves nothing: another outbox may use it too, as a copy of a process
        that ran does. So the results are compared. One that cannot be compared, since retention has deleted it, is kept.
        """
        is_new = outbox.ledger.add(number)
        is_held = any(self._has(record, former, outbox.node, batch) for former in record.was)
        if is_held or (outbox.has_renumbered and self._is_renumbered(outbox.id, number, record.check)):
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
        """Whether the store has a result under an earlier number, or had it there first."""
        outbox = self._ledgers.find(node, number.epoch)
        if outbox is None:
            return False
        if outbox.has_renumbered and self._is_renumbered(outbox.id, number, record.check):
            return True
        ledgers = (outbox.id, *outbox.clashes)
        return any(self._check_at(ledger, number, record, batch) == record.check for ledger in ledgers)

    def _note_former(self, record: ResultRecord, node: KnownNode, batch: Batch) -> None:
        """Note the numbers that a result had before: what arrives late under one of them, from a queue or a backup, is the same."""
        for former in record.was:
            outbox = self._ledgers.of(node, former.epoch)
            if outbox is not None:
                row = (outbox.id, former.priority, former.sequence, record.check, batch.now)
                self._database.run("INSERT INTO renumbered VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
                outbox.has_renumbered = True

    def _is_renumbered(self, ledger: int, number: Number, check: int | None) -> bool:
        query = "SELECT 1 FROM renumbered WHERE ledger = ? AND priority = ? AND sequence = ? AND check_value = ?"
        return bool(self._database.rows(query, (ledger, number.priority, number.sequence, check)))

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
        self.tell(node, "outbox-clash", detail, batch)

    def tell(self, node: KnownNode, kind: str, detail: dict[str, Any], batch: Batch) -> None:
        """Keep an event of the region about a node, within the quota of its site."""
        record = batch.own_event(node, kind, detail)
        if self._quotas.refusal(record, node, batch.now) is None:
            batch.add_event(node, record)
            self._quotas.add(record, node)

    def _end(self, end: EpochEnd, epoch: str, record: StoreRecord, node: KnownNode, batch: Batch) -> None:
        """Note the end of the epoch before, so that what is missing at its end is known."""
        done = self._ledgers.find(node, end.epoch)  # without numbers, all of it is acknowledged
        outbox = self._outbox(record, node, end.epoch, batch) if end.lasts else done
        if outbox is None or end.epoch == epoch:
            return
        outbox.end(end.lasts.items())
        self._ledgers.save([outbox], batch.now)

    def add_gap(self, record: GapRecord, node: KnownNode, batch: Batch) -> None:
        """Add a gap: numbers that never come."""
        outbox = self._outbox(record, node, record.epoch, batch)
        if outbox is None:
            return
        gap = record.gap
        priority, first, last = priority_of(gap.first), sequence_of(gap.first), sequence_of(gap.last)
        if outbox.is_scattered(priority, first):
            self.reject(reject(record, "scattered-numbers", f"{MAX_RANGES} holes before {first}"), None, batch)
            return
        self._touch(record, outbox, batch)
        if record.ended is not None and first == 1:
            self._end(record.ended, record.epoch, record, node, batch)
        if not outbox.ledger.add_gap(gap):
            batch.add_duplicate(node)
            return
        self._quotas.add(record, node)
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

    def reject(self, record: RejectedRecord, node: KnownNode | None, batch: Batch) -> None:
        """Add a message that cannot be used; one with a number is acknowledged, since sending it again would not help."""
        if record.number is not None and node is not None:
            outbox = self._outbox(record, node, record.number.epoch, batch)
            if outbox is None:
                return
            self._touch(record, outbox, batch)
            if record.check is None:
                batch.hold_unread(_key(record, outbox), record.number, record.size)
            else:
                batch.hold(_key(record, outbox), record.number, record.check)
            if not outbox.ledger.add(record.number) and self._was_rejected(record):
                batch.add_duplicate(node)
                return
        batch.add_rejected(replace(record, site=self._quotas.label(record.site)))

    def _was_rejected(self, record: RejectedRecord) -> bool:
        """Whether this message was rejected before; that its number is known does not tell, since a copy of the node may use it too."""
        rows = self._database.rows("SELECT size, payload FROM rejected WHERE number = ?", (str(record.number),))
        return any(size == record.size and bytes(payload) == bytes(record.payload) for size, payload in rows)

    def _outbox(self, record: StoreRecord, node: KnownNode, epoch: str, batch: Batch) -> OutboxLedger | None:
        """Return the ledger of an epoch; None, after rejecting the record, if there are too many."""
        outbox = self._ledgers.of(node, epoch)
        if outbox is None:
            self.reject(
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
