"""Who leads: several services on one store, in both databases, on a simulated clock. Each of their turns is taken by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from hedgerow.bus.outbox.records import Number
from hedgerow.region.collector import lease_keeper
from hedgerow.region.collector.lease_keeper import LeaseKeeper
from hedgerow.region.config import RegionConfig
from hedgerow.region.store import lease as rules
from hedgerow.region.store.database.database import Database, LeaseLost, RegionStoreError, StoreInUse, StoreTrouble
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import ServiceRun, Term, lease_status
from hedgerow.region.store.records import ResultRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address


def result_record(sequence: int) -> ResultRecord:
    number, at = Number("e1", 0, sequence), time.time()
    return ResultRecord(
        Address("test", "s1", "n1"), 2, at, True, "p", number, None, at, "application/json", None, b"{}"
    )


class Services:
    """Services of one store, and their clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.now = 1000.0
        self.made: list[LeaseKeeper] = []
        self.changes: list[tuple[str, int | None]] = []

    def add(self, name: str) -> LeaseKeeper:
        def changed(term: Term | None) -> None:
            self.changes.append((name, term and term.fence))

        def failed(error: RegionStoreError) -> None:
            raise AssertionError(error)

        keeper = LeaseKeeper(
            lambda: open_database(self.url, write=True), ServiceRun(name, f"host of {name}"), f"token of {name}", changed, failed
        )  # fmt: skip
        self.made.append(keeper)
        return keeper

    def turn(self, *keepers: LeaseKeeper, after_s: float = 0.5) -> None:
        self.now += after_s
        for keeper in keepers:
            keeper._turn()

    def store(self, term: Term | None) -> RegionStore:
        """A store as the leader of a term writes to it."""
        assert term is not None
        config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": self.url}})
        database = open_database(self.url, write=True)
        database.lead(term.fence)
        return RegionStore(database, config)

    @property
    def status(self) -> dict[str, Any]:
        with closing(open_database(self.url, write=False)) as database:
            return lease_status(database) or {}

    @property
    def terms(self) -> list[tuple[int, str, str]]:
        with closing(open_database(self.url, write=False)) as database:
            return [*map(tuple, database.rows("SELECT fence, instance, because FROM lease_term ORDER BY fence"))]

    def kill(self, keeper: LeaseKeeper) -> None:
        """End a service as kill -9 does: it frees its lock and says nothing."""
        keeper._abandon()


