"""Thread that owns the store and commits queued jobs in groups.

Group commit without a timer: while one group is written, the next one accumulates. An idle outbox writes a record at once; a
busy one shares each fsync among all records that arrived in the meantime. With `commit_every_s`, a group waits for others for that
long: a card or a flash disk wears by the number of its writes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from hedgerow.bus.outbox.database import DiskTrouble
from hedgerow.bus.outbox.epochs import Epochs, KeyAck
from hedgerow.bus.outbox.kept import KnownStore
from hedgerow.bus.outbox.records import OutboxEntry, OutboxError, Record, StorePosition
from hedgerow.bus.outbox.store import OutboxChanges, OutboxStore
from hedgerow.bus.outbox.window import ReadRequest

log = structlog.get_logger(__name__)

_GROUP_BYTES: Final = 2 << 20
_GROUP_JOBS: Final = 1000
_ATTEMPTS: Final = 4
"""On a full disk, each with a smaller quota than the last."""

Done = Callable[[OutboxError | None], None]
"""Called once: with None when the records are stored, else with the error."""


@dataclass(slots=True, eq=False)
class Append:
    """Store records together with their origins."""

    records: Sequence[Record]
    origins: Sequence[int]
    done: Done


@dataclass(slots=True, eq=False)
class GiveUp:
    """Give up a record."""

    key: int
    epoch: str
    reason: str


@dataclass(slots=True, eq=False)
class Trim:
    """Delete or keep what the region has acknowledged of an epoch; see `OutboxStore.trim`."""

    epoch: str
    acked: KeyAck
    records: Sequence[int]
    at: StorePosition | None


@dataclass(slots=True, eq=False)
class Learn:
    """Note what the region says of its store; see `OutboxStore.learn`."""

    of: StorePosition


@dataclass(slots=True, eq=False)
class Leave:
    """Number what waits of an epoch anew; see `OutboxStore.leave_epoch`."""

    epoch: str
    why: str


class Sweep:
    """Expire records and delete acknowledged ones."""


class Close:
    """Close the store and end the thread."""


Job = Append | Trim | Learn | Leave | GiveUp | ReadRequest | Sweep | Close


@dataclass(slots=True)
class CommitOutcome:
    """Outcome of a group of jobs.

    Attributes:
        is_open: whether the store has been opened.
        epoch, epochs, next_keys, numbers, used_bytes, kept_bytes, entries, moved, stores, region: of the store.
        callbacks: the appends' callbacks, with their argument.
        appended: new entries.
        origins: of the new entries; after opening, the remembered ones.
        reads: requested reads and their entries; None: reading failed.
        changes: lost records and events.
        wrote: whether a write succeeded.
        failure: the error of a failed write or read.
    """

    is_open: bool = False
    epoch: str = ""
    epochs: Epochs = field(default_factory=Epochs)
    next_keys: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    used_bytes: int = 0
    kept_bytes: int = 0
    stores: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    region: KnownStore = field(default_factory=KnownStore)
    entries: int = 0
    moved: list[str] = field(default_factory=list)
    callbacks: list[tuple[Done, OutboxError | None]] = field(default_factory=list)
    appended: list[OutboxEntry] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    reads: list[tuple[ReadRequest, list[OutboxEntry] | None]] = field(default_factory=list)
    changes: OutboxChanges = field(default_factory=OutboxChanges)
    wrote: bool = False
    failure: OutboxError | None = None


class OutboxWriter(threading.Thread):
    """Runs jobs in groups.

    Args:
        open_store: opens the store; called in this thread, and again after disk errors.
        report: called in this thread with the outcome of opening, then of every group.
        commit_every_s: longest time that a group waits for others; 0: it is written at once.
    """

    def __init__(
        self,
        open_store: Callable[[], OutboxStore],
        report: Callable[[CommitOutcome], None],
        commit_every_s: float = 0.0,
    ) -> None:
        super().__init__(name="outbox-writer", daemon=True)
        self._commit_every_s = commit_every_s
        self._open_store = open_store
        self._report = report
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._store: OutboxStore | None = None
        self._trims: list[Trim] = []

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def hurry(self) -> None:
        """Write what waits, and from now on everything at once."""
        self._commit_every_s = 0.0
        self._jobs.put(Sweep())

    def run(self) -> None:
        """(threading) Run jobs until `Close`."""
        outcome = CommitOutcome()
        self._ensure_open(outcome)
        self._finish(outcome)
        if outcome.failure is not None and not isinstance(outcome.failure, DiskTrouble):
            return  # permanent
        while True:
            jobs = self._take()
            outcome = CommitOutcome()
            self._run_jobs(jobs, outcome)
            closing = any(isinstance(job, Close) for job in jobs)
            if closing and self._store is not None:
                self._store.close()
                self._store = None
            self._finish(outcome)
            if closing:
                return

    def _take(self) -> list[Job]:
        jobs = [self._jobs.get()]
        due = time.monotonic() + self._commit_every_s
        size = 0
        with contextlib.suppress(queue.Empty):
            while not isinstance(job := jobs[-1], Close) and len(jobs) < _GROUP_JOBS:
                if isinstance(job, Append):
                    size += sum(record.size for record in job.records)
                    if size >= _GROUP_BYTES:
                        break
                if isinstance(job, ReadRequest) or self._commit_every_s == 0:
                    due = 0.0
                wait_s = due - time.monotonic()
                jobs.append(self._jobs.get(timeout=wait_s) if wait_s > 0 else self._jobs.get_nowait())
        return jobs

    def _ensure_open(self, outcome: CommitOutcome) -> OutboxStore | None:
        if self._store is None:
            try:
                self._store = self._open_store()
                outcome.origins = self._store.origins()
                outcome.wrote = True
            except Exception as error:  # noqa: BLE001 - see `_explained`
                outcome.failure = _explained(error)
                self._abandon()
        return self._store

    def _run_jobs(self, jobs: Sequence[Job], outcome: CommitOutcome) -> None:
        appends = [job for job in jobs if isinstance(job, Append)]
        reads = [job for job in jobs if isinstance(job, ReadRequest)]
        self._trims += [job for job in jobs if isinstance(job, Trim)]
        store = self._ensure_open(outcome)
        if store is None:
            outcome.callbacks = [(job.done, outcome.failure) for job in appends]
            outcome.reads = [(request, None) for request in reads]
            return
        changes = [job for job in jobs if isinstance(job, GiveUp | Leave | Learn)]
        idle = all(isinstance(job, Trim) for job in jobs)
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                if appends or changes or (not idle and (self._trims or store.has_expired)):
                    self._write(store, appends, changes, outcome)
                outcome.reads = [(request, store.read(*request)) for request in reads]
            except Exception as problem:  # noqa: BLE001 - see `_explained`
                error = _explained(problem)
                if self._failed(store, error) and attempts_left and not outcome.callbacks:
                    continue
                outcome.failure = error
                if not outcome.callbacks:  # else they were written, and only reading failed
                    outcome.callbacks = [(job.done, error) for job in appends]
                outcome.reads = [(request, None) for request in reads]
            return

    def _write(
        self,
        store: OutboxStore,
        appends: Sequence[Append],
        changed: Sequence[GiveUp | Leave | Learn],
        outcome: CommitOutcome,
    ) -> None:
        callbacks: list[tuple[Done, OutboxError | None]] = []
        appended: list[OutboxEntry] = []
        origins: list[int] = []
        with store.transaction():
            for each in changed:
                if isinstance(each, Learn):
                    store.learn(each.of)
            self._trim(store)
            if store.expire():
                self.submit(Sweep())
            for each in changed:
                if isinstance(each, Learn):
                    continue
                if isinstance(each, Leave):
                    store.leave_epoch(each.epoch, each.why)
                elif store.is_of(each.key, each.epoch):
                    store.give_up([each.key], each.reason)
            for jobs in _all_then_each(appends):
                records = [record for job in jobs for record in job.records]
                batch_origins = [origin for job in jobs for origin in job.origins]
                try:
                    keys = store.append(records, batch_origins)
                except OutboxError as error:
                    if len(jobs) == 1:
                        callbacks.append((jobs[0].done, error))
                    continue
                callbacks += [(job.done, None) for job in jobs]
                origins += batch_origins
                for key, record in zip(keys, records, strict=True):
                    appended.append(
                        OutboxEntry(key, key, record.topic, record.properties, record.payload, record.check)
                    )
                if len(jobs) > 1:
                    break
        self._trims.clear()
        outcome.callbacks, outcome.appended, outcome.wrote = callbacks, appended, True
        outcome.origins += origins

    def _trim(self, store: OutboxStore) -> None:
        for each in self._trims:
            store.trim(each.epoch, each.acked, each.records, each.at)

    def _failed(self, store: OutboxStore, error: OutboxError) -> bool:
        """Handle a failed group, of which nothing is stored: free space, and close the store if it still cannot be written.

        Returns: whether to retry.
        """
        retry = isinstance(error, DiskTrouble) and store.free_space()
        try:
            with store.transaction():
                self._trim(store)
            self._trims.clear()
        except Exception:  # noqa: BLE001 - of whatever kind, the store is opened again
            self._abandon()
            return False
        return retry

    def _finish(self, outcome: CommitOutcome) -> None:
        store = self._store
        if store is not None:
            outcome.is_open, outcome.moved = True, store.moved
            outcome.epoch, outcome.epochs = store.epoch, store.epochs
            outcome.next_keys, outcome.numbers, outcome.entries = store.next_keys, list(store.numbers), store.entries
            outcome.stores, outcome.region = store.stores, store.region
            try:
                outcome.changes = store.take_changes()
                outcome.used_bytes, outcome.kept_bytes = store.used_bytes, store.kept_bytes
            except OutboxError:
                pass  # the size is not known now
            except Exception as error:  # noqa: BLE001 - see `_explained`
                outcome.failure = outcome.failure or _explained(error)
        self._report(outcome)

    def _abandon(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.abandon()


def _explained(error: Exception) -> OutboxError:
    """Return an error as one of the outbox. A bug must not end the thread: nothing would be stored any more."""
    if isinstance(error, OutboxError):
        return error
    log.error("outbox-failed", exc_info=error)
    return OutboxError(f"{type(error).__name__}: {error}", remedy="Report this with the node's log.", code="internal")


def _all_then_each(jobs: Sequence[Append]) -> Iterator[Sequence[Append]]:
    """Yield all jobs together, then each alone, so that one oversized record does not fail the others."""
    if len(jobs) > 1:
        yield jobs
    yield from ([job] for job in jobs)
