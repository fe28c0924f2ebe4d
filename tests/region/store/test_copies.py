"""Copied and restored outboxes at one address, against a real region's store: what is acknowledged is stored.

The outboxes are stores with a send window, as `Outbox` combines them; messages are encoded and decoded as on the wire. An
independent model knows what was made, what was deleted because it was acknowledged, and what was given up.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.examples import examples

from hedgerow.bus.message import Message
from hedgerow.bus.outbox.kept import KeepLimits
from hedgerow.bus.outbox.mark import Boot
from hedgerow.bus.outbox.records import ACK_NOW, PRIORITIES, Ack, Gap, OutboxEntry, Record, key_of, priority_of
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.bus.outbox.window import SendWindow
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.collector.decode import decode_message
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.outboxes.ledgers import MAX_EPOCHS
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address, Channel

ADDRESS = Address("test", "s1", "n1")
NUMBERS_ONLY: dict[str, Any] = {"held": None}


class Region:
    """A region with its store in a file. `acks` are those it has published last, by epoch."""

    def __init__(self, path: Path, **sections: Any) -> None:
        self.path = path
        self._config = RegionConfig.model_validate(
            {"region": {"name": "test"}, "store": {"url": str(path)}, **sections}
        )
        self.store = RegionStore(open_database(str(path), write=True), self._config)
        self.acks: dict[str, Ack] = {}
        self.clashes = 0

    def take(self, messages: list[Message]) -> list[bytes]:
        """Store messages. Returns: the acknowledgements."""
        outcome = self.store.apply([decode_message(message, "test", time.time()) for message in messages])
        assert not outcome.rejected
        self.clashes += outcome.clashes
        self.acks |= {epoch: due.ack for (_, epoch), due in outcome.acks.items()}
        return [due.ack.encode() for due in outcome.acks.values()]

    def contents(self) -> Counter[str]:
        """Return how often each result is stored."""
        database = open_database(str(self.path), write=False)
        try:
            return Counter(stored.body["id"] for stored in results(database, ResultQuery()))
        finally:
            database.close()

    def node(self) -> dict[str, Any]:
        database = open_database(str(self.path), write=False)
        try:
            (node,) = status(database, time.time())["nodes"]
            return node
        finally:
            database.close()

    def rows(self, query: str) -> list[Any]:
        return self.store._database.rows(query)


class Node:
    """A process with an outbox.

    Attributes:
        in_transit: messages on their way to the region.
        deleted: ids of results that it has deleted because they were acknowledged.
        given_up: ids of results that it has given up.
        events: what it tells operators.
    """

    max_bytes = 256 << 10

    def __init__(self, folder: Path, names: Iterator[int]) -> None:
        self.folder = folder
        self._names = names
        self.boot = Boot("boot", 100.0)
        self.now = 0.0
        self.in_transit: list[Message] = []
        self.deleted: set[str] = set()
        self.given_up: set[str] = set()
        self.events: list[tuple[str, Any]] = []
        self.open()

    def open(self) -> None:
        path, keep = self.folder / "outbox.db", KeepLimits(1e9, self.max_bytes)
        self.store = OutboxStore(path, max_bytes=self.max_bytes, boot=lambda: self.boot, keep=keep)
        self.store.take_changes()
        self.window = SendWindow(8, 1 << 20, 0.5)
        self._reset()

    def _reset(self) -> None:
        self.window.reset([key_of(priority, 1) for priority in range(PRIORITIES)], self.store.next_keys)
        self.window.link_up(self.now)

    def append(self, *priorities: int, ttl_s: float | None = None, size: int = 0) -> list[str]:
        """Make results. Returns: their ids."""
        ids = [f"r{next(self._names)}" for _ in priorities]
        records = []
        for name, priority in zip(ids, priorities, strict=True):
            properties = [(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("id", name))]
            payload = orjson.dumps({"id": name, "filling": "x" * size})
            topic = ADDRESS.topic(Channel.RESULT, "p")
            records.append(Record("p", topic, payload, encode_properties(properties), priority, ttl_s=ttl_s))
        before = self.held()
        with self.store.transaction():
            keys = self.store.append(records)
        self.given_up |= (before | set(ids)) - self.held()
        self._apply_changes(
            [
                OutboxEntry(key, key, r.topic, r.properties, r.payload, r.check)
                for key, r in zip(keys, records, strict=True)
            ]
        )
        return ids

    def held(self) -> set[str]:
        """Return the ids of the results that it stores."""
        entries = self.store.read(0, key_of(PRIORITIES, 0), 1 << 20, 1 << 40)
        return {orjson.loads(entry.payload)["id"] for entry in entries if entry.topic}

    def send(self) -> None:
        entries, request = self.window.next(self.now)
        if request is not None:
            entries = entries + self.window.offer(request, self.store.read(*request), self.now)
        self.in_transit += map(self._message, entries)

    def _message(self, entry: OutboxEntry) -> Message:
        span = self.store.epochs.of(entry.key)
        topic, payload, properties = entry.topic, entry.payload, entry.properties
        if not topic:
            topic = ADDRESS.topic(Channel.EVENT, "gap")
            payload = Gap.read(entry.key, entry.last, payload).message(span.epoch, span.bases[priority_of(entry.key)])
        pairs = self.store.epochs.numbers(entry.key, is_record=bool(entry.topic))
        pairs += [ACK_NOW] if self.window.wants_ack(entry.key) else []
        return Message(
            topic, payload, 2, 1, 0.0, properties + encode_properties([(Property.USER, pair) for pair in pairs])
        )

    def acknowledge(self, payload: bytes) -> None:
        """Apply an acknowledgement, as `Outbox.acknowledge` and its writer do."""
        ack = Ack.decode(payload)
        if ack.at is not None and self.store.stores.get(ack.at.store) != ack.at.lost:
            with self.store.transaction():
                self.store.learn(ack.at)
            self._apply_changes([])
        span = self.store.epochs.named(ack.epoch)
        if span is None:
            return
        in_keys = span.translated(ack, self.store.numbers)
        before = self.held()
        with self.store.transaction():
            if in_keys.beyond and span.ends is None:
                self.store.leave_epoch(span.epoch, "unassigned")
            else:
                acked = self.window.acked(in_keys, self.now, span)
                self.store.trim(span.epoch, in_keys, acked.keys, ack.at)
                if acked.clash:
                    self.store.leave_epoch(span.epoch, "another-result")
        self.deleted |= before - self.held()
        self._apply_changes([])

    def expire(self) -> None:
        before = self.held()
        with self.store.transaction():
            self.store.expire()
        self.given_up |= before - self.held()
        self._apply_changes([])

    def _apply_changes(self, appended: list[OutboxEntry]) -> None:
        changes = self.store.take_changes()
        self.events += changes.events
        if changes.renumbered:
            self._reset()
        self.window.appended(appended, self.store.next_keys, up=True)
        self.window.discard(changes.given_up)
        for key in changes.rewound:
            self.window.rewind(key)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.boot = Boot(self.boot.id, self.boot.seconds + seconds)
        self.window.probe(self.now)

    def copied_files(self, folder: Path) -> Path:
        """Copy its files while it runs, as a snapshot of the disk does."""
        shutil.copytree(self.folder, folder)
        return folder

    def copied_process(self, folder: Path) -> Node:
        """Return a copy of the running process, as a snapshot of a virtual machine with its memory is."""
        twin = type(self)(self.copied_files(folder), self._names)
        twin.store.epochs, twin.store.epoch = self.store.epochs, self.store.epoch
        twin.store.numbers = list(self.store.numbers)
        twin.store._database.change("DELETE FROM epoch")
        for span in self.store.epochs.spans:
            ends = None if span.ends is None else json.dumps(span.ends)
            row = (span.epoch, json.dumps(span.bases), ends, json.dumps(span.former))
            twin.store._database.change("INSERT INTO epoch (epoch, bases, ends, former) VALUES (?, ?, ?, ?)", row)
        twin.window, twin.now, twin.boot = copy.deepcopy(self.window), self.now, self.boot
        twin.deleted = set(self.deleted)
        return twin

    def restart(self, *, killed: bool = False) -> None:
        self.store.abandon() if killed else self.store.close()
        self.in_transit.clear()
        self.open()

    def close(self) -> None:
        self.store.close()


def exchange(region: Region, nodes: list[Node], rounds: int = 400) -> None:
    """Let everything arrive; every acknowledgement reaches all nodes, which have the same address."""
    for _ in range(rounds):
        acks: list[bytes] = []
        for node in nodes:
            node.send()
            acks += region.take(node.in_transit)
            node.in_transit.clear()
        for ack in acks:
            for node in nodes:
                node.acknowledge(ack)
        for node in nodes:
            node.wait(1000.0)
        if not any(node.store.entries for node in nodes):
            return
    raise AssertionError([node.held() for node in nodes])


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    region = Region(tmp_path / "region.db")
    yield region
    region.store.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    names, folders = itertools.count(1), itertools.count()
    nodes: list[Node] = []

    def node(copy_of: Path | None = None) -> Node:
        folder = tmp_path / f"node{next(folders)}"
        folder.mkdir() if copy_of is None else shutil.copytree(copy_of, folder)
        nodes.append(Node(folder, names))
        return nodes[-1]

    yield node
    for each in nodes:
        each.close()


def assert_stored(region: Region, *nodes: Node, once: bool = True) -> None:
    stored = region.contents()
    for node in nodes:
        assert node.deleted <= stored.keys(), "acknowledged and not stored"
    assert not once or set(stored.values()) <= {1}


def test_two_nodes_from_one_image_lose_nothing(region: Region, make: Callable[..., Node], tmp_path: Path) -> None:
    """Both continue the same file; their acknowledgements reach both."""
    first = make()
    first.append(0, 0, 5)
    first.store.close()
    second = make(first.folder)
    first.open()
    for _ in range(50):
        first.append(0)
        second.append(0)
    exchange(region, [first, second])

    assert_stored(region, first, second)
    assert len(region.contents()) == 103
    assert region.node()["awaited"] == 0
    assert region.clashes == 0


@pytest.mark.parametrize("count", [1, 2, 64, pytest.param(1000, marks=pytest.mark.long)])
def test_a_backup_put_back_after_more_results_loses_none(region: Region, make: Callable[..., Node], count: int) -> None:
    node = make()
    node.append(0, 0)
    exchange(region, [node])
    backup = node.copied_files(node.folder.with_name("backup"))
    for at in range(0, count, 10):
        node.append(*[0] * min(10, count - at))
    exchange(region, [node])
    restored = make(backup)
    new = restored.append(*[0] * 20)
    exchange(region, [restored])

    assert_stored(region, node, restored)
    assert set(new) <= region.contents().keys()
    assert len(region.contents()) == 22 + count
    assert (region.node()["awaited"], region.node()["lost"]) == (0, 0)


def test_two_processes_with_one_epoch_keep_both_results_and_part(region: Region, make: Callable[..., Node]) -> None:
    """A virtual machine copied while it runs: the second has the memory of the first, and so its epoch."""
    first = make()
    first.append(0, 0)
    first.send()  # on its way when the machine is copied
    second = first.copied_process(first.folder.with_name("twin"))
    mine, its = first.append(0, 0, 0), second.append(0, 0)
    exchange(region, [first, second])

    assert_stored(region, first, second)
    assert {*mine, *its} <= region.contents().keys()
    assert first.store.epoch != second.store.epoch
    first.append(0)
    second.append(0)
    clashes = region.clashes
    exchange(region, [first, second])
    assert_stored(region, first, second)
    assert region.clashes == clashes
    assert region.node()["awaited"] == 0
    second.close()


def test_a_result_is_not_acknowledged_to_a_copy_because_its_neighbours_numbers_were_received(
    region: Region, make: Callable[..., Node]
) -> None:
    """Of each number one of the two results arrives: no range of numbers tells which."""
    first = make()
    first.append(0)
    exchange(region, [first])
    second = first.copied_process(first.folder.with_name("twin"))
    mine, its = first.append(0, 0, 0), second.append(0, 0, 0)
    first.send()
    second.send()
    acks = region.take(first.in_transit[:1] + second.in_transit[1:])
    first.in_transit.clear()
    second.in_transit.clear()
    for ack in acks:
        first.acknowledge(ack)
        second.acknowledge(ack)

    assert_stored(region, first, second)
    assert its[0] in second.held()
    assert set(mine[1:]) <= first.held()
    exchange(region, [first, second])
    assert_stored(region, first, second)
    assert {*mine, *its} <= region.contents().keys()
    second.close()


def test_a_result_that_arrives_late_under_its_former_number_is_not_stored_again(
    region: Region, make: Callable[..., Node]
) -> None:
    """It was on its way, or in a backup that is put back, when its outbox numbered it anew."""
    first = make()
    first.append(0)
    exchange(region, [first])
    second = first.copied_process(first.folder.with_name("twin"))
    first.append(0, 0)
    second.append(0, 0)
    backup = second.copied_files(second.folder.with_name("earlier"))
    second.send()
    late = list(second.in_transit)
    second.in_transit.clear()
    exchange(region, [first, second])
    region.take(late)
    restored = make(backup)
    exchange(region, [restored])

    assert region.contents() == {f"r{n}": 1 for n in range(1, 6)}
    second.close()


def test_a_clash_is_an_event_with_both_results_and_counted(region: Region, make: Callable[..., Node]) -> None:
    first = make()
    first.append(0)
    second = first.copied_process(first.folder.with_name("twin"))
    mine, its = first.append(0), second.append(0)
    exchange(region, [first, second])

    ((payload,),) = region.rows("SELECT payload FROM event WHERE kind = 'outbox-clash'")
    detail = orjson.loads(bytes(payload))["detail"]
    assert [one["id"] for one in detail["results"]] in ([*mine, *its], [*its, *mine])
    assert region.node()["clashes"] == 1
    number = detail["number"]
    shown = [stored.number for stored in results(region.store._database, ResultQuery())]
    epoch, _, rest = number.partition("/")
    assert {number, f"{epoch}~1/{rest}"} <= set(shown)
    second.close()


def test_a_restarted_region_acknowledges_both_results_of_a_clash(region: Region) -> None:
    """What it repeats at its start has the checks of both, so that each of two outboxes deletes its own."""
    for n in range(2):
        region.take([sent(n)])

    ((_, ack),) = region.store.acks()
    assert ack.held is not None
    assert len({check for _, check in ack.held[0]}) == 2


def test_clashes_beyond_the_sites_quota_of_events_are_no_events(tmp_path: Path) -> None:
    """Both results are stored all the same."""
    region = Region(tmp_path / "few.db", quotas={"events_per_day": 2})
    for n in range(6):
        region.take([sent(n)])

    assert len(region.rows("SELECT 1 FROM event WHERE kind = 'outbox-clash'")) <= 2
    assert len(region.contents()) == 6
    region.store.close()


def test_a_gap_that_begins_an_epoch_tells_the_end_of_the_one_before(region: Region, make: Callable[..., Node]) -> None:
    """The first result of the new run has expired: its gap stands in its place, and says what else to wait for."""
    node = make()
    node.append(0, 0, 0)
    node.restart()
    node.append(0, ttl_s=1.0)
    node.wait(10.0)
    node.expire()
    newest = [entry for entry in node.store.read(0, key_of(PRIORITIES, 0), 100, 1 << 20) if not entry.topic]
    region.take([node._message(entry) for entry in newest])

    assert region.node()["awaited"] == 3
    exchange(region, [node])
    assert (region.node()["awaited"], region.node()["lost"]) == (0, 1)


def test_a_result_is_not_deleted_because_the_region_rejected_a_larger_one_of_its_number(
    region: Region, make: Callable[..., Node]
) -> None:
    """Both come from copies of a running process. The region does not read what is too large for it, so it has no check of that."""
    first = make()
    first.append(0)
    exchange(region, [first])
    second = first.copied_process(first.folder.with_name("twin"))
    (large,), (small,) = first.append(0, size=5000), second.append(0)
    for node in (first, second):
        node.send()
    (message,), second.in_transit = first.in_transit, []
    message.oversized, message.payload = len(message.payload), b""
    outcome = region.store.apply([decode_message(message, "test", time.time())])
    assert outcome.rejected == {"too-large": 1}
    for due in outcome.acks.values():
        for node in (first, second):
            node.acknowledge(due.ack.encode())
    exchange(region, [second])

    assert large in first.deleted  # sent again it would be rejected again, so that is told, and the end of it
    assert region.contents() == {"r1": 1, small: 1}
    second.close()


def test_a_clash_is_told_with_both_results_if_they_come_together(region: Region) -> None:
    region.take([sent(0), sent(1)])

    ((payload,),) = region.rows("SELECT payload FROM event WHERE kind = 'outbox-clash'")
    first, second = orjson.loads(bytes(payload))["detail"]["results"]
    assert (first["id"], second["id"]) == ("r0", "r1")
    assert first["received_at"] <= second["received_at"]


def test_a_result_whose_number_was_declared_lost_is_kept(region: Region, make: Callable[..., Node]) -> None:
    """The copy of a running process expires what the other one sends later."""
    first = make()
    first.append(0)
    first.send()
    first.in_transit.clear()
    second = first.copied_process(first.folder.with_name("twin"))
    with second.store.transaction():
        second.store.give_up([key_of(0, 1)], "expired")
    second._apply_changes([])
    exchange(region, [second])
    exchange(region, [first])

    assert_stored(region, first)
    assert first.deleted == {"r1"}
    second.close()


def test_a_repeat_is_kept_if_retention_has_deleted_the_result(tmp_path: Path, make: Callable[..., Node]) -> None:
    region = Region(tmp_path / "kept.db", retention={"days": 1})
    node = make()
    node.append(0, 0)
    node.send()
    sent = list(node.in_transit)
    region.take(sent)
    while region.store.prune(time.time() + 2 * 86_400):
        pass
    assert not region.contents()
    region.take(sent)

    assert region.contents() == {"r1": 1, "r2": 1}
    region.store.close()


def sent(n: int, *, topic: str = ADDRESS.topic(Channel.RESULT, "p")) -> Message:
    """Return one of several results that have the same number."""
    properties = encode_properties([(Property.USER, ("number", "e1/0/1")), (Property.USER, ("id", f"r{n}"))])
    return Message(topic, b'{"id": "r%d"}' % n, 2, 1, 0.0, properties)


def test_a_clash_is_stored_although_retention_has_deleted_an_earlier_one(region: Region) -> None:
    for n in range(3):
        region.take([sent(n)])
    with region.store._database.transaction():
        region.store._database.run("DELETE FROM result WHERE said_id = 'r1'")
        region.store._database.run("DELETE FROM ledger WHERE epoch = 'e1~1'")
    region.store._ingest.forget_ledgers()

    for n in (3, 4):
        region.take([sent(n)])

    assert region.contents() == {f"r{n}": 1 for n in (0, 2, 3, 4)}


def test_a_message_that_is_rejected_under_a_number_that_another_one_has_leaves_a_trace(region: Region) -> None:
    """Its acknowledgement deletes it at the node; a repeat of it counts as one."""
    region.take([sent(0)])
    bad = sent(1, topic=ADDRESS.topic(Channel.RESULT, "not a name"))

    outcomes = [region.store.apply([decode_message(bad, "test", time.time())]) for _ in range(2)]

    assert [outcome.rejected for outcome in outcomes] == [{"bad-topic": 1}, {}]
    assert region.rows("SELECT number FROM rejected") == [("e1/0/1",)]
    assert region.contents() == {"r0": 1}


def test_results_beyond_nine_of_one_number_are_refused_and_not_acknowledged(region: Region) -> None:
    """A stolen node that gives every result the same number fills no more than its quota, and gets no acknowledgement for the rest."""
    for n in range(9):
        region.take([sent(n)])
    outcome = region.store.apply([decode_message(sent(9), "test", time.time())])

    assert outcome.rejected == {"too-many-clashes": 1}
    assert outcome.acks == {}
    assert region.contents() == {f"r{n}": 1 for n in range(9)}
    assert len(region.rows("SELECT 1 FROM event WHERE kind = 'outbox-clash'")) == 8


def test_restarts_cost_the_region_no_epochs(
    region: Region, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has one; those of which everything is there do not count, and retention deletes them."""
    monkeypatch.setattr("hedgerow.region.store.outboxes.ledgers.MAX_EPOCHS", 3)
    node = make()
    for _ in range(8):
        node.append(0, 3)
        exchange(region, [node])
        node.restart()

    assert len(region.contents()) == 16
    assert region.rows("SELECT count(*) FROM ledger") == [(8,)]
    assert region.rows("SELECT count(*) FROM ledger WHERE closed_at IS NULL") == [(1,)]
    assert region.node()["awaited"] == 0
    region.store._config = region.store._config.model_copy(
        update={"retention": region.store._config.retention.model_copy(update={"days": 1})}
    )
    for _ in range(3):
        region.store.prune(time.time() + 3 * 86_400)
    assert region.rows("SELECT count(*) FROM ledger") == [(1,)]
    node.append(0)
    exchange(region, [node])
    assert region.node()["awaited"] == 0
    assert MAX_EPOCHS == 1000


