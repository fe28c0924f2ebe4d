"""The region's store: stores each record once, and keeps the ledger of every outbox.

Rules:
- Records are stored in the order received, each batch in one transaction together with the ledgers. So a result is in the
  store if and only if its number is in the ledger, even if the process is killed.
- Records may be acknowledged once `apply` has returned, and not before.
- After an error nothing of the batch is stored, and the state in memory is read again.
- One thread uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from hedgerow import __version__
from hedgerow.bus.outbox.records import Ack, bounded
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import AckDue, Batch, BatchOutcome
from hedgerow.region.store.database.database import Database, RegionStoreError, StoreRefused
from hedgerow.region.store.ingest import Ingest
from hedgerow.region.store.life.identity import begin_batch
from hedgerow.region.store.liveness import Liveness, NodeStatus, judge
from hedgerow.region.store.nodes import KnownNode
from hedgerow.region.store.outboxes.ledgers import LedgerKey, newest_acks, newest_checks
from hedgerow.region.store.records import RejectedRecord, StoreRecord, reject
from hedgerow.region.store.retention import prune, prune_ledgers
from hedgerow.region.store.twins.rows import store_id
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

_SAVE_COLLECTOR: Final = (
    "INSERT INTO collector (one, region, started_at, beat_at, connected, version, silent_after_s, canary_every_s, "
    "stored_bytes, position) VALUES (1, ?, ?, ?, ?, ?, ?, ?, 0, (SELECT coalesce(max(lost_to), 0) FROM restoration)) ON CONFLICT (one) DO UPDATE SET region = excluded.region, "
    "started_at = excluded.started_at, beat_at = excluded.beat_at, connected = excluded.connected, "
    "version = excluded.version, silent_after_s = excluded.silent_after_s, canary_every_s = excluded.canary_every_s"
)


class RegionStore:
    """Store of everything received from the sites.

    Args:
        database: opened to write; closed with the store, and if this raises.
        config: the region and its retention.
        clock: a monotonic clock, in seconds.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, config: RegionConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._database = database
        self._config = config
        self._started_at = time.time()
        try:
            self.beat(connected=False)
            self._load()
        except BaseException:
            database.close()  # it holds a lock that the next attempt needs
            raise

    @property
    def id(self) -> str:
        """Random id of the store."""
        return store_id(self._database)

    @property
    def nodes(self) -> list[Address]:
        """All known nodes."""
        return list(self._ingest.nodes)

    def acks(self) -> list[tuple[LedgerKey, Ack]]:
        """Return an acknowledgement for every outbox, to repeat at the start in case the last one was lost."""
        ((position,),) = self._database.rows("SELECT position FROM collector")
        return newest_acks(self._database, self._ingest.restores.at(position))

    def statuses(self, now: float) -> dict[Address, NodeStatus]:
        """Return the status of every node. Raises: RegionStoreError: it cannot be read."""
        if self._database.rows("SELECT changes FROM collector") != [(self._changes,)]:
            self._load()
        after_s = self._config.region.silent_after_s
        twins = self._ingest.twins.kinds()
        return {
            address: _status(node, now, after_s, twins.get(node.id, ())) for address, node in self._ingest.nodes.items()
        }

    def beat(self, *, connected: bool) -> None:
        """Write the collector's heartbeat.

        Raises: RegionStoreError: it cannot be written.
        """
        config = self._config
        values = (config.region.name, self._started_at, time.time(), int(connected), __version__)
        with self._database.transaction():
            self._database.run(_SAVE_COLLECTOR, (*values, config.region.silent_after_s, config.ping.every_s))

    def apply(self, records: Sequence[StoreRecord]) -> BatchOutcome:
        """Store a batch; it is on disk when this returns.

        Raises: RegionStoreError: nothing of it was stored.
        """
        batch = Batch(time.time())
        try:
            self._ingest.begin()
            with self._database.transaction():
                changes, position = begin_batch(self._database)
                if changes != self._changes:
                    self._load()  # a node was renamed, forgotten or admitted
                for record in records:
                    self._ingest.add(record, batch)
                batch.write(self._database)
                self._ingest.save_ledgers(batch)
                self._ingest.quotas.save(self._database)
                self._ingest.twins.save(self._database)
                at = self._ingest.restores.at(position)
                for key, outbox in batch.outboxes.items():
                    ack = replace(
                        outbox.ledger.ack(), held=batch.held_by(key), at=at, unread=bounded(batch.unread.get(key, {}))
                    )
                    if key in batch.asked_again:  # it may have missed earlier acknowledgements
                        ack = ack.after(replace(ack, held=newest_checks(self._database, outbox.id, outbox.clashes)))
                    batch.outcome.acks[key] = AckDue(ack, batch.record_counts[key], key in batch.urgent)
                for address in batch.greeted:
                    batch.outcome.acks[address, ""] = AckDue(Ack("", {}, held={}, at=at), 0, False)
        except RegionStoreError:
            self._stale = True
            raise
        except Exception as error:  # a bug: reject the record that triggers it, and go on
            self._stale = True
            log.exception("store-failed")
            raise StoreRefused(
                f"{type(error).__name__}: {error}", remedy="Report this with the service's log."
            ) from error
        self.stored_bytes += batch.added_bytes
        return batch.outcome

    def set_aside(self, record: RejectedRecord) -> BatchOutcome:
        """Keep a record that has failed twice in the table `rejected`, and nothing else of it.

        Raises: RegionStoreError: the store does not work at all.
        """
        batch = Batch(time.time())
        batch.add_rejected(record)
        try:
            with self._database.transaction():
                batch.write_rejected(self._database)
        except RegionStoreError as error:
            if not is_refused(error):
                raise
            log.exception("record-lost", site=record.site, detail=record.detail)  # counted by the outcome
        return batch.outcome

    def refresh(self) -> None:
        """Read the state again if the last batch failed.

        Raises: RegionStoreError: it cannot be read.
        """
        if self._stale:
            self._load()

    def prune(self, now: float) -> bool:
        """Delete a little of what exceeds the retention. Returns: whether there may be more.

        Raises: RegionStoreError: it cannot be deleted.
        """
        with self._database.transaction():
            freed, more = prune(self._database, self._config.retention, self.stored_bytes, now)
            deleted = prune_ledgers(self._database, self._config.retention, now)
        if deleted:
            self._ingest.forget_ledgers()
        self.stored_bytes -= freed
        return more

    def tidy(self) -> BatchOutcome:
        """Forget what two processes used that are long gone; call it now and then.

        Raises: RegionStoreError: the store cannot be written.
        """
        batch = Batch(time.time())
        if self._ingest.twins.twins:
            with self._database.transaction():
                self._ingest.tidy(batch)
                batch.write(self._database)
                self._ingest.twins.save(self._database)
        return batch.outcome

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _load(self) -> None:
        ((self.stored_bytes, self._changes),) = self._database.rows("SELECT stored_bytes, changes FROM collector")
        self._ingest = Ingest(self._database, self._config.quotas, self._clock)
        self._stale = False


