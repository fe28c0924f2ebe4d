"""Two services on one store, as real processes with a real broker: one leads, the other follows it."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import PATIENCE_S, CollectorProcess, Gateway, eventually, result, sender

from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel


class Pair:
    """Two services on one store, each with a configuration and a state folder of its own, as on two machines."""

    def __init__(self, broker: Mosquitto, store: str, folder: Path) -> None:
        self.broker, self.store = broker, store
        self.services = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            service = CollectorProcess(broker.url, store, folder / name)
            service.configure(region={"state_dir": str(folder / name / "state")})
            self.services.append(service)

    async def start(self) -> tuple[CollectorProcess, CollectorProcess]:
        """Start both. Returns: the leader, the standby."""
        one, two = self.services
        await asyncio.to_thread(one.start)
        await self.stand_by(two)
        return one, two

    async def stand_by(self, service: CollectorProcess) -> None:
        """Start a service, and wait until it stands by."""
        before = service.log.count('"region-standby"') if service.started else 0
        service.start(wait=False)
        await self.standing_by(service, before + 1)

    async def standing_by(self, service: CollectorProcess, times: int) -> None:
        await eventually(lambda: service.log.count('"region-standby"') >= times, lambda: service.log[-3000:])

    async def leading(self, service: CollectorProcess, times: int = 1) -> None:
        await eventually(lambda: service.log.count('"region-started"') >= times, lambda: service.log[-2000:])

    @property
    def connections(self) -> int:
        """Connections to the broker that either has made."""
        return sum(service.log.count('"broker-connected"') for service in self.services)

    def terms(self) -> list[tuple[int, float, float, str]]:
        with closing(open_database(self.store, write=False)) as database:
            rows = database.rows("SELECT fence, since, last_renewed_at, because FROM lease_term ORDER BY fence")
        return [(int(fence), since, last_renewed_at, because) for fence, since, last_renewed_at, because in rows]

    def status(self) -> dict[str, Any]:
        with closing(open_database(self.store, write=False)) as database:
            return status(database, time.time())

    def found(self) -> dict[str, list[int]]:
        """Return what is stored, by node: the numbers that the results carry."""
        found: dict[str, list[int]] = {}
        with closing(open_database(self.store, write=False)) as database:
            for stored in results(database, ResultQuery()):
                found.setdefault(stored.node, []).append(stored.body["result"]["n"])
        return {node: sorted(numbers) for node, numbers in found.items()}


@pytest.fixture
def pair(mosquitto: Mosquitto, store_url: str, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(mosquitto, store_url, tmp_path)
    yield pair
    for service in pair.services:
        service.close()


def body(service: CollectorProcess, probe: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(service.probe(probe)[1] or "{}")
    return answer


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_standby_says_so_and_follows_a_leader_that_is_killed(
    pair: Pair, gateway: Callable[..., Gateway]
) -> None:
    """What arrives meanwhile is kept by the session at the broker, which both use one after the other: even what no outbox has."""
    leader, standby = await pair.start()
    assert standby.probe("readyz")[0] == 200
    assert (body(leader, "readyz")["role"], body(standby, "readyz")["role"]) == ("leader", "standby")
    assert "hedgerow_region_leader 0.0" in standby.probe("metrics")[1]
    assert '"region-started"' not in standby.log
    lease = pair.status()["lease"]
    assert (lease["term"], len(lease["standbys"])) == (1, 1)

    async with gateway() as node, sender(pair.broker.url) as program:
        node.send(50)
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
        leader.kill()
        node.send(50)
        properties = encode_properties([(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("id", "once"))])
        topic = Address("test", "s1", "program").topic(Channel.RESULT, "p")
        program.publish(topic, result("p", 7), qos=1, properties=properties)
        await program.flush(PATIENCE_S)
        await pair.leading(standby)
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
        await eventually(lambda: "program" in pair.found(), pair.found)
    assert pair.found() == {"n1": [*range(1, 101)], "program": [7]}
    assert "hedgerow_region_leader 1.0" in standby.probe("metrics")[1]
    ((_, _, _, first), (fence, since, renewed_at, because)) = pair.terms()
    assert (first, fence, because) == ("nobody led", 2, "the leader ended")
    assert since - renewed_at <= 10


@pytest.mark.long
async def test_a_leader_that_is_stopped_and_wakes_writes_and_publishes_nothing_more(
    pair: Pair, gateway: Callable[..., Gateway]
) -> None:
    """It steps down and stands by. It does not connect again: that would end the new leader's session."""
    leader, standby = await pair.start()
    async with gateway() as node:
        for stopped in range(1, 3):
            node.send(100)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            await _stop(leader, pair.store)
            node.send(100)
            await pair.leading(standby, 1 + stopped // 2)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            connections = pair.connections
            leader.signal(signal.SIGCONT)
            await pair.standing_by(leader, (stopped + 1) // 2 + (leader is pair.services[1]))
            node.send(100)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            assert pair.connections == connections
            assert body(leader, "readyz")["role"] == "standby"
            leader, standby = standby, leader
    assert pair.found() == {"n1": [*range(1, node.count + 1)]}
    assert pair.status()["nodes"][0]["awaited"] == 0
    assert [fence for fence, *_ in pair.terms()] == [1, 2, 3]
    for service in pair.services:
        service.signal(signal.SIGTERM)
    assert [service.wait() for service in pair.services] == [0, 0]


async def _stop(service: CollectorProcess, store: str) -> None:
    """Stop a service (SIGSTOP) while it holds no lock on an SQLite store: nobody could break that."""
    while True:
        service.signal(signal.SIGSTOP)
        if store.startswith("postgresql:"):
            return
        database = sqlite3.connect(store, timeout=0.1, isolation_level=None)
        with closing(database), suppress(sqlite3.OperationalError):
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
            return
        service.signal(signal.SIGCONT)
        await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_service_that_stops_in_order_is_followed_at_once(pair: Pair) -> None:
    leader, standby = await pair.start()
    leader.signal(signal.SIGTERM)
    assert leader.wait() == 0
    await pair.leading(standby)

    *_, (fence, _, _, because) = pair.terms()
    assert (fence, because) == (2, "nobody led")
    await pair.stand_by(leader)
    standby.signal(signal.SIGTERM)
    assert standby.wait() == 0
    await pair.leading(leader, 2)


@pytest.mark.long
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
async def test_leaders_killed_under_load_lose_and_duplicate_nothing(
    pair: Pair, gateway: Callable[..., Gateway], kills: int
) -> None:
    """Each takeover takes ten seconds at most, by the times of the lease in the store."""
    leader, standby = await pair.start()
    async with gateway("n1") as one, gateway("n2") as two:
        led = {leader: 1, standby: 0}
        for _ in range(kills):
            for _ in range(random.randrange(3, 25)):
                one.send(20, priority=random.randrange(3))
                two.send(20)
                await asyncio.sleep(0.02)  # so that the leader dies at any point of its work
            leader.kill()
            one.send(20)
            led[standby] += 1
            await pair.leading(standby, led[standby])
            await pair.stand_by(leader)
            leader, standby = standby, leader
        await eventually(lambda: one.entries == two.entries == 0, lambda: (one.outbox.status, two.outbox.status))

    assert pair.found() == {"n1": [*range(1, one.count + 1)], "n2": [*range(1, two.count + 1)]}
    now = pair.status()
    assert [node["awaited"] for node in now["nodes"]] == [0, 0]
    assert now["rejected"] == {}
    terms = pair.terms()
    assert [fence for fence, *_ in terms] == [*range(1, kills + 2)]
    took = [since - last_renewed_at for _, since, last_renewed_at, _ in terms[1:]]
    assert max(took) <= 10, took