def test_what_waits_in_an_earlier_epoch_is_shown_as_missing(region: Region, make: Callable[..., Node]) -> None:
    """A new run says where the last one ended."""
    node = make()
    node.append(0, 0, 0, 7)
    node.restart()
    node.append(0)
    newest = [entry for entry in node.store.read(0, key_of(PRIORITIES, 0), 100, 1 << 20) if entry.key == key_of(0, 4)]
    region.take([node._message(entry) for entry in newest])

    assert region.node()["awaited"] == 4
    exchange(region, [node])
    assert region.node()["awaited"] == 0
    assert_stored(region, node)


def test_a_region_that_tells_numbers_only_gets_everything_from_copied_files(make: Callable[..., Node]) -> None:
    """An earlier version of the region: no checks in its acknowledgements. Epochs alone keep copies of files apart."""
    first = make()
    first.append(0, 0)
    first.store.close()
    second = make(first.folder)
    first.open()
    ids = set(first.append(0, 0) + second.append(0))
    received: dict[str, Any] = {}
    from hedgerow.bus.outbox import Ledger, Number

    ledgers: dict[str, Ledger] = {}
    stored: dict[Any, str] = {}
    for _ in range(10):
        for node in (first, second):
            node.send()
            for message in node.in_transit:
                number = Number.parse(dict(message.properties.user_properties)["number"])
                name = orjson.loads(message.payload)["id"]
                assert stored.setdefault(number, name) == name, "two results with one number"
                ledgers.setdefault(number.epoch, Ledger(number.epoch)).add(number)
                received[name] = message
            node.in_transit.clear()
        for ledger in ledgers.values():
            first.acknowledge(ledger.ack().encode())
            second.acknowledge(ledger.ack().encode())

    assert first.store.entries == second.store.entries == 0
    assert received.keys() == {"r1", "r2", *ids}


