"""The region's store: what came up, each thing once, and what has come of every outbox.

Rules:
- Items are stored in the order they came, a batch in one transaction together with the ledgers: so a result is in the
  store if and only if its number is in the ledger, whenever the process dies.
- What `apply` gives back may be acknowledged; before it has returned, nothing may.
- After an error nothing of the batch is stored, and what was remembered is read anew.
- One thread uses it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import structlog

from hedgerow import __version__
from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.records import Ack, Number, Previous, priority_of, sequence_of
from hedgerow.region.config import RegionConfig
from hedgerow.region.database import Database, StoreError, StoreRefused
from hedgerow.region.items import Birth, Event, HealthReport, Item, Missing, Ping, Rejected, Reported, Result
from hedgerow.region.judge import Signs, Verdict, judge
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import clean

log = structlog.get_logger(__name__)

MOST_NODES: Final = 100_000
MOST_EPOCHS: Final = 1000
"""Epochs of one outbox. A new one begins when a node has lost its outbox."""
MOST_RANGES: Final = 4096
"""Ranges of numbers kept of one priority. An outbox fills its first hole first, so many are a fault."""
MOST_REJECTED: Final = 1000
"""Messages kept of those that could not be used; all are counted."""
ROW_BYTES: Final = 200
"""About what a result takes beside its payload."""
PRUNED_AT_ONCE: Final = 500
_MOST_BYTES: Final = 1 << 62

LedgerKey = tuple[Address, str]
"""An outbox and its epoch."""


@dataclass(slots=True)
class Node:
    """A node as it is remembered; see the table of the same name."""

    id: int
    region: str
    site: str
    name: str
    first_heard_at: float
    heard_at: float | None = None
    session: str | None = None
    online: int | None = None
    status_at: float | None = None
    health_at: float | None = None
    health_state: str | None = None
    health_reasons: str | None = None
    health_session: str | None = None
    bytes_in: int = 0
    bytes_in_now: int = 0
    messages_up: int = 0
    bytes_up: int = 0
    results: int = 0
    durable: int = 0
    repeats: int = 0
    captured_at: float | None = None
    stored_at: float | None = None
    pinged_at: float | None = None
    answered_at: float | None = None
    round_trip_s: float | None = None
    clock_offset_s: float | None = None
    unanswered: int = 0

    @property
    def signs(self) -> Signs:
        """What it is judged by."""
        return signs(self.online, self.heard_at, self.health_state, self.health_reasons, self.answered_at, self.unanswered)  # fmt: skip


def signs(
    online: int | None,
    heard_at: float | None,
    health_state: str | None,
    health_reasons: str | None,
    answered_at: float | None,
    unanswered: int,
) -> Signs:
    """What a node is judged by, from its row."""
    reasons = "; ".join(orjson.loads(health_reasons)) if health_reasons else ""
    return Signs(None if online is None else bool(online), heard_at, health_state, reasons, answered_at, unanswered)


_COLUMNS: Final = tuple(Node.__dataclass_fields__)
_CHANGING: Final = _COLUMNS[5:]
_LOAD_NODES: Final = f"SELECT {', '.join(_COLUMNS)} FROM node"  # noqa: S608 - names of our own
_NEW_NODE: Final = (
    "INSERT INTO node (region, site, name, first_heard_at, messages_up, bytes_up, results, durable, repeats, unanswered) "
    "VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, 0) RETURNING id"
)
_SAVE_NODE: Final = f"UPDATE node SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"  # noqa: S608
_SAVE_RESULT: Final = (
    "INSERT INTO result (node, pipeline, ledger, priority, sequence, said_id, captured_at, received_at, content_type, "
    "properties, size, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAVE_EVENT: Final = (
    "INSERT INTO event (node, kind, said_id, at, received_at, payload) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAVE_HEALTH: Final = "INSERT INTO health (node, at, received_at, payload) VALUES (?, ?, ?, ?)"
_SAVE_SAID: Final = (
    "INSERT INTO said (node, channel, received_at, payload) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (node, channel) DO UPDATE SET received_at = excluded.received_at, payload = excluded.payload"
)
_SAVE_GAP: Final = (
    "INSERT INTO gap (ledger, priority, first, last, lost, reasons, previous, received_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_SAVE_REJECTED: Final = (
    "INSERT INTO rejected (received_at, topic, reason, detail, number, size, payload) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_COUNT_REJECTED: Final = (
    "INSERT INTO rejections (reason, count) VALUES (?, ?) "
    "ON CONFLICT (reason) DO UPDATE SET count = rejections.count + excluded.count"
)
_SAVE_COLLECTOR: Final = (
    "INSERT INTO collector (one, region, started_at, beat_at, connected, version, silent_after_s, canary_every_s, "
    "stored_bytes) VALUES (1, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (one) DO UPDATE SET region = excluded.region, "
    "started_at = excluded.started_at, beat_at = excluded.beat_at, connected = excluded.connected, "
    "version = excluded.version, silent_after_s = excluded.silent_after_s, canary_every_s = excluded.canary_every_s"
)


@dataclass(slots=True)
class _Book:
    """A ledger and its row."""

    id: int
    ledger: Ledger


@dataclass(slots=True)
class Outcome:
    """What a batch came to.

    Attributes:
        acks: of every outbox that sent something, and how many records.
        stored: results, durable ones among them as `durable`.
        repeats: that were there already.
        gaps, lost: declared, and the records lost by them.
        rejected: by reason.
        lags: of results, seconds from capture to the store.
        bytes_up: payload bytes, by site.
        known: nodes not known before.
    """

    acks: dict[LedgerKey, tuple[Ack, int]] = field(default_factory=dict)
    stored: int = 0
    durable: int = 0
    repeats: int = 0
    gaps: int = 0
    lost: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)
    bytes_up: Counter[str] = field(default_factory=Counter)
    known: list[Address] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Rows to be written."""

    now: float
    outcome: Outcome = field(default_factory=Outcome)
    durable: list[Sequence[Any]] = field(default_factory=list)
    others: defaultdict[int, list[Sequence[Any]]] = field(default_factory=lambda: defaultdict(list))
    events: list[Sequence[Any]] = field(default_factory=list)
    health: list[Sequence[Any]] = field(default_factory=list)
    said: dict[tuple[int, str], Sequence[Any]] = field(default_factory=dict)
    rejected: list[Sequence[Any]] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    books: dict[LedgerKey, _Book] = field(default_factory=dict)
    records: Counter[LedgerKey] = field(default_factory=Counter)
    added_bytes: int = 0


