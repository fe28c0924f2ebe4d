"""Attempts of a stolen node on what the region keeps of outboxes and of where nodes run: epochs, numbers, clashes, gaps, twins.

It may publish anything under its own name, and knows the epochs, sessions and hashes of its neighbours, which they publish. Expected of
each: it changes nothing of others; what it makes the region keep has a bound; what is refused is counted under its site and told; and
a neighbour's next result, in a new epoch, is stored and acknowledged with its hash.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.records import record_check
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.collector.decode import decode_message
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import BatchOutcome
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.outboxes.ledgers import MAX_CLASHES
from hedgerow.region.store.queries import status
from hedgerow.region.store.store import RegionStore

STOLEN, NEIGHBOUR, OTHER = "s1/stolen", "s1/honest", "s2/honest"
EPOCHS = 20
NUMBERS = itertools.count(1)


def message(node: str, channel: str, body: Any, *user: tuple[str, str], session: str = "") -> Message:
    if isinstance(body, dict) and channel in ("health", "status"):
        body = {"node": f"north/{node}", "session": session or "mine", "at": time.time()} | body
    payload = body if isinstance(body, bytes) else orjson.dumps(body)
    properties = encode_properties([(Property.USER, pair) for pair in user])
    return Message(f"hedgerow/v1/north/{node}/{channel}", payload, 2, 1, 0.0, properties)


def numbered(node: str, number: str, name: str, *user: tuple[str, str]) -> Message:
    return message(node, "result/p", {"id": name}, ("number", number), ("id", name), ("ack", "now"), *user)


def gap(epoch: str, first: int, last: int, **fields: Any) -> Message:
    body = {
        "epoch": epoch,
        "priority": 0,
        "first": first,
        "last": last,
        "reasons": {"quota": last - first + 1},
        "previous": [],
    }
    return message(STOLEN, "event/gap", body | fields)


def health(instance: dict[str, Any] | None = None, session: str = "mine", **fields: Any) -> Message:
    body = {"uptime_s": 100.0, "state": "ok", "instance": instance or {}} | fields
    return message(STOLEN, "health", body, session=session)


class Region:
    """A store with two honest nodes that have sent results and reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        quotas = {"epochs": EPOCHS, "rows_per_day": 3000, "events_per_day": 1000}
        config = RegionConfig.model_validate(
            {"region": {"name": "north"}, "store": {"url": str(path)}, "quotas": quotas}
        )
        self.at = 5000.0
        self.store = RegionStore(open_database(str(path), write=True), config, lambda: self.at)
        self.refused: dict[str, int] = {}
        for node in (NEIGHBOUR, OTHER, STOLEN):
            self.take(numbered(node, "e1/0/1", f"first of {node}"))

    def take(self, *messages: Message) -> BatchOutcome:
        outcome = self.store.apply([decode_message(each, "north", time.time()) for each in messages])
        for reason, count in outcome.rejected.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        return outcome

    def rows(self, query: str, *values: Any) -> list[Any]:
        return self.store._database.rows(query, values)

    def of(self, node: str, query: str) -> Any:
        site, _, name = node.partition("/")
        ((found,),) = self.rows(f"SELECT {query} WHERE n.site = ? AND n.name = ?", site, name)
        return found

    def results(self, node: str) -> int:
        return int(self.of(node, "count(*) FROM result r JOIN node n ON n.id = r.node"))

    def periods(self, count: int, instance: dict[str, Any], *nodes: str) -> None:
        """Each of these nodes reports in each period, and says that it has this."""
        for _ in range(count):
            for node in nodes:
                self.at += 10.0 / len(nodes)
                body = {"uptime_s": self.at, "state": "ok", "instance": instance}
                self.take(message(node, "health", body, session=f"session of {node}"))

    def nodes(self) -> dict[str, Any]:
        database = open_database(str(self.path), write=False)
        try:
            return {node["node"].partition("/")[2]: node for node in status(database, time.time())["nodes"]}
        finally:
            database.close()

    def others_go_on(self) -> None:
        """Each neighbour begins a new epoch; its result is stored, and acknowledged with its hash."""
        for node in (NEIGHBOUR, OTHER):
            epoch, name = f"n{next(NUMBERS)}", f"later of {node}"
            before = self.results(node)
            outcome = self.take(numbered(node, f"{epoch}/0/1", name))
            assert self.results(node) == before + 1, (node, outcome.rejected)
            ((key, due),) = outcome.acks.items()
            assert (str(key[0]), key[1]) == (f"north/{node}", epoch)
            assert due.ack.held is not None
            assert list(due.ack.held[0]) == [(1, record_check(name, orjson.dumps({"id": name})))]
            assert not outcome.clashes


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    region = Region(tmp_path / "region.db")
    yield region
    region.store.close()


