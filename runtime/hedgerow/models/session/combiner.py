"""Flat combining: callers run each other's requests, so batches form without a dispatcher thread.

A caller puts its requests in the queue. If fewer callers are leading than may run at once, it leads: it takes the
oldest request and all that may go with it, from whichever caller, runs them and hands out the results. Otherwise it
waits until others have run its requests, or until it is its turn to lead. After Hendler, Incze, Shavit and Tzafrir,
"Flat combining and the synchronization-parallelism tradeoff", SPAA 2010.

Rules:
- A leader stops leading as soon as its own requests are done, and hands over to the caller that waits longest.
- While requests wait, as many callers lead as may run at once, or every waiting request belongs to a caller that leads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from hedgerow.models.session.batch_size import BatchSizePolicy
from hedgerow.models.session.batching import pick


class _Call:
    """One caller: how many of its tickets are still to be done, and how to wake it."""

    __slots__ = ("_alarm", "_asleep", "leading", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.leading = self._asleep = False
        self._alarm: threading.Lock | None = None  # always held but for the moment of waking; made when first needed

    def lie_down(self) -> threading.Lock:
        """Say that the caller is about to sleep. Returns: what it must acquire to do so."""
        if self._alarm is None:
            self._alarm = threading.Lock()
            self._alarm.acquire()
        self._asleep = True
        return self._alarm

    def wake(self) -> None:
        """Wake the caller, if it sleeps."""
        if self._asleep and self._alarm is not None:
            self._asleep = False
            self._alarm.release()


class Ticket:
    """One request on its way through the queue.

    Attributes:
        key: requests of one key may share a batch; None: it runs alone.
        rows: places it takes in a batch.
        request: what is to be run.
        result: what came of it, once it has run.
        call: who waits for it, for the combiner's own use.
    """

    __slots__ = ("call", "key", "request", "result", "rows")

    def __init__(self, key: Hashable, rows: int, request: Any) -> None:
        self.key = key
        self.rows = rows
        self.request = request
        self.result: Any = None
        self.call: _Call


class Combiner:
    """A queue whose callers run it.

    Args:
        run: runs one batch and sets the result of every ticket in it; called by up to `streams` threads at once.
        streams: how many callers may run batches at the same time.
        limit: most rows in a batch.
    Attributes:
        portion: decides how many rows a batch may have.
    """

    def __init__(self, run: Callable[[list[Ticket]], None], *, streams: int, limit: int) -> None:
        self.portion = BatchSizePolicy(limit, streams)
        self._run = run
        self._streams = streams
        self._lock = threading.Lock()
        self._waiting: list[Ticket] = []
        self._leaders = 0

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Have tickets run; returns when every one has its result.

        Raises: whatever `run` raises in this very thread. Tickets of others in that batch stay without a result.
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
            self._give_up(call)
            raise

    def _lead(self, call: _Call) -> None:
        while batch := self._next(call):
            began = time.perf_counter()
            try:
                self._run(batch)
            finally:
                self._hand_out(batch)
            took_s = time.perf_counter() - began
            with self._lock:
                self.portion.took(sum(ticket.rows for ticket in batch), took_s)

    def _next(self, call: _Call) -> list[Ticket]:
        """The next batch for a leader; empty: it has just stepped down."""
        with self._lock:
            waiting = self._waiting
            if call.left and waiting:
                places = [(ticket.key, ticket.rows) for ticket in waiting]
                chosen = pick(places, self.portion.most(sum(rows for _, rows in places)))
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
            heir = ticket.call
            if not heir.leading:
                heir.leading = True
                heir.wake()
                return
        self._leaders -= 1

    def _give_up(self, call: _Call) -> None:
        """Take a caller that was interrupted out of the queue, so that nobody waits for it to lead."""
        with self._lock:
            self._waiting = [ticket for ticket in self._waiting if ticket.call is not call]
            if call.leading:
                self._step_down(call)

    def _hand_out(self, batch: list[Ticket]) -> None:
        with self._lock:
            for ticket in batch:
                call = ticket.call
                call.left -= 1
                if call.left == 0:
                    call.wake()

    def _sleep(self, call: _Call) -> bool:
        """Wait until all is done or it is this caller's turn to lead. Returns: whether there is more to do."""
        with self._lock:
            if call.leading:
                return True
            if call.left == 0:
                return False
            alarm = call.lie_down()
        alarm.acquire()
        return True