def _status(node: KnownNode, now: float, silent_after_s: float, twins: tuple[str, ...]) -> NodeStatus:
    """Return a node's status; unknown if its row cannot be read, so that the others have theirs."""
    try:
        signs = replace(node.signs, name_in_use="it is" if "name" in twins else "")
        return NodeStatus(judge(signs, now, silent_after_s)[0], node.crashes, twins)
    except Exception:
        log.exception("node-unreadable", node=f"{node.site}/{node.name}")
        return NodeStatus(Liveness.UNKNOWN, 0)


def apply_each(store: RegionStore, records: Sequence[StoreRecord]) -> list[BatchOutcome]:
    """Store a batch in which a record is refused: find that record by bisection, and reject it.

    Raises: RegionStoreError: the store does not work at all.
    """
    store.refresh()
    try:
        return [store.apply(records)]
    except RegionStoreError as error:
        if not is_refused(error):
            raise
        if len(records) == 1 and isinstance(records[0], RejectedRecord):
            store.refresh()
            return [store.set_aside(records[0])]
        if len(records) == 1:
            return apply_each(store, [reject(records[0], "unstorable", str(error), durable=True)])
    middle = len(records) // 2
    return apply_each(store, records[:middle]) + apply_each(store, records[middle:])


def is_refused(error: RegionStoreError) -> bool:
    """Whether the store refuses these values, rather than being unavailable."""
    return error.code == "store-refused"
