"""Batch of rows written to the store in one transaction, and its outcome."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hedgerow.bus.outbox.records import Ack, Held, Number, bounded
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.nodes import KnownNode, save_nodes
from hedgerow.region.store.outboxes.ledgers import LedgerKey, OutboxLedger
from hedgerow.region.store.records import (
    EventRecord,
    HealthRecord,
    RejectedRecord,
    ReportedRecord,
    ResultRecord,
    StatusRecord,
)
from hedgerow.region.store.twins.rows import SeenRun
from hedgerow.region.store.twins.watch import TwinChange
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import Event

MAX_REJECTED: Final = 200
"""Rejected messages of each site to keep; all are counted."""
ROW_BYTES: Final = 200
"""Approximate size of a result's row besides its payload."""

_SAVE_RESULT: Final = (
    "INSERT INTO result (node, pipeline, ledger, priority, sequence, said_id, captured_at, received_at, content_type, "
    "properties, size, payload, check_value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAVE_EVENT: Final = (
    "INSERT INTO event (node, kind, said_id, at, received_at, payload) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAVE_HEALTH: Final = "INSERT INTO health (node, at, received_at, payload) VALUES (?, ?, ?, ?)"
_SAVE_SAID: Final = (
    "INSERT INTO said (node, channel, received_at, payload) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (node, channel) DO UPDATE SET received_at = excluded.received_at, payload = excluded.payload"
)
_SAVE_REJECTED: Final = "INSERT INTO rejected (received_at, topic, reason, detail, number, size, payload, site) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT_REJECTED: Final = (
    "INSERT INTO rejections (reason, count) VALUES (?, ?) "
    "ON CONFLICT (reason) DO UPDATE SET count = rejections.count + excluded.count"
)
_COUNT_REFUSED: Final = (
    "INSERT INTO refusal (site, reason, count, first_at, last_at, detail) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (site, reason) "
    "DO UPDATE SET count = refusal.count + excluded.count, last_at = excluded.last_at, detail = excluded.detail"
)
_FORGET_REJECTED: Final = (
    "DELETE FROM rejected WHERE site = ? AND ingest <= "
    "(SELECT ingest FROM rejected WHERE site = ? ORDER BY ingest DESC LIMIT 1 OFFSET ?)"
)


class AckDue(NamedTuple):
    """An acknowledgement due to an outbox: the number of records since the last one, and whether one was requested."""

    ack: Ack
    records: int
    urgent: bool


@dataclass(slots=True)
class BatchOutcome:
    """Outcome of a batch.

    Attributes:
        acks: acknowledgements due, by outbox.
        stored: results stored.
        durable: the durable ones among them.
        duplicates: results and gaps that were already stored.
        gaps, lost: gaps declared, and results lost in them.
        rejected: rejected messages, by reason.
        refused: the same, by site and reason.
        lags: seconds from capture to storage, of each result.
        bytes_up: payload bytes, by site.
        new_nodes: nodes seen for the first time.
        twins: what two processes began or ceased to use.
        shared_names: names under which health arrived and two processes run, and these.
        clashes: results stored beside another one of the same number.
    """

    acks: dict[LedgerKey, AckDue] = field(default_factory=dict)
    stored: int = 0
    durable: int = 0
    duplicates: int = 0
    gaps: int = 0
    lost: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    bytes_up: Counter[str] = field(default_factory=Counter)
    new_nodes: list[Address] = field(default_factory=list)
    twins: list[tuple[Address, TwinChange]] = field(default_factory=list)
    shared_names: dict[Address, Sequence[SeenRun]] = field(default_factory=dict)
    clashes: int = 0


