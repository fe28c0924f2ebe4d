"""Turns records into rows of a batch, and updates nodes and ledgers in memory.

Memory is ahead of the database; if a batch cannot be stored, create a new `Ingest`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from hedgerow.region.config import QuotasSection
from hedgerow.region.store.batch import Batch
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.former_addresses import FormerAddresses
from hedgerow.region.store.life.identity import Forgotten, clear_topics, forgotten_nodes
from hedgerow.region.store.nodes import MAX_NODES, KnownNode, add_node, load_nodes
from hedgerow.region.store.numbered import NumberedIntake
from hedgerow.region.store.outboxes.ledgers import Ledgers
from hedgerow.region.store.outboxes.restores import Restores
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

FORGOTTEN: Final = "forgotten"
"""Why the messages of a node are refused that an operator has forgotten."""
_CLEAR_EVERY_S: Final = 60.0
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
        self._numbers = NumberedIntake(database, self.quotas, self._ledgers)
        self.restores = Restores(database)

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
            self._numbers.reject(record, None, batch)
            return
        if self._former.is_outdated(record):
            return
        node.count_message(record)
        batch.outcome.bytes_up[node.site] += record.size
        batch.nodes[node.id] = node
        if (refusal := self.quotas.refusal(record, node, batch.now)) is not None:
            self._numbers.reject(reject(record, *refusal), None, batch)
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
            if record.region is not None and not self.restores.hear(node.id, record.region):
                batch.greeted.add(record.address or node.address)
        elif isinstance(record, GapRecord):
            self._numbers.add_gap(record, node, batch)
        elif isinstance(record, EventRecord):
            batch.add_event(node, record)
            self.quotas.add(record, node)
        elif isinstance(record, StatusRecord):
            if node.update_status(record, is_known=self.twins.is_known(node, record.session)):
                batch.add_last_message(node, Channel.STATUS, record)
        elif isinstance(record, ReportedRecord):
            batch.add_last_message(node, Channel.REPORTED, record)
        elif isinstance(record, RejectedRecord):
            self._numbers.reject(record, node, batch)

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
            self._numbers.tell(node, EVENTS[change.kind, change.began], detail, batch)

    def _result(self, record: ResultRecord, node: KnownNode, batch: Batch) -> None:
        if record.named is not None and record.named not in self._former.names(node, record.address):
            refused = reject(record, "another-node", f"it names {record.named}", durable=True)
            self._numbers.reject(refused, node, batch)
            return
        if record.number is None:
            batch.add_unnumbered(node, record)
        elif not self._numbers.add(record, record.number, node, batch):
            return
        self.quotas.add(record, node)
        node.captured_at, node.stored_at = record.captured_at, batch.now
        batch.outcome.lags.append(batch.now - record.captured_at)

    def _ping(self, record: PingRecord, batch: Batch) -> None:
        node = None if record.address is None else self.nodes.get(record.address)
        if node is not None and node.id not in self._former.unseen:  # it is not there to answer yet
            batch.nodes[node.id] = node
            node.record_ping(record)