class Histories(RuleBasedStateMachine):
    """Nodes at one address, their copies, and a region."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="copies-"))
        self.names, self.folders = itertools.count(1), itertools.count()
        self.region = Region(self.folder / "region.db")
        self.nodes = [Node(self.new_folder(), self.names)]
        self.nodes[0].folder.mkdir(exist_ok=True)
        self.backups: list[Path] = []
        self.deleted: set[str] = set()
        self.given_up: set[str] = set()

    def new_folder(self) -> Path:
        return self.folder / f"node{next(self.folders)}"

    nth = st.integers(0, 3)

    def of(self, nth: int) -> Node:
        return self.nodes[nth % len(self.nodes)]

    @rule(
        nth=nth,
        priorities=st.lists(st.sampled_from([0, 0, 4]), min_size=1, max_size=4),
        ttl_s=st.sampled_from([None, None, 50.0]),
        size=st.sampled_from([0, 0, 20_000]),
    )
    def append(self, nth: int, priorities: list[int], ttl_s: float | None, size: int) -> None:
        self.of(nth).append(*priorities, ttl_s=ttl_s, size=size)

    @rule(nth=nth, keep=st.integers(0, 8), ack_lost=st.booleans(), to_all=st.booleans())
    def send(self, nth: int, keep: int, ack_lost: bool, to_all: bool) -> None:
        """Some of it arrives; the acknowledgement may be lost, or reach one node only."""
        node = self.of(nth)
        node.send()
        acks = self.region.take(node.in_transit[:keep])
        del node.in_transit[:keep]
        if not ack_lost:
            for ack in acks:
                for each in self.nodes if to_all else [node]:
                    each.acknowledge(ack)

    @rule(nth=nth)
    def lose(self, nth: int) -> None:
        self.of(nth).in_transit.clear()

    @rule()
    def acknowledge_again(self) -> None:
        """The region repeats what it has said last, or what it says when it starts."""
        for _, ack in self.region.store.acks():
            for node in self.nodes:
                node.acknowledge(ack.encode())

    @rule(nth=nth, killed=st.booleans())
    def restart(self, nth: int, killed: bool) -> None:
        self.of(nth).restart(killed=killed)

    @rule(nth=nth, seconds=st.sampled_from([1.0, 60.0]))
    def time_passes(self, nth: int, seconds: float) -> None:
        self.of(nth).wait(seconds)
        self.of(nth).expire()

    @precondition(lambda self: len(self.nodes) < 4)
    @rule(nth=nth, stopped=st.booleans())
    def copy_files(self, nth: int, stopped: bool) -> None:
        node = self.of(nth)
        if stopped:
            node.restart()
        self.nodes.append(Node(node.copied_files(self.new_folder()), self.names))

    @rule(nth=nth)
    def back_up(self, nth: int) -> None:
        if len(self.backups) < 3:
            self.backups.append(self.of(nth).copied_files(self.new_folder()))

    @precondition(lambda self: self.backups)
    @rule(nth=nth, which=st.integers(0, 2))
    def restore(self, nth: int, which: int) -> None:
        """A node's files are replaced by an earlier state; what only the present one had is lost with them."""
        node = self.of(nth)
        self.discard(node)
        folder = self.new_folder()
        shutil.copytree(self.backups[which % len(self.backups)], folder)
        self.nodes.append(Node(folder, self.names))

    def discard(self, node: Node) -> None:
        self.deleted |= node.deleted
        self.given_up |= node.given_up
        node.store.abandon()
        self.nodes.remove(node)

    @invariant()
    def nothing_is_acknowledged_that_is_not_stored(self) -> None:
        stored = self.region.contents()
        for deleted in (self.deleted, *(node.deleted for node in self.nodes)):
            assert deleted <= stored.keys(), "acknowledged and not stored"
        assert set(stored.values()) <= {1}, "stored twice"

    def teardown(self) -> None:
        waiting = set().union(*(node.held() for node in self.nodes))
        exchange(self.region, self.nodes)
        self.nothing_is_acknowledged_that_is_not_stored()
        given_up = self.given_up.union(*(node.given_up for node in self.nodes))
        assert waiting - given_up <= self.region.contents().keys()
        for node in self.nodes:
            node.close()
        self.region.store.close()
        shutil.rmtree(self.folder)


class RunningCopies(Histories):
    """The same with copies of running processes, which number anew what waits when they learn of each other."""

    @precondition(lambda self: len(self.nodes) < 4)
    @rule(nth=Histories.nth)
    def copy_process(self, nth: int) -> None:
        self.nodes.append(self.of(nth).copied_process(self.new_folder()))


for machine in (Histories, RunningCopies):
    machine.TestCase.settings = settings(
        derandomize=True, max_examples=examples(100), stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )  # fmt: skip
TestHistories = Histories.TestCase
TestRunningCopies = RunningCopies.TestCase
