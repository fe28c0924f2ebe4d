"""The thread that owns the store: takes all that waits, commits it together, reports once.

Group commit without a timer: while one group is being written the next one gathers. An idle outbox writes a record at
once; a busy one shares its fsyncs among as many records as came meanwhile.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hedgerow.bus.outbox.database import DiskTrouble
from hedgerow.bus.outbox.records import Ack, OutboxEntry, OutboxError, Record
from hedgerow.bus.outbox.store import OutboxChanges, OutboxStore
from hedgerow.bus.outbox.window import ReadRequest

_GROUP_BYTES: Final = 2 << 20
_GROUP_JOBS: Final = 1000
_TRIES: Final = 4
"""On a full disk, each with less room to be used than the one before."""

Done = Callable[[OutboxError | None], None]
"""Called once: with None when the records are safe, else with why they are not stored."""


@dataclass(slots=True, eq=False)
class Append:
    """Store these, and that they came of these."""

    records: Sequence[Record]
    origins: Sequence[int]
    done: Done


@dataclass(slots=True, eq=False)
class Lose:
    """Give one up."""

    key: int
    epoch: str
    reason: str


class Sweep:
    """Look for what has expired, and let go of what has been acknowledged."""


class Close:
    """End."""


Job = Append | Ack | Lose | ReadRequest | Sweep | Close


@dataclass(slots=True)
class CommitOutcome:
    """What a group of jobs came to.

    Attributes:
        epoch, tops, used_bytes, entries: of the store; epoch "" if it could not be opened yet.
        done: whom to tell about appends, and what.
        appended: new entries.
        origins: of them; at opening, of earlier ones.
        read: what was wanted, and what it is; None if it could not be read.
        notes: what was lost.
        wrote: whether the disk took something.
        failure: why it did not.
    """

    epoch: str = ""
    tops: list[int] = field(default_factory=list)
    used_bytes: int = 0
    entries: int = 0
    done: list[tuple[Done, OutboxError | None]] = field(default_factory=list)
    appended: list[OutboxEntry] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    read: list[tuple[ReadRequest, list[OutboxEntry] | None]] = field(default_factory=list)
    notes: OutboxChanges = field(default_factory=OutboxChanges)
    wrote: bool = False
    failure: OutboxError | None = None


class OutboxWriter(threading.Thread):
    """Works off jobs in groups.

    Args:
        open_store: opens the store; called here, and again after trouble with the disk.
        report: gets the outcome of every group, first that of opening; called in this thread.
    """

    def __init__(self, open_store: Callable[[], OutboxStore], report: Callable[[CommitOutcome], None]) -> None:
        super().__init__(name="outbox-writer", daemon=True)
        self._open_store = open_store
        self._report = report
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._store: OutboxStore | None = None
        self._acks: list[Ack] = []

    def give(self, job: Job) -> None:
        """Do this, after what was given before."""
        self._jobs.put(job)

    def run(self) -> None:
        """(threading)"""
        outcome = CommitOutcome()
        self._opened(outcome)
        self._finish(outcome)
        if outcome.failure is not None and not isinstance(outcome.failure, DiskTrouble):
            return  # nothing that passes
        while True:
            jobs = self._take()
            outcome = CommitOutcome()
            self._work(jobs, outcome)
            closing = any(isinstance(job, Close) for job in jobs)
            if closing and self._store is not None:
                self._store.close()
                self._store = None
            self._finish(outcome)
            if closing:
                return

    def _take(self) -> list[Job]:
        jobs = [self._jobs.get()]
        size = 0
        with contextlib.suppress(queue.Empty):
            while not isinstance(job := jobs[-1], Close) and len(jobs) < _GROUP_JOBS:
                if isinstance(job, Append):
                    size += sum(record.size for record in job.records)
                    if size >= _GROUP_BYTES:
                        break
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _opened(self, outcome: CommitOutcome) -> OutboxStore | None:
        if self._store is None:
            try:
                self._store = self._open_store()
                outcome.origins = self._store.origins()
                outcome.wrote = True
            except OutboxError as error:
                outcome.failure = error
        return self._store

    def _work(self, jobs: Sequence[Job], outcome: CommitOutcome) -> None:
        appends = [job for job in jobs if isinstance(job, Append)]
        reads = [job for job in jobs if isinstance(job, ReadRequest)]
        self._acks += [job for job in jobs if isinstance(job, Ack)]
        store = self._opened(outcome)
        if store is None:
            outcome.done = [(job.done, outcome.failure) for job in appends]
            outcome.read = [(wanted, None) for wanted in reads]
            return
        losses = [job for job in jobs if isinstance(job, Lose)]
        idle = all(isinstance(job, Ack) for job in jobs)
        for tries_left in reversed(range(_TRIES)):
            try:
                if appends or losses or (not idle and (self._acks or store.may_expire)):
                    self._write(store, appends, losses, outcome)
                outcome.read = [(wanted, store.read(*wanted)) for wanted in reads]
            except OutboxError as error:
                if self._failed(store, error) and tries_left and not outcome.done:
                    continue
                outcome.failure = error
                if not outcome.done:  # else they were written, and reading failed
                    outcome.done = [(job.done, error) for job in appends]
                outcome.read = [(wanted, None) for wanted in reads]
            return

    def _write(
        self, store: OutboxStore, appends: Sequence[Append], losses: Sequence[Lose], outcome: CommitOutcome
    ) -> None:
        done: list[tuple[Done, OutboxError | None]] = []
        appended: list[OutboxEntry] = []
        origins: list[int] = []
        with store.transaction():
            self._trim(store)
            if store.expire():
                self.give(Sweep())
            for loss in losses:
                if loss.epoch == store.epoch:
                    store.lose([loss.key], loss.reason)
            for jobs in _together_first(appends):
                records = [record for job in jobs for record in job.records]
                made_of = [origin for job in jobs for origin in job.origins]
                try:
                    keys = store.append(records, made_of)
                except OutboxError as error:
                    if len(jobs) == 1:
                        done.append((jobs[0].done, error))
                    continue
                done += [(job.done, None) for job in jobs]
                origins += made_of
                for key, record in zip(keys, records, strict=True):
                    appended.append(OutboxEntry(key, key, record.topic, record.properties, record.payload))
                if len(jobs) > 1:
                    break
        self._acks.clear()
        outcome.done, outcome.appended, outcome.wrote = done, appended, True
        outcome.origins += origins

    def _trim(self, store: OutboxStore) -> None:
        for ack in self._acks:
            store.trim(ack)

    def _failed(self, store: OutboxStore, error: OutboxError) -> bool:
        """Nothing of the group is stored. Make what room can be made without any, or begin with opening again.

        Returns: whether it is worth another try.
        """
        again = isinstance(error, DiskTrouble) and store.make_room()
        try:
            with store.transaction():
                self._trim(store)
            self._acks.clear()
        except OutboxError:
            store.abandon()
            self._store = None
            return False
        return again

    def _finish(self, outcome: CommitOutcome) -> None:
        store = self._store
        if store is not None:
            outcome.epoch, outcome.tops, outcome.entries = store.epoch, store.tops, store.entries
            outcome.notes = store.notes()
            with contextlib.suppress(OutboxError):
                outcome.used_bytes = store.used_bytes
        self._report(outcome)


def _together_first(jobs: Sequence[Append]) -> Iterator[Sequence[Append]]:
    """All at once; and, for whoever goes on, one by one: one that is too large is not to harm the others."""
    if len(jobs) > 1:
        yield jobs
    yield from ([job] for job in jobs)