Attempt = Callable[[], Iterator[Message]]


def one_number() -> Iterator[Message]:
    for n in range(40):
        yield numbered(STOLEN, "e1/0/1", f"clash {n}")


def one_number_in_each_epoch() -> Iterator[Message]:
    for epoch, n in itertools.product(range(EPOCHS), range(MAX_CLASHES + 2)):
        yield numbered(STOLEN, f"c{epoch}/0/1", f"clash {n} of {epoch}")


def epochs_that_end_at_once() -> Iterator[Message]:
    """Each is closed by the next one, so that it would not count."""
    for n in range(3 * EPOCHS):
        yield numbered(STOLEN, f"x{n}/0/1", f"of {n}", ("ended", f"x{n - 1} 0:1"))


def epochs_that_miss_something() -> Iterator[Message]:
    for n in range(3 * EPOCHS):
        yield numbered(STOLEN, f"x{n}/0/2", f"of {n}")


def holes() -> Iterator[Message]:
    for n in range(1, 400, 2):
        yield numbered(STOLEN, f"e1/0/{n}", f"hole {n}")


ATTEMPTS: dict[str, tuple[Attempt, str]] = {
    "many results under one number": (one_number, "too-many-clashes"),
    "clashes in epochs without end": (one_number_in_each_epoch, "too-many-clashes"),
    "epochs without end, each of which ends": (epochs_that_end_at_once, ""),
    "epochs without end, of which something is missing": (epochs_that_miss_something, "too-many-epochs"),
    "results with holes between them": (holes, ""),
    "the name of a ledger of clashes": (lambda: iter([numbered(STOLEN, "e1~1/0/1", "x")]), "bad-number"),
    "a neighbour's epoch and number": (lambda: iter([numbered(STOLEN, "e1/0/1", f"first of {NEIGHBOUR}")]), ""),
    "a number that a neighbour had before": (
        lambda: iter([numbered(STOLEN, "e2/0/1", f"first of {NEIGHBOUR}", ("was", "e1/0/1"))]),
        "",
    ),
    "the largest number": (lambda: iter([numbered(STOLEN, f"e1/0/{2**53}", "x")]), "bad-number"),
    "a number before the first": (lambda: iter([numbered(STOLEN, "e1/0/0", "x")]), "bad-number"),
    "a priority that there is not": (lambda: iter([numbered(STOLEN, "e1/10/1", "x")]), "bad-number"),
    "two numbers": (lambda: iter([numbered(STOLEN, "e1/0/2", "x", ("number", "e1/0/3"))]), "bad-number"),
    "digits of another script": (lambda: iter([numbered(STOLEN, "e1/0/\u0663", "x")]), "bad-number"),
    "the end of a neighbour's epoch": (
        lambda: iter([numbered(STOLEN, "e9/0/1", "x", ("ended", "e1 0:900000000000"))]),
        "",
    ),
    "a gap over all numbers": (lambda: iter([gap("e1", 1, 10**14)]), ""),
    "a gap that declares a neighbour's epoch lost": (
        lambda: iter([gap("e9", 1, 1, previous=[{"epoch": "e1", "next": [10**14] * 10}])]),
        "",
    ),
    "a gap that counts more than it has": (lambda: iter([gap("e1", 5, 6, reasons={"x": 3})]), "bad-gap"),
    "a gap with a count beyond all": (lambda: iter([gap("e1", 5, 6, reasons={"x": 2**60})]), "bad-gap"),
    "gaps in epochs without end": (
        lambda: (gap(f"g{n}", 1, 1) for n in range(3 * EPOCHS)),
        "",
    ),
    "results in the name of a neighbour": (
        lambda: iter([message(STOLEN, "result/p", {"schema": "hedgerow.result/1", "node": f"north/{NEIGHBOUR}", "id": "x"})]),
        "another-node",
    ),
    "a source that names a neighbour": (
        lambda: iter([numbered(STOLEN, "e1/0/7", "x", ("source", f"/hedgerow/north/{NEIGHBOUR}/p"))]),
        "another-node",
    ),
    "sessions without end": (lambda: (health(session=f"s{n}") for n in range(100)), ""),
    "the session of a neighbour": (lambda: (health(session=f"session of {NEIGHBOUR}") for _ in range(3)), ""),
    "an uptime that runs backwards": (lambda: (health(uptime_s=1e9 - n * 1e6) for n in range(50)), ""),
    "an uptime without end": (lambda: iter([health(uptime_s=1e300)]), ""),
    "a host without end": (lambda: iter([health({"host": "x" * 100_000})]), "unreadable-payload"),
    "other hosts without end": (lambda: (health({"host": f"h{n}", "state": f"t{n}"}) for n in range(200)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_stolen_node_changes_nothing_of_its_neighbours(region: Region, name: str) -> None:
    attempt, reason = ATTEMPTS[name]
    before = region.nodes()
    acks = [key for each in attempt() for key in region.take(each).acks]

    assert {str(address) for address, _ in acks} <= {f"north/{STOLEN}"}
    region.others_go_on()
    assert (region.refused.get(reason, 0) > 0) == bool(reason), region.refused
    assert region.of(STOLEN, "count(*) FROM ledger l JOIN node n ON n.id = l.node") <= 3 * EPOCHS * (MAX_CLASHES + 1)
    assert region.of(STOLEN, "count(*) FROM instance i JOIN node n ON n.id = i.node") <= 8
    assert region.results(STOLEN) <= 3000
    after = region.nodes()
    for node in (NEIGHBOUR, OTHER):
        assert {after[node][key] for key in ("awaited", "lost")} == {before[node][key] for key in ("awaited", "lost")}
        assert after[node]["twins"] == []


def test_half_of_a_sites_epochs_are_kept_from_a_stolen_node(region: Region) -> None:
    """Else its neighbours could begin none, and their results would wait for ever."""
    for each in epochs_that_miss_something():
        region.take(each)

    assert (
        region.of(STOLEN, "count(*) FROM ledger l JOIN node n ON n.id = l.node AND l.closed_at IS NULL") == EPOCHS // 2
    )
    for _ in range(EPOCHS // 2 - 3):
        region.others_go_on()


@pytest.mark.parametrize("kind", ["key", "state"])
def test_a_node_that_lies_about_its_hashes_is_no_reason_to_end_another(region: Region, kind: str) -> None:
    """It takes a neighbour's hash from its health: both are named, and the operator is told that either may lie."""
    region.periods(4, {kind: "taken", "host": "pi-1"}, NEIGHBOUR, STOLEN, OTHER)

    nodes = region.nodes()
    for node in (NEIGHBOUR, STOLEN):
        (twin, *_) = nodes[node]["twins"]
        assert twin["kind"] == kind
        assert nodes[node]["status"] == nodes[OTHER]["status"]
        assert "Either node may lie about it" in twin["remedy"], twin
    region.others_go_on()
