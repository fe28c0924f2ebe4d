"""Flat combining: nothing lost, nothing twice, nobody starved, nobody made to serve for ever."""

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
    """Runs batches and writes down who ran what; `hold` keeps a batch running until it is let go."""

    def __init__(self, streams: int = 1, limit: int = 8) -> None:
        self.combiner = Combiner(self._run, streams=streams, limit=limit)
        self.batches: list[tuple[int, list[Ticket]]] = []
        self.at_work = 0
        self.most_at_work = 0
        self.gates: dict[object, tuple[threading.Event, threading.Event]] = {}
        self._lock = threading.Lock()

    def hold(self, request: object) -> tuple[threading.Event, threading.Event]:
        """Events: the batch with this request has begun; it may end."""
        gate = self.gates[request] = (threading.Event(), threading.Event())
        return gate

    def ask(self, *requests: object, key: object = "a", rows: int = 1) -> list[object]:
        tickets = [Ticket(key, rows, request) for request in requests]
        self.combiner.submit(tickets)
        return [ticket.result for ticket in tickets]

    def waits_until_queued(self, count: int) -> None:
        while len(self.combiner._waiting) < count:
            threading.Event().wait(0.001)

    def _run(self, tickets: list[Ticket]) -> None:
        with self._lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self.batches.append((threading.get_ident(), tickets))
        for ticket in tickets:
            begun, may_end = self.gates.get(ticket.request, (None, None))
            if begun and may_end:
                begun.set()
                assert may_end.wait(60)
        with self._lock:
            self.at_work -= 1
        for ticket in tickets:
            ticket.result = ("done", ticket.request)

    def requests(self) -> list[list[object]]:
        return [[ticket.request for ticket in batch] for _, batch in self.batches]


def test_a_lone_caller_runs_its_own_requests_in_its_own_thread() -> None:
    """No hop to another thread when nobody else is there."""
    bench = Bench()

    assert bench.ask(1, 2, 3) == [("done", 1), ("done", 2), ("done", 3)]
    assert bench.requests() == [[1, 2, 3]]
    assert bench.batches[0][0] == threading.get_ident()


def test_asking_for_nothing_runs_nothing() -> None:
    bench = Bench()
    bench.combiner.submit([])
    assert bench.batches == []


def test_what_waits_while_another_runs_becomes_one_batch_across_callers() -> None:
    bench = Bench()
    begun, may_end = bench.hold("first")
    with ThreadPoolExecutor(4) as pool:
        pool.submit(bench.ask, "first")
        begun.wait(60)
        others = [pool.submit(bench.ask, name) for name in ("b", "c", "d")]
        bench.waits_until_queued(3)
        may_end.set()
        results = [other.result(10) for other in others]

    assert results == [[("done", name)] for name in ("b", "c", "d")]
    assert [sorted(map(str, batch)) for batch in bench.requests()] == [["first"], ["b", "c", "d"]]


def test_a_leader_goes_home_when_its_own_is_done_and_another_takes_over() -> None:
    """Else one caller would serve all others for ever while its own frames wait to be published."""
    bench = Bench()
    begun, may_end = bench.hold("mine")
    begun_theirs, may_end_theirs = bench.hold("theirs")
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(bench.ask, "mine")
        begun.wait(60)
        theirs = pool.submit(bench.ask, "theirs")
        bench.waits_until_queued(1)
        may_end.set()
        assert mine.result(10) == [("done", "mine")]  # although theirs cannot end yet
        begun_theirs.wait(60)
        may_end_theirs.set()
        assert theirs.result(10) == [("done", "theirs")]

    assert bench.batches[0][0] != bench.batches[1][0]


def test_as_many_callers_lead_as_there_are_streams() -> None:
    bench = Bench(streams=2)
    begun_a, may_end_a = bench.hold("a")
    begun_b, may_end_b = bench.hold("b")
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.submit(bench.ask, "a"), pool.submit(bench.ask, "b")
        assert begun_a.wait(60)
        assert begun_b.wait(60)  # at the same time
        may_end_a.set()
        may_end_b.set()
        a.result(10), b.result(10)

    assert bench.most_at_work == 2


def test_a_leader_whose_request_another_one_runs_waits_for_it() -> None:
    """Its place is free for others meanwhile."""
    bench = Bench(streams=2, limit=1)
    begun, may_end = bench.hold("slow")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.ask, "slow", "quick")
        begun.wait(60)
        second: Future[list[object]] = pool.submit(bench.ask, "other")
        assert second.result(10) == [("done", "other")]  # the other stream serves, perhaps `quick` too
        assert not first.done()
        may_end.set()
        assert first.result(10) == [("done", "slow"), ("done", "quick")]


def test_requests_of_other_keys_do_not_overtake_the_oldest_for_ever() -> None:
    bench = Bench(limit=2)
    begun, may_end = bench.hold("first")
    with ThreadPoolExecutor(8) as pool:
        pool.submit(bench.ask, "first")
        begun.wait(60)
        pool.submit(bench.ask, "odd", key="odd")
        bench.waits_until_queued(1)
        for number in range(5):
            pool.submit(bench.ask, number, key="even")
        bench.waits_until_queued(6)
        may_end.set()

    assert bench.requests()[1] == ["odd"]


@pytest.mark.parametrize("streams", [1, 2, 3])
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 9))
@settings(max_examples=examples(8), deadline=None)
def test_under_a_storm_of_callers_every_request_runs_once_and_goes_to_its_caller(
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
    assert bench.most_at_work <= streams
    assert bench.combiner._leaders == 0
    assert bench.combiner._waiting == []
    for _, batch in bench.batches:
        assert len({ticket.key for ticket in batch}) == 1
        assert len(batch) == 1 or (batch[0].key is not None and sum(ticket.rows for ticket in batch) <= limit)


def test_a_caller_that_is_woken_twice_wakes_once() -> None:
    """Once to lead, and once because others have done its requests meanwhile."""
    call = _Call(1)
    call.wake()
    for _ in range(2):
        alarm = call.lie_down()
        call.wake()
        call.wake()
        assert alarm.acquire(blocking=False)
        assert not alarm.acquire(blocking=False)


def test_a_caller_that_is_to_lead_does_not_go_to_sleep() -> None:
    """It may have been made a leader just before."""
    combiner, call = Bench().combiner, _Call(1)
    call.leading = True

    assert combiner._sleep(call)


def test_how_long_a_batch_took_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take no time leave nobody a share."""
    monkeypatch.setattr("time.perf_counter", lambda: 5.0)
    bench = Bench(streams=2)
    bench.ask(1)

    assert bench.combiner.portion.most(10) == 8


def test_an_interrupt_in_a_leader_leaves_the_queue_usable() -> None:
    """Ctrl-C while a model runs must not hang the other pipelines."""

    def run(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.result = "settled"
            if ticket.request == "stop":
                raise KeyboardInterrupt

    combiner = Combiner(run, streams=1, limit=1)
    tickets = [Ticket("a", 1, "stop"), Ticket("a", 1, "never run")]
    with pytest.raises(KeyboardInterrupt):
        combiner.submit(tickets)

    after = Ticket("a", 1, "fine")
    ask: Callable[[], None] = lambda: combiner.submit([after])  # noqa: E731 - one line for a thread
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(60)
    assert after.result == "settled"
    assert tickets[1].result is None
