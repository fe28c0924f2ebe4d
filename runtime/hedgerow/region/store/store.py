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
from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from hedgerow import __version__
from hedgerow.bus.outbox.records import Ack
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import AckDue, Batch, BatchOutcome
from hedgerow.region.store.database.database import Database, RegionStoreError, StoreRefused
from hedgerow.region.store.ingest import Ingest
from hedgerow.region.store.ledgers import LedgerKey, newest_acks
from hedgerow.region.store.liveness import Liveness, judge
from hedgerow.region.store.records import RejectedRecord, StoreRecord, reject
from hedgerow.region.store.retention import prune
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

_SAVE_COLLECTOR: Final = (
    "INSERT INTO collector (one, region, started_at, beat_at, connected, version, silent_after_s, canary_every_s, "
    "stored_bytes) VALUES (1, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (one) DO UPDATE SET region = excluded.region, "
    "started_at = excluded.started_at, beat_at = excluded.beat_at, connected = excluded.connected, "
    "version = excluded.version, silent_after_s = excluded.silent_after_s, canary_every_s = excluded.canary_every_s"
)


class RegionStore:
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
        return list(self._ingest.nodes)

    def acks(self) -> list[tuple[LedgerKey, Ack]]:
        """What has come of every outbox, of its newest epoch: said again at the start, in case it was not heard before."""
        return newest_acks(self._database)

    def statuses(self, now: float) -> Counter[Liveness]:
        """How many nodes are how."""
        after_s = self._config.region.silent_after_s
        return Counter(judge(node.signs, now, after_s)[0] for node in self._ingest.nodes.values())

    def beat(self, *, connected: bool) -> None:
        """Write down that the collector is there.

        Raises: StoreError: it cannot be written.
        """
        config = self._config
        values = (config.region.name, self._started_at, time.time(), int(connected), __version__)
        self._database.run(_SAVE_COLLECTOR, (*values, config.region.silent_after_s, config.ping.every_s))

    def apply(self, records: Sequence[StoreRecord]) -> BatchOutcome:
        """Store a batch; when this returns it is on the disk.

        Raises: StoreError: nothing of it is stored.
        """
        batch = Batch(time.time())
        try:
            with self._database.transaction():
                for record in records:
                    self._ingest.add(record, batch)
                batch.write(self._database)
        except RegionStoreError:
            self._stale = True
            raise
        except Exception as error:  # ours to mend; what came with it is rejected, and the rest goes on
            self._stale = True
            log.exception("store-failed")
            raise StoreRefused(f"{type(error).__name__}: {error}", remedy="See the log.") from error
        self.stored_bytes += batch.added_bytes
        for key, outbox in batch.outboxes.items():
            batch.outcome.acks[key] = AckDue(outbox.ledger.ack(), batch.record_counts[key], key in batch.urgent)
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
        with self._database.transaction():
            freed, more = prune(self._database, self._config.retention, self.stored_bytes, now)
        self.stored_bytes -= freed
        return more

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def _load(self) -> None:
        self._ingest = Ingest(self._database)
        ((self.stored_bytes,),) = self._database.rows("SELECT stored_bytes FROM collector")
        self._stale = False


def apply_each(store: RegionStore, records: Sequence[StoreRecord]) -> list[BatchOutcome]:
    """Store a batch of which something is not taken: what it is gets found by halves, and rejected.

    Raises: StoreError: the store does not work at all.
    """
    store.refresh()
    try:
        return [store.apply(records)]
    except RegionStoreError as error:
        if not is_refused(error):
            raise
        if len(records) == 1 and isinstance(records[0], RejectedRecord):
            return []  # not even that it was rejected: the log has to do
        if len(records) == 1:
            return apply_each(store, [reject(records[0], "unstorable", str(error), durable=True)])
    middle = len(records) // 2
    return apply_each(store, records[:middle]) + apply_each(store, records[middle:])


def is_refused(error: RegionStoreError) -> bool:
    """Whether it is these values that the store does not take."""
    return error.code == "store-refused"