@dataclass(slots=True)
class Batch:
    """Rows to write."""

    now: float
    outcome: BatchOutcome = field(default_factory=BatchOutcome)
    durable: list[Sequence[Any]] = field(default_factory=list)
    others: defaultdict[int, list[Sequence[Any]]] = field(default_factory=lambda: defaultdict(list))
    events: list[Sequence[Any]] = field(default_factory=list)
    health: list[Sequence[Any]] = field(default_factory=list)
    last_messages: dict[tuple[int, str], Sequence[Any]] = field(default_factory=dict)
    rejected: list[Sequence[Any]] = field(default_factory=list)
    nodes: dict[int, KnownNode] = field(default_factory=dict)
    outboxes: dict[LedgerKey, OutboxLedger] = field(default_factory=dict)
    record_counts: Counter[LedgerKey] = field(default_factory=Counter)
    numbers: dict[tuple[int, int, int], int | None] = field(default_factory=dict)  # of `durable`: their checks
    held: dict[LedgerKey, list[tuple[int, int, int | None]]] = field(default_factory=dict)
    unread: dict[LedgerKey, dict[int, list[tuple[int, int]]]] = field(default_factory=dict)
    asked_again: set[LedgerKey] = field(default_factory=set)
    urgent: set[LedgerKey] = field(default_factory=set)
    greeted: set[Address] = field(default_factory=set)  # whose outboxes learn of this store, or that it was put back
    details: dict[tuple[str, str], str] = field(default_factory=dict)
    added_bytes: int = 0

    def add_durable(self, node: KnownNode, ledger: int, number: Number, record: ResultRecord) -> None:
        """Add a result whose number is new in a ledger."""
        self.durable.append((node.id, record.pipeline, ledger, number.priority, number.sequence, *_columns(record)))
        self.numbers[ledger, number.priority, number.sequence] = record.check
        node.results += 1
        node.durable += 1
        self.added_bytes += record.size + ROW_BYTES

    def find(self, place: tuple[int, int, int]) -> list[tuple[str | None, float]]:
        """Return the sender's id and the arrival of the result with a number: ledger, priority, sequence; empty if it has none."""
        return [(row[5], row[7]) for row in self.durable if row[2:5] == place]

    def hold(self, key: LedgerKey, number: Number, check: int | None) -> None:
        """Note, for the acknowledgement, that a result is in the store, or about to be."""
        self.held.setdefault(key, []).append((number.priority, number.sequence, check))

    def held_by(self, key: LedgerKey) -> Held:
        """Return what is noted of an outbox."""
        held: dict[int, list[tuple[int, int | None]]] = defaultdict(list)
        for priority, sequence, check in self.held.get(key, ()):
            held[priority].append((sequence, check))
        return bounded(held)

    def hold_unread(self, key: LedgerKey, number: Number, size: int) -> None:
        """Note, for the acknowledgement, that a result was rejected unread, and how large it is."""
        self.hold(key, number, None)
        self.unread.setdefault(key, {}).setdefault(number.priority, []).append((number.sequence, size))

    def add_unnumbered(self, node: KnownNode, record: ResultRecord) -> None:
        """Add a result without a number; whether it is new turns out when it is written."""
        self.others[node.id].append((node.id, record.pipeline, None, None, None, *_columns(record)))

    def add_event(self, node: KnownNode, record: EventRecord) -> None:
        """Add an event."""
        self.events.append(
            (node.id, record.kind, record.sender_id, record.at, record.received_at, bytes(record.payload))
        )

    def own_event(self, node: KnownNode, kind: str, detail: Mapping[str, Any]) -> EventRecord:
        """Return an event of the region about a node, without adding it."""
        event = Event(kind=kind, node=str(node.address), session="region", at=self.now, detail=dict(detail))
        payload = event.encode()
        return EventRecord(node.address, len(payload), self.now, False, kind, None, self.now, payload)

    def add_health(self, node: KnownNode, record: HealthRecord) -> None:
        """Add a health report."""
        self.health.append((node.id, record.at, record.received_at, bytes(record.payload)))

    def add_last_message(self, node: KnownNode, channel: Channel, record: StatusRecord | ReportedRecord) -> None:
        """Add a node's last message on a channel."""
        key = (node.id, channel.value)
        self.last_messages[key] = (*key, record.received_at, bytes(record.payload))

    def add_rejected(self, record: RejectedRecord) -> None:
        """Add a rejected message."""
        number = None if record.number is None else str(record.number)
        row = (record.received_at, record.topic, record.reason, record.detail, number, record.size, record.payload)
        self.rejected.append((*row, record.site))
        self.count_refused(record.site, record.reason, record.detail)

    def count_refused(self, site: str, reason: str, detail: str, count: int = 1) -> None:
        """Count refused messages of a site."""
        self.outcome.rejected[reason] += count
        self.outcome.refused[site, reason] += count
        self.details[site, reason] = detail

    def add_duplicate(self, node: KnownNode) -> None:
        """Count a result or gap that is already stored."""
        node.repeats += 1
        self.outcome.duplicates += 1

    def write(self, database: Database) -> None:
        """Write all rows, within the caller's transaction."""
        outcome = self.outcome
        if self.durable:
            outcome.durable = outcome.stored = database.many(_SAVE_RESULT, self.durable)
        for node_id, rows in self.others.items():
            ((before,),) = database.rows("SELECT coalesce(max(ingest), 0) FROM result")
            stored = database.many(_SAVE_RESULT, rows)
            node = self.nodes[node_id]
            node.results += stored
            node.repeats += len(rows) - stored
            outcome.stored += stored
            outcome.duplicates += len(rows) - stored
            ((size,),) = database.rows("SELECT coalesce(sum(size), 0) FROM result WHERE ingest > ?", (before,))
            self.added_bytes += int(size) + stored * ROW_BYTES
        for statement, rows in (
            (_SAVE_EVENT, self.events), (_SAVE_HEALTH, self.health), (_SAVE_SAID, list(self.last_messages.values())),
        ):  # fmt: skip
            if rows:
                database.many(statement, rows)
        if self.nodes:
            save_nodes(database, self.nodes.values())
        if self.details:
            self.write_rejected(database)
        if self.added_bytes:
            database.run("UPDATE collector SET stored_bytes = stored_bytes + ?", (self.added_bytes,))

    def write_rejected(self, database: Database) -> None:
        """Write and count the rejected messages, within the caller's transaction."""
        kept: dict[str, list[Sequence[Any]]] = defaultdict(list)
        for row in self.rejected:
            kept[row[-1]].append(row)
        database.many(_COUNT_REJECTED, list(self.outcome.rejected.items()))
        refused = self.outcome.refused.items()
        database.many(_COUNT_REFUSED, [(*key, count, self.now, self.now, self.details[key]) for key, count in refused])
        for site, rows in kept.items():
            database.many(_SAVE_REJECTED, rows[-MAX_REJECTED:])
            database.run(_FORGET_REJECTED, (site, site, MAX_REJECTED))


def _columns(record: ResultRecord) -> tuple[Any, ...]:
    return (
        record.sender_id, record.captured_at, record.received_at, record.content_type, record.properties, record.size, record.payload,
        record.check,
    )  # fmt: skip
