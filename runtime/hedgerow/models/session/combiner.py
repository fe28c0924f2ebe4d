"""Flat combining: callers run each other's requests, so batches form without a dispatcher thread.

A caller puts its requests into the queue. If fewer callers lead than batches may run at once, it becomes a leader: it
takes the oldest request and all that can share its batch, from any caller, runs the batch and distributes the results.
Otherwise it waits until leaders have run its requests, or until it is its turn to lead. After Hendler, Incze, Shavit and
Tzafrir, "Flat combining and the synchronization-parallelism tradeoff", SPAA 2010.

Rules:
- A leader stops leading as soon as its own requests are done, and hands over to the longest waiting caller.
- While requests wait, there are as many leaders as batches may run at once, or every waiting request belongs to a leader.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from hedgerow.models.session.batch_size import BatchSizePolicy
from hedgerow.models.session.batching import pick


class _Call:
    """A caller: the number of its unfinished tickets, and a lock to wake it."""

    __slots__ = ("_asleep", "_wakeup", "leading", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.leading = self._asleep = False
        self._wakeup: threading.Lock | None = None  # held except at the moment of waking; created on first use

    def mark_sleeping(self) -> threading.Lock:
        """Mark the caller as asleep. Returns: the lock it must acquire to sleep."""
        if self._wakeup is None:
            self._wakeup = threading.Lock()
            self._wakeup.acquire()
        self._asleep = True
        return self._wakeup

    def wake(self) -> None:
        """Wake the caller, if it is asleep."""
        if self._asleep and self._wakeup is not None:
            self._asleep = False
            self._wakeup.release()


class Ticket:
    """A request in the queue.

    Attributes:
        key: requests with the same key may share a batch; None: it runs alone.
        rows: number of its rows in a batch.
        request: the request itself.
        retried: whether its caller runs its rows as requests of their own if it fails, so that its failure does not count.
        result: its result, once it has run.
        call: its caller; set by the combiner.
    """

    __slots__ = ("call", "key", "request", "result", "retried", "rows")

    def __init__(self, key: Hashable, rows: int, request: Any, *, retried: bool = False) -> None:
        self.key = key
        self.rows = rows
        self.request = request
        self.retried = retried
        self.result: Any = None
        self.call: _Call


class Combiner:
    """A request queue whose callers run the batches.

    Args:
        run: runs one batch and sets the result of every ticket in it; called by up to `streams` threads at once.
        streams: number of callers that may run batches at the same time.
        limit: most rows in a batch.
    Attributes:
        batch_size_policy: decides how many rows a batch may have.
    """

    def __init__(self, run: Callable[[list[Ticket]], None], *, streams: int, limit: int) -> None:
        self.batch_size_policy = BatchSizePolicy(limit, streams)
        self._run = run
        self._streams = streams
        self._lock = threading.Lock()
        self._waiting: list[Ticket] = []
        self._leaders = 0

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Run tickets, and return when each has its result.

        Raises: exceptions of `run` in this thread. Other callers' tickets in that batch get no result.
        """
        if not tickets:
            return
        call = _Call(len(tickets))
        for ticket in tickets:
            ticket.call = call
        with self._lock:
            self._waiting.extend(tickets)
            if self._leaders < self._streams:
                self._leaders += 1
                call.leading = True
        try:
            while True:
                if call.leading:
                    self._lead(call)
                if not self._sleep(call):
                    return
        except BaseException:
            self._withdraw(call)
            raise

    def _lead(self, call: _Call) -> None:
        while batch := self._next(call):
            started = time.perf_counter()
            try:
                self._run(batch)
            finally:
                self._distribute(batch)
            took_s = time.perf_counter() - started
            with self._lock:
                self.batch_size_policy.record(sum(ticket.rows for ticket in batch), took_s)

    def _next(self, call: _Call) -> list[Ticket]:
        """Return the next batch for a leader; empty: it no longer leads."""
        with self._lock:
            waiting = self._waiting
            if call.left and waiting:
                requests = [(ticket.key, ticket.rows) for ticket in waiting]
                chosen = pick(requests, self.batch_size_policy.max_rows(sum(rows for _, rows in requests)))
                if len(chosen) == len(waiting):
                    self._waiting = []
                    return waiting
                batch = [waiting[position] for position in chosen]
                for position in reversed(chosen):
                    del waiting[position]
                return batch
            self._step_down(call)
            return []

    def _step_down(self, call: _Call) -> None:
        call.leading = False
        for ticket in self._waiting:
            successor = ticket.call
            if not successor.leading:
                successor.leading = True
                successor.wake()
                return
        self._leaders -= 1

    def _withdraw(self, call: _Call) -> None:
        """Remove an interrupted caller from the queue, so that others do not wait for it to lead."""
        with self._lock:
            self._waiting = [ticket for ticket in self._waiting if ticket.call is not call]
            if call.leading:
                self._step_down(call)

    def _distribute(self, batch: list[Ticket]) -> None:
        with self._lock:
            for ticket in batch:
                call = ticket.call
                call.left -= 1
                if call.left == 0:
                    call.wake()

    def _sleep(self, call: _Call) -> bool:
        """Wait until all tickets are done or this caller must lead. Returns: whether it may have to lead."""
        with self._lock:
            if call.leading:
                return True
            if call.left == 0:
                return False
            wakeup = call.mark_sleeping()
        wakeup.acquire()
        return True
