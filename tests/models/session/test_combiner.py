"""Flat combining: every request runs once, none starves, and no caller leads for ever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.models.session.combiner import Combiner, Ticket, _Call


class Bench:
    """Runs batches and records which thread ran which; `hold` keeps a batch running until it is released."""

    def __init__(self, streams: int = 1, limit: int = 8) -> None:
        self.combiner = Combiner(self._run, streams=streams, limit=limit)
        self.batches: list[tuple[int, list[Ticket]]] = []
        self.running = 0
        self.most_running = 0
        self.gates: dict[object, tuple[threading.Event, threading.Event]] = {}
        self._lock = threading.Lock()

    def hold(self, request: object) -> tuple[threading.Event, threading.Event]:
        """Return two events: the batch with this request has started; it may end."""
        gate = self.gates[request] = (threading.Event(), threading.Event())
        return gate

    def submit(self, *requests: object, key: object = "a", rows: int = 1) -> list[object]:
        tickets = [Ticket(key, rows, request) for request in requests]
        self.combiner.submit(tickets)
        return [ticket.result for ticket in tickets]

    def wait_until_queued(self, count: int) -> None:
        while len(self.combiner._waiting) < count:
            threading.Event().wait(0.001)

    def _run(self, tickets: list[Ticket]) -> None:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.batches.append((threading.get_ident(), tickets))
        for ticket in tickets:
            started, may_end = self.gates.get(ticket.request, (None, None))
            if started and may_end:
                started.set()
                assert may_end.wait(60)
        with self._lock:
            self.running -= 1
        for ticket in tickets:
            ticket.result = ("done", ticket.request)

    def requests(self) -> list[list[object]]:
        return [[ticket.request for ticket in batch] for _, batch in self.batches]


def test_a_lone_caller_runs_its_own_requests_in_its_own_thread() -> None:
    """Without other callers there is no hop to another thread."""
    bench = Bench()

    assert bench.submit(1, 2, 3) == [("done", 1), ("done", 2), ("done", 3)]
    assert bench.requests() == [[1, 2, 3]]
    assert bench.batches[0][0] == threading.get_ident()


def test_submitting_no_requests_runs_no_batch() -> None:
    bench = Bench()
    bench.combiner.submit([])
    assert bench.batches == []


def test_requests_that_wait_while_a_batch_runs_share_the_next_one() -> None:
    bench = Bench()
    started, may_end = bench.hold("first")
    with ThreadPoolExecutor(4) as pool:
        pool.submit(bench.submit, "first")
        started.wait(60)
        others = [pool.submit(bench.submit, name) for name in ("b", "c", "d")]
        bench.wait_until_queued(3)
        may_end.set()
        results = [other.result(60) for other in others]

    assert results == [[("done", name)] for name in ("b", "c", "d")]
    assert [sorted(map(str, batch)) for batch in bench.requests()] == [["first"], ["b", "c", "d"]]


def test_a_leader_returns_when_its_own_requests_are_done_and_another_takes_over() -> None:
    """Otherwise one caller would run all requests for ever, and its own results would not be published."""
    bench = Bench()
    started, may_end = bench.hold("mine")
    started_theirs, may_end_theirs = bench.hold("theirs")
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(bench.submit, "mine")
        started.wait(60)
        theirs = pool.submit(bench.submit, "theirs")
        bench.wait_until_queued(1)
        may_end.set()
        assert mine.result(60) == [("done", "mine")]  # although the other batch cannot end yet
        started_theirs.wait(60)
        may_end_theirs.set()
        assert theirs.result(60) == [("done", "theirs")]

    assert bench.batches[0][0] != bench.batches[1][0]


def test_as_many_callers_lead_as_there_are_streams() -> None:
    bench = Bench(streams=2)
    started_a, may_end_a = bench.hold("a")
    started_b, may_end_b = bench.hold("b")
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.submit(bench.submit, "a"), pool.submit(bench.submit, "b")
        assert started_a.wait(60)
        assert started_b.wait(60)  # at the same time
        may_end_a.set()
        may_end_b.set()
        a.result(60), b.result(60)

    assert bench.most_running == 2


def test_a_leader_waits_for_its_request_in_another_leaders_batch() -> None:
    """Meanwhile, others may lead in its place."""
    bench = Bench(streams=2, limit=1)
    started, may_end = bench.hold("slow")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.submit, "slow", "quick")
        started.wait(60)
        second: Future[list[object]] = pool.submit(bench.submit, "other")
        assert second.result(60) == [("done", "other")]  # the other stream runs it, perhaps `quick` too
        assert not first.done()
        may_end.set()
        assert first.result(60) == [("done", "slow"), ("done", "quick")]


def test_requests_of_other_keys_do_not_overtake_the_oldest_for_ever() -> None:
    bench = Bench(limit=2)
    started, may_end = bench.hold("first")
    with ThreadPoolExecutor(8) as pool:
        pool.submit(bench.submit, "first")
        started.wait(60)
        pool.submit(bench.submit, "odd", key="odd")
        bench.wait_until_queued(1)
        for number in range(5):
            pool.submit(bench.submit, number, key="even")
        bench.wait_until_queued(6)
        may_end.set()

    assert bench.requests()[1] == ["odd"]


@pytest.mark.parametrize("streams", [1, 2, 3])
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 9))
@settings(max_examples=examples(8), deadline=None)
def test_with_many_callers_every_request_runs_once_and_its_result_goes_to_its_caller(
    streams: int, seed: int, limit: int
) -> None:
    bench = Bench(streams, limit)
    source = random.Random(seed)
    plans = [
        [
            [
                ((caller, call, i), source.choice(["a", "b", None]), source.randint(1, 3))
                for i in range(source.randint(0, 5))
            ]
            for call in range(25)
        ]
        for caller in range(8)
    ]

    def caller(plan: list[list[tuple[object, object, int]]]) -> bool:
        for call in plan:
            tickets = [Ticket(key, rows, request) for request, key, rows in call]
            bench.combiner.submit(tickets)
            if [ticket.result for ticket in tickets] != [("done", request) for request, _, _ in call]:
                return False
        return True

    with ThreadPoolExecutor(len(plans)) as pool:
        assert all(pool.map(caller, plans, timeout=60))

    ran = Counter(request for batch in bench.requests() for request in batch)
    assert ran == Counter(request for plan in plans for call in plan for request, _, _ in call)
    assert bench.most_running <= streams
    assert bench.combiner._leaders == 0
    assert bench.combiner._waiting == []
    for _, batch in bench.batches:
        assert len({ticket.key for ticket in batch}) == 1
        assert len(batch) == 1 or (batch[0].key is not None and sum(ticket.rows for ticket in batch) <= limit)


def test_a_caller_that_is_woken_twice_wakes_once() -> None:
    """Once to lead, and once because others have already run its requests."""
    call = _Call(1)
    call.wake()
    for _ in range(2):
        wakeup = call.mark_sleeping()
        call.wake()
        call.wake()
        assert wakeup.acquire(blocking=False)
        assert not wakeup.acquire(blocking=False)


def test_a_caller_that_must_lead_does_not_sleep() -> None:
    """It may have become a leader just before."""
    combiner, call = Bench().combiner, _Call(1)
    call.leading = True

    assert combiner._sleep(call)


def test_the_time_of_a_batch_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take no time leave no share to others."""
    monkeypatch.setattr("time.perf_counter", lambda: 5.0)
    bench = Bench(streams=2)
    bench.submit(1)

    assert bench.combiner.batch_size_policy.max_rows(10) == 8


def test_an_interrupt_in_a_leader_leaves_the_queue_usable() -> None:
    """Ctrl-C while a model runs must not hang the other pipelines."""

    def run(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.result = "done"
            if ticket.request == "stop":
                raise KeyboardInterrupt

    combiner = Combiner(run, streams=1, limit=1)
    tickets = [Ticket("a", 1, "stop"), Ticket("a", 1, "never run")]
    with pytest.raises(KeyboardInterrupt):
        combiner.submit(tickets)

    after = Ticket("a", 1, "fine")
    submit: Callable[[], None] = lambda: combiner.submit([after])  # noqa: E731 - one line for a thread
    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    thread.join(60)
    assert after.result == "done"
    assert tickets[1].result is None