class Store:
    """What came up from the sites.

    Args:
        database: to write to.
        config: the region, and how long things are kept.
    Raises: StoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig) -> None:
        self._database = database
        self._config = config
        self._started_at = time.time()
        self.beat(connected=False)
        self._load()

    @property
    def nodes(self) -> list[Address]:
        """The nodes that are known."""
        return list(self._nodes)

    def acks(self) -> list[tuple[LedgerKey, Ack]]:
        """What has come of every outbox, of its newest epoch: said again at the start, in case it was not heard before."""
        rows = self._database.rows(
            "SELECT n.region, n.site, n.name, l.epoch, l.state FROM ledger l JOIN node n ON n.id = l.node "
            "WHERE l.id IN (SELECT max(id) FROM ledger GROUP BY node)"
        )
        return [
            ((Address(region, site, name), epoch), ledger_of(epoch, state).ack())
            for region, site, name, epoch, state in rows
        ]

    def verdicts(self, now: float) -> Counter[Verdict]:
        """How many nodes are how."""
        after_s = self._config.region.silent_after_s
        return Counter(judge(node.signs, now, after_s)[0] for node in self._nodes.values())

    def beat(self, *, connected: bool) -> None:
        """Write down that the collector is there.

        Raises: StoreError: it cannot be written.
        """
        config = self._config
        values = (config.region.name, self._started_at, time.time(), int(connected), __version__)
        self._database.run(_SAVE_COLLECTOR, (*values, config.region.silent_after_s, config.canary.every_s))

    def apply(self, items: Sequence[Item]) -> Outcome:
        """Store a batch; when this returns it is on the disk.

        Raises: StoreError: nothing of it is stored.
        """
        batch = _Batch(time.time())
        try:
            with self._database.transaction():
                for item in items:
                    self._take(item, batch)
                self._write(batch)
        except StoreError:
            self._stale = True
            raise
        except Exception as error:  # ours to mend; what came with it is rejected, and the rest goes on
            self._stale = True
            log.exception("store-failed")
            raise StoreRefused(f"{type(error).__name__}: {error}", remedy="See the log.") from error
        self.stored_bytes += batch.added_bytes
        for key, book in batch.books.items():
            batch.outcome.acks[key] = book.ledger.ack(), batch.records[key]
        return batch.outcome

    def refresh(self) -> None:
        """Read anew what is remembered, if the last batch failed.

        Raises: StoreError: it cannot be read.
        """
        if self._stale:
            self._load()

    def prune(self, now: float) -> bool:
        """Let go of a little of what is too old or too much. Returns: whether there may be more of it.

        Raises: StoreError: it cannot be done.
        """
        kept, database = self._config.retention, self._database
        more = False
        with database.transaction():
            oldest = database.rows(
                f"SELECT ingest, received_at, size FROM result ORDER BY ingest LIMIT {PRUNED_AT_ONCE}"  # noqa: S608
            )
            surplus = 0 if kept.max_bytes is None else self.stored_bytes - kept.max_bytes
            last = freed = 0
            for ingest, received_at, size in oldest:
                too_old = kept.days is not None and received_at < now - kept.days * 86_400
                if not too_old and freed >= surplus:
                    break
                last, freed = ingest, freed + size + ROW_BYTES
            if last:
                more = last == oldest[-1][0]
                database.run("DELETE FROM result WHERE ingest <= ?", (last,))
                database.run("UPDATE collector SET stored_bytes = stored_bytes - ?", (freed,))
            for table, days in (("event", kept.days), ("gap", kept.days), ("health", kept.health_days)):
                if days is not None:
                    more |= self._prune_table(table, now - days * 86_400)
        self.stored_bytes -= freed
        return more

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def _prune_table(self, table: str, before: float) -> bool:
        oldest = f"SELECT ingest, received_at FROM {table} ORDER BY ingest LIMIT {PRUNED_AT_ONCE}"  # noqa: S608
        rows = self._database.rows(oldest)
        last = max((ingest for ingest, received_at in rows if received_at < before), default=0)
        if last:
            self._database.run(f"DELETE FROM {table} WHERE ingest <= ?", (last,))  # noqa: S608
        return last > 0 and last == rows[-1][0]

    def _load(self) -> None:
        rows = self._database.rows(_LOAD_NODES)
        nodes = [Node(*row) for row in rows]
        self._nodes = {Address(node.region, node.site, node.name): node for node in nodes}
        self._books: dict[LedgerKey, _Book] = {}
        self._epochs: Counter[int] = Counter(
            dict(self._database.rows("SELECT node, count(*) FROM ledger GROUP BY node"))
        )
        ((self.stored_bytes,),) = self._database.rows("SELECT stored_bytes FROM collector")
        self._stale = False

    def _take(self, item: Item, batch: _Batch) -> None:
        if isinstance(item, Ping):
            self._ping(item, batch)
            return
        node = None if item.address is None else self._node(item.address, item.received_at, batch)
        if node is None:
            if not isinstance(item, Rejected):
                item = _refused(item, "too-many-nodes", f"{MOST_NODES} are known")
            self._reject(item, None, batch)
            return
        node.messages_up += 1
        node.bytes_up += item.size
        batch.outcome.bytes_up[node.site] += item.size
        if item.fresh:
            node.heard_at = max(node.heard_at or 0.0, item.received_at)
        batch.nodes[node.id] = node
        if isinstance(item, Result):
            self._result(item, node, batch)
        elif isinstance(item, HealthReport):
            batch.health.append((node.id, item.at, item.received_at, bytes(item.payload)))
            node.health_at, node.health_state, node.health_reasons = item.received_at, item.state, item.reasons
            if item.session != node.health_session:  # it counts anew since it started
                node.health_session, node.bytes_in_now = item.session, 0
            node.bytes_in = min(node.bytes_in + max(0, item.bytes_in - node.bytes_in_now), _MOST_BYTES)
            node.bytes_in_now = item.bytes_in
        elif isinstance(item, Missing):
            self._missing(item, node, batch)
        elif isinstance(item, Event):
            batch.events.append(
                (node.id, item.kind, item.said_id, item.at, item.received_at, bytes(item.payload))
            )  # fmt: skip
        elif isinstance(item, Birth):
            self._birth(item, node, batch)
        elif isinstance(item, Reported):
            said = (node.id, Channel.REPORTED.value)
            batch.said[said] = (*said, item.received_at, bytes(item.payload))
        elif isinstance(item, Rejected):
            self._reject(item, node, batch)

    def _result(self, item: Result, node: Node, batch: _Batch) -> None:
        number = item.number
        row = (
            item.said_id, item.captured_at, item.received_at, item.content_type, item.properties, item.size, item.payload,
        )  # fmt: skip
        if number is None:
            batch.others[node.id].append((node.id, item.pipeline, None, None, None, *row))
        else:
            book = self._book(item, node, number.epoch, batch)
            if book is None:
                return
            came = book.ledger.of(number.priority)
            if len(came) >= MOST_RANGES and number.sequence > came.through + 1:
                self._reject(_refused(item, "scattered-numbers", f"{MOST_RANGES} holes before {number}"), None, batch)
                return
            self._touch(item, book, batch)
            if not book.ledger.take(number):
                node.repeats += 1
                batch.outcome.repeats += 1
                return
            batch.durable.append((node.id, item.pipeline, book.id, number.priority, number.sequence, *row))
            node.results += 1
            node.durable += 1
            batch.added_bytes += item.size + ROW_BYTES
        node.captured_at, node.stored_at = item.captured_at, batch.now
        batch.outcome.lags.append(batch.now - item.captured_at)

    def _missing(self, item: Missing, node: Node, batch: _Batch) -> None:
        book = self._book(item, node, item.epoch, batch)
        if book is None:
            return
        gap = item.gap
        priority, first, last = priority_of(gap.first), sequence_of(gap.first), sequence_of(gap.last)
        came = book.ledger.of(priority)
        if len(came) >= MOST_RANGES and first > came.through + 1:
            self._reject(_refused(item, "scattered-numbers", f"{MOST_RANGES} holes before {first}"), None, batch)
            return
        self._touch(item, book, batch)
        if not book.ledger.take_gap(gap):
            node.repeats += 1
            batch.outcome.repeats += 1
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

    def _ended(self, previous: Previous, item: Missing, node: Node, batch: _Batch) -> None:
        """An epoch ended with its store: what has not come of it never will."""
        if previous.epoch is None or previous.numbers is None:
            return
        book = self._book(item, node, previous.epoch, batch)
        if book is None:
            return
        for priority, next_number in enumerate(previous.numbers):
            for first, last in book.ledger.of(priority).missing(next_number - 1):
                book.ledger.of(priority).add(first, last)
                self._gap(book, priority, first, last, {"store-lost": last - first + 1}, [], item, batch)
        self._save_ledger(book)

    def _gap(
        self,
        book: _Book,
        priority: int,
        first: int,
        last: int,
        reasons: dict[str, int],
        previous: list[Any],
        item: Item,
        batch: _Batch,
    ) -> None:
        lost = sum(reasons.values())
        told = {clean(reason, 80): count for reason, count in reasons.items()}
        row = (book.id, priority, first, last, min(lost, 1 << 62), _json(told), _json(previous), item.received_at)
        self._database.run(_SAVE_GAP, row)
        batch.outcome.gaps += 1
        batch.outcome.lost += lost

    def _birth(self, item: Birth, node: Node, batch: _Batch) -> None:
        if not item.online and node.session not in (None, item.session):
            return  # the will of an earlier run
        node.session, node.online, node.status_at = item.session, int(item.online), item.received_at
        said = (node.id, Channel.STATUS.value)
        batch.said[said] = (*said, item.received_at, bytes(item.payload))

    def _reject(self, item: Rejected, node: Node | None, batch: _Batch) -> None:
        if item.number is not None and node is not None:
            book = self._book(item, node, item.number.epoch, batch)
            if book is None:
                return
            self._touch(item, book, batch)
            if not book.ledger.take(item.number):
                node.repeats += 1
                batch.outcome.repeats += 1
                return
        number = None if item.number is None else str(item.number)
        batch.rejected.append(
            (item.received_at, item.topic, item.reason, item.detail, number, item.size, item.payload)
        )  # fmt: skip
        batch.outcome.rejected[item.reason] += 1

    def _ping(self, item: Ping, batch: _Batch) -> None:
        node = None if item.address is None else self._nodes.get(item.address)
        if node is None:
            return
        batch.nodes[node.id] = node
        node.pinged_at = item.received_at
        if item.round_trip_s is None:
            node.unanswered += 1
        else:
            node.answered_at, node.round_trip_s, node.unanswered = item.received_at, item.round_trip_s, 0
            node.clock_offset_s = item.clock_offset_s
            node.heard_at = max(node.heard_at or 0.0, item.received_at)

    def _node(self, address: Address, at: float, batch: _Batch) -> Node | None:
        node = self._nodes.get(address)
        if node is None and len(self._nodes) < MOST_NODES:
            ((row,),) = self._database.rows(_NEW_NODE, (*address, at))
            node = self._nodes[address] = Node(row, *address, at)
            batch.outcome.known.append(address)
        return node

    def _book(self, item: Item, node: Node, epoch: str, batch: _Batch) -> _Book | None:
        """The ledger of an epoch; None, and the item is rejected, if there are too many."""
        key = (Address(node.region, node.site, node.name), epoch)
        book = self._books.get(key)
        if book is not None:
            return book
        rows = self._database.rows("SELECT id, state FROM ledger WHERE node = ? AND epoch = ?", (node.id, epoch))
        if rows:
            ((row, state),) = rows
            ledger = ledger_of(epoch, state)
        elif self._epochs[node.id] >= MOST_EPOCHS:
            self._reject(_refused(item, "too-many-epochs", f"{MOST_EPOCHS} of {node.site}/{node.name}"), None, batch)
            return None
        else:
            ledger = Ledger(epoch)
            new = "INSERT INTO ledger (node, epoch, state) VALUES (?, ?, '{}') RETURNING id"
            ((row,),) = self._database.rows(new, (node.id, epoch))
            self._epochs[node.id] += 1
        book = self._books[key] = _Book(row, ledger)
        return book

    def _touch(self, item: Item, book: _Book, batch: _Batch) -> None:
        assert item.address is not None  # noqa: S101 - it has a node
        key = (item.address, book.ledger.epoch)
        batch.books[key] = book
        batch.records[key] += 1

    def _save_ledger(self, book: _Book) -> None:
        self._database.run("UPDATE ledger SET state = ? WHERE id = ?", (_json(book.ledger.state()), book.id))

    def _write(self, batch: _Batch) -> None:
        database, outcome = self._database, batch.outcome
        if batch.durable:
            outcome.durable = outcome.stored = database.many(_SAVE_RESULT, batch.durable)
        for node_id, rows in batch.others.items():
            ((before,),) = database.rows("SELECT coalesce(max(ingest), 0) FROM result")
            stored = database.many(_SAVE_RESULT, rows)
            node = batch.nodes[node_id]
            node.results += stored
            node.repeats += len(rows) - stored
            outcome.stored += stored
            outcome.repeats += len(rows) - stored
            ((size,),) = database.rows("SELECT coalesce(sum(size), 0) FROM result WHERE ingest > ?", (before,))
            batch.added_bytes += int(size) + stored * ROW_BYTES
        for statement, rows in (
            (_SAVE_EVENT, batch.events), (_SAVE_HEALTH, batch.health), (_SAVE_SAID, list(batch.said.values())),
        ):  # fmt: skip
            if rows:
                database.many(statement, rows)
        if batch.books:
            states = [(_json(book.ledger.state()), book.id) for book in batch.books.values()]
            database.many("UPDATE ledger SET state = ? WHERE id = ?", states)
        if batch.nodes:
            database.many(_SAVE_NODE, [_changing(node) for node in batch.nodes.values()])
        if batch.rejected:
            self._write_rejected(batch)
        if batch.added_bytes:
            database.run("UPDATE collector SET stored_bytes = stored_bytes + ?", (batch.added_bytes,))

    def _write_rejected(self, batch: _Batch) -> None:
        self._database.many(_SAVE_REJECTED, batch.rejected[-MOST_REJECTED:])
        self._database.many(_COUNT_REJECTED, list(batch.outcome.rejected.items()))
        self._database.run(
            "DELETE FROM rejected WHERE ingest <= (SELECT max(ingest) FROM rejected) - ?", (MOST_REJECTED,)
        )


def apply_each(store: Store, items: Sequence[Item]) -> list[Outcome]:
    """Store a batch of which something is not taken: what it is gets found by halves, and rejected.

    Raises: StoreError: the store does not work at all.
    """
    store.refresh()
    try:
        return [store.apply(items)]
    except StoreError as error:
        if not refuses(error):
            raise
        if len(items) == 1 and isinstance(items[0], Rejected):
            return []  # not even that it was rejected: the log has to do
        if len(items) == 1:
            return apply_each(store, [_refused(items[0], "unstorable", str(error), durable=True)])
    middle = len(items) // 2
    return apply_each(store, items[:middle]) + apply_each(store, items[middle:])


def refuses(error: StoreError) -> bool:
    """Whether it is these values that the store does not take."""
    return error.code == "store-refused"


def _refused(item: Item, reason: str, detail: str, *, durable: bool = False) -> Rejected:
    """An item as one that cannot be used.

    Args:
        durable: whether it would not be any better if it came again.
    """
    topic = "" if item.address is None else f"{type(item).__name__.lower()} of {item.address}"
    number: Number | None = item.number if durable and isinstance(item, Result) else None
    payload = getattr(item, "payload", b"")
    return Rejected(
        item.address, item.size, item.received_at, item.fresh, topic, reason, clean(detail, 500), number, bytes(payload[:4096])
    )  # fmt: skip


def ledger_of(epoch: str, state: str) -> Ledger:
    """A ledger as it is stored."""
    return Ledger(epoch, {int(priority): ranges for priority, ranges in orjson.loads(state).items()})


def _changing(node: Node) -> list[Any]:
    return [*(getattr(node, name) for name in _CHANGING), node.id]


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