@pytest.fixture
def services(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    services = Services(store_url)
    monkeypatch.setattr(lease_keeper, "_now", lambda: services.now)
    yield services
    for keeper in services.made:
        keeper._abandon()


def test_the_first_leads_and_the_second_stands_by(services: Services) -> None:
    one, two = services.add("one"), services.add("two")
    for _ in range(30):
        services.turn(one, two)

    assert (one.leads(), two.leads()) == (True, False)
    assert services.changes == [("one", 1)]
    assert two.standing_by == "host of one leads"
    status = services.status
    assert (status["leader"], status["term"]) == ("host of one", 1)
    assert [standby["host"] for standby in status["standbys"]] == ["host of two"]


def test_a_killed_leader_is_followed_within_ten_seconds(services: Services) -> None:
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    services.kill(one)
    died_at = services.now
    while not two.leads():
        services.turn(two)

    assert services.now - died_at <= 10
    assert services.terms == [(1, "one", "nobody led"), (2, "two", "the leader ended")]


def test_a_leader_that_leaves_in_order_is_followed_at_once(services: Services) -> None:
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    one._leave()
    services.turn(two)

    assert two.leads()
    assert services.terms[-1] == (2, "two", "nobody led")


def test_a_restart_after_a_crash_of_a_single_service_does_not_wait_for_the_lease(services: Services) -> None:
    one = services.add("one")
    services.turn(one)
    services.kill(one)
    again = services.add("again")
    began = services.now
    while not again.leads():
        services.turn(again)

    assert services.now - began <= 4


def test_a_stopped_leader_is_followed_and_can_write_nothing_when_it_wakes(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a batch, nor a heartbeat, nor what retention deletes; and it publishes nothing from before it knows."""
    monkeypatch.setattr("hedgerow.region.store.database.postgres.Postgres.end_term", lambda *_: None)  # another user's
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    store = services.store(one.term)
    store.apply([result_record(1)])
    stopped_at = services.now
    while not two.leads():
        services.turn(two)
        assert services.now - stopped_at <= 10
        assert not (one.leads() and two.leads())
    assert not one.leads(), "it publishes nothing, although it does not know yet"

    for write in (
        lambda: store.apply([result_record(2)]),
        lambda: store.beat(connected=True),
        lambda: store.prune(time.time()),
    ):
        with pytest.raises(LeaseLost, match="term 1 has ended"):
            write()
    store.close()
    services.turn(one)
    assert services.changes == [("one", 1), ("two", 2), ("one", None)]
    services.turn(one, two)
    assert one.standing_by == "host of two leads"
    with closing(services.store(two.term)) as store:
        assert [outcome.stored for outcome in (store.apply([result_record(1)]), store.apply([result_record(2)]))] == [
            0,
            1,
        ]


def test_a_transaction_that_has_begun_ends_before_another_leads(services: Services) -> None:
    """SQLite: the taker waits. PostgreSQL: the former leader's connection is ended, and nothing of it is stored."""
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    assert one.term is not None
    database = open_database(services.url, write=False, alongside=True)
    database.lead(one.term.fence)
    on_postgres = services.url.startswith("postgresql:")

    def take_over() -> None:
        while not two.leads():
            services.now += 1
            try:
                two._turn()
            except StoreTrouble:
                two._abandon()

    taking = threading.Thread(target=take_over, daemon=True)
    try:
        with database.transaction():
            database.run("INSERT INTO rejections (reason, count) VALUES ('late', 1)")
            taking.start()
            if on_postgres:
                taking.join(60)
                assert two.leads()
            else:
                assert not two.leads()
        assert not on_postgres
    except StoreTrouble:
        assert on_postgres
    finally:
        taking.join(60)
        database.close()
    with closing(open_database(services.url, write=False)) as reader:
        late = reader.rows("SELECT count FROM rejections WHERE reason = 'late'")
    assert late == ([] if on_postgres else [(1,)])
    assert two.leads()


def test_a_long_transaction_of_a_living_leader_is_not_taken_for_its_death(services: Services) -> None:
    """In SQLite it keeps the renewals waiting, so it renews the lease itself; in PostgreSQL it does not hinder them."""
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    store = services.store(one.term)
    for n in range(8):
        services.now += rules.TAKEOVER_AFTER_S - 1
        store.apply([result_record(n + 1)])
        if services.url.startswith("postgresql:"):
            services.turn(one, after_s=0)
        services.turn(two, after_s=0)
    store.close()

    assert services.changes == [("one", 1)]


def test_a_wall_clock_that_jumps_changes_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any of the machines, whichever service leads."""
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    real = time.time
    for jump_s in (-1e8, 3600, 1e8, -3600):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
        for _ in range(14):
            services.turn(two, one)
    assert services.changes == [("one", 1)]
    services.kill(one)
    while not two.leads():
        services.turn(two)
    assert services.changes == [("one", 1), ("two", 2)]


def test_services_of_one_store_use_one_session_at_the_broker(services: Services) -> None:
    """So what waits there for a leader that died goes to the next one, and its connection ends when that one connects."""
    one, two = services.add("one"), services.add("two")
    services.turn(one, two)
    first = one.term
    one._leave()
    services.turn(two)

    assert first is not None
    assert two.term is not None
    assert first.client_token == two.term.client_token == "token of one"


def test_of_many_that_wait_one_follows(services: Services) -> None:
    keepers = [services.add(f"s{n}") for n in range(6)]
    services.turn(*keepers)
    for left in range(6, 1, -1):
        services.kill(keepers.pop(0))
        while not any(keeper.leads() for keeper in keepers):
            services.turn(*keepers)
        assert [keeper.leads() for keeper in keepers].count(True) == 1, left
        keepers.sort(key=lambda keeper: not keeper.leads())
    assert [fence for fence, _, _ in services.terms] == [1, 2, 3, 4, 5, 6]


def test_a_service_of_an_earlier_version_is_waited_for(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock that freed its store when it ended, and knows no lease: only then is the store upgraded."""
    with closing(open_database(services.url, write=True)) as old:
        old.run("DELETE FROM migration WHERE number = 9")
        for table in ("lease", "lease_term", "standby"):
            old.run(f"DROP TABLE {table}")
        assert old.try_lock()
        new = services.add("new")
        with pytest.raises(StoreInUse, match="Another service writes"):
            new._turn()
        assert new._go_on_after(StoreInUse("Another service", remedy="Stop it."))
        assert new.standing_by == "Another service"
    services.turn(new)
    assert new.leads()


def test_a_leader_that_cannot_renew_publishes_nothing_until_it_can(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away, nobody else can lead either; so it goes on in the same term."""
    one = services.add("one")
    services.turn(one)
    reached: Callable[..., Any] = lease_keeper.renew_lease

    def unreachable(*_: Any, **__: Any) -> bool:
        raise StoreTrouble("It is away", remedy="Start it.")

    monkeypatch.setattr(lease_keeper, "renew_lease", unreachable)
    services.now += 10
    with pytest.raises(StoreTrouble) as raised:
        one._turn()
    assert one._go_on_after(raised.value)
    assert not one.leads()
    monkeypatch.setattr(lease_keeper, "renew_lease", reached)
    services.turn(one)
    assert one.leads()
    assert services.changes == [("one", 1)]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda database: database.run("DELETE FROM rejections"), id="run"),
        pytest.param(
            lambda database: database.many("INSERT INTO rejections VALUES (?, ?)", [("a", 1), ("b", 1)]), id="many"
        ),
        pytest.param(
            lambda database: database.rows("INSERT INTO rejections VALUES ('c', 1) RETURNING reason"), id="rows"
        ),
    ],
)
def test_a_leader_cannot_write_outside_of_a_transaction(services: Services, write: Callable[[Database], Any]) -> None:
    """Only transactions check the term: so one that has lost the lease writes nothing, whatever code forgets."""
    one = services.add("one")
    services.turn(one)
    assert one.term is not None
    with closing(open_database(services.url, write=False, alongside=True)) as database:
        database.lead(one.term.fence)
        with pytest.raises(RegionStoreError, match="without checking that it leads"):
            write(database)
        assert database.rows("SELECT * FROM rejections") == []
        with database.transaction():
            write(database)
        with pytest.raises(RegionStoreError, match="without checking that it leads"):
            write(database)
