"""After a restore to an earlier time, nodes send again what the region had acknowledged since: each result is stored once."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.examples import examples
from tests.region.store.test_copies import ADDRESS, Node, Region

from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.restore import restore_backup
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import HealthRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.wire.messages import RegionStoreHealth


class BackedUpRegion(Region):
    """A region that can be backed up and put back, and that hears what nodes say of its store."""

    def back_up(self) -> Path:
        folder = self.path.parent / f"backup{len([*self.path.parent.glob('backup*')])}"
        make_backup(self._config, folder, lambda _: None)
        return folder

    def put_back(self, backup: Path) -> None:
        self.store.close()
        restore_backup(self._config, backup, who="eve", replace=True, advance=lambda _: None)
        self.store = RegionStore(open_database(str(self.path), write=True), self._config)

    def hear(self, node: Node) -> None:
        """Take a node's health report, and tell it what it does not know of the store."""
        region = node.store.region
        said = RegionStoreHealth(mark=region.mark, resent=region.resent, complete=region.complete)
        now = time.time()
        health = HealthRecord(ADDRESS, 0, now, True, now, "s", 0, "ok", "[]", b"{}", region=said)
        for due in self.store.apply([health]).acks.values():
            node.acknowledge(due.ack.encode())

    def restored(self) -> dict[str, Any]:
        from hedgerow.region.store.queries import status

        return status(self.store._database, time.time())["restored"]


class LargeNode(Node):
    """A node with room for everything."""

    max_bytes = 8 << 20


def exchange(region: BackedUpRegion, nodes: list[Node], rounds: int = 60) -> None:
    """Let everything arrive; nodes report their health, and acknowledgements reach all of them."""
    for _ in range(rounds):
        acks: list[bytes] = []
        for node in nodes:
            region.hear(node)
            node.send()
            acks += region.take(node.in_transit)
            node.in_transit.clear()
        for ack in acks:
            for node in nodes:
                node.acknowledge(ack)
        for node in nodes:
            node.wait(1000.0)
        if not any(node.store.entries for node in nodes):
            for node in nodes:
                region.hear(node)
            return
    raise AssertionError([node.held() for node in nodes])


@pytest.fixture
def region(tmp_path: Path) -> Iterator[BackedUpRegion]:
    region = BackedUpRegion(tmp_path / "region.db")
    yield region
    region.store.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "node").mkdir()
    node = LargeNode(tmp_path / "node", itertools.count(1))
    yield node
    node.close()


def test_what_was_acknowledged_since_the_backup_is_sent_again_and_stored_once(
    region: BackedUpRegion, node: Node
) -> None:
    node.append(0, 0, 4)
    exchange(region, [node])
    backup = region.back_up()
    node.append(0, 4, 4)
    exchange(region, [node])
    node.restart()
    node.append(0)
    exchange(region, [node])
    region.put_back(backup)
    assert region.contents().total() == 3
    exchange(region, [node])

    assert region.contents() == {f"r{n}": 1 for n in range(1, 8)}
    assert region.node()["awaited"] == 0
    assert region.restored()["resent"] == {"nodes": 1, "results": 4, "incomplete": [], "not_heard": []}
    assert ("region-restored", 4) in [(kind, detail.get("results")) for kind, detail in node.events]


def test_a_node_that_the_backup_does_not_know_sends_everything_again(region: BackedUpRegion, node: Node) -> None:
    """It is not in any ledger, so no acknowledgement is meant for it: its health report shows that it does not know."""
    backup = region.back_up()
    node.append(0, 3)
    exchange(region, [node])
    region.put_back(backup)
    assert region.store.acks() == []
    exchange(region, [node])

    assert region.contents() == {"r1": 1, "r2": 1}


def test_nothing_is_sent_again_that_the_backup_has(region: BackedUpRegion, node: Node) -> None:
    node.append(*[0] * 20)
    exchange(region, [node])
    backup = region.back_up()
    region.put_back(backup)
    exchange(region, [node])

    assert region.restored()["resent"]["results"] == 0
    assert region.node()["repeats"] == 0


def test_an_acknowledgement_of_before_the_restore_that_arrives_after_it_deletes_nothing(
    region: BackedUpRegion, node: Node
) -> None:
    """A bridge that was away has it."""
    node.append(0)
    exchange(region, [node])
    backup = region.back_up()
    node.append(0, 0)
    node.send()
    late = region.take(node.in_transit)
    node.in_transit.clear()
    region.put_back(backup)
    region.hear(node)
    for ack in late:
        node.acknowledge(ack)
    exchange(region, [node])

    assert region.contents() == {f"r{n}": 1 for n in range(1, 4)}


def test_a_gap_that_the_store_has_lost_is_declared_again(region: BackedUpRegion, node: Node) -> None:
    node.append(0)
    exchange(region, [node])
    backup = region.back_up()
    node.append(0, ttl_s=1.0)
    node.wait(5.0)
    node.expire()
    node.append(0)
    exchange(region, [node])
    region.put_back(backup)
    exchange(region, [node])

    assert (region.node()["awaited"], region.node()["lost"]) == (0, 1)
    assert region.contents() == {"r1": 1, "r3": 1}


def test_a_kept_result_that_has_expired_meanwhile_is_declared_lost(region: BackedUpRegion, node: Node) -> None:
    backup = region.back_up()
    node.append(0, ttl_s=50_000.0)
    node.append(0)
    exchange(region, [node])
    node.wait(60_000.0)
    node.expire()
    region.put_back(backup)
    exchange(region, [node])

    assert (region.node()["awaited"], region.node()["lost"]) == (0, 1)
    assert region.contents() == {"r2": 1}


def test_what_is_kept_no_more_is_told(region: BackedUpRegion, node: Node) -> None:
    """It keeps acknowledged results for so long, and no longer: status names the node."""
    node.append(0)
    exchange(region, [node])
    backup = region.back_up()
    node.append(0, 0)
    exchange(region, [node])
    node.wait(2e9)
    node.expire()
    assert node.store.kept_bytes == 0
    node.append(0)
    exchange(region, [node])
    region.put_back(backup)
    exchange(region, [node])

    assert region.restored()["resent"] == {
        "nodes": 1, "results": 1, "incomplete": [str(ADDRESS)], "not_heard": []
    }  # fmt: skip
    assert region.node()["awaited"] == 2
    assert region.contents() == {"r1": 1, "r4": 1}


def test_what_a_node_keeps_is_bounded_and_makes_room_for_what_waits(region: BackedUpRegion, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    node = Node(tmp_path / "small", itertools.count(1))
    for _ in range(30):
        node.append(0, 0, size=10_000)
        exchange(region, [node])
        assert node.store.kept_bytes <= Node.max_bytes // 4
    given_up = node.append(*[0] * 15, size=10_000)
    assert node.store.entries == 15, given_up
    assert node.given_up == set()
    node.close()


def test_a_restore_that_a_node_missed_and_another_one_are_both_made_good(region: BackedUpRegion, node: Node) -> None:
    node.append(0)
    exchange(region, [node])
    first = region.back_up()
    node.append(0)
    exchange(region, [node])
    region.put_back(first)
    second = region.back_up()
    region.put_back(second)
    exchange(region, [node])
    region.put_back(first)
    exchange(region, [node])

    assert region.contents() == {"r1": 1, "r2": 1}
    assert region.node()["awaited"] == 0


def test_a_store_that_begins_anew_gets_what_nodes_keep(region: BackedUpRegion, node: Node) -> None:
    node.append(0, 0)
    exchange(region, [node])
    node.append(0)
    exchange(region, [node])
    other = BackedUpRegion(region.path.with_name("other.db"))
    exchange(other, [node])
    assert other.contents() == {f"r{n}": 1 for n in range(1, 4)}
    exchange(region, [node])
    assert node.store.entries == 0  # the first one is known: nothing goes to and fro
    other.store.close()


class RestoredHistories(RuleBasedStateMachine):
    """Nodes at one address, copies of their files and of running ones, and a region that is put back again and again."""

    nth = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="restores-"))
        self.names, self.folders = itertools.count(1), itertools.count()
        self.region = BackedUpRegion(self.folder / "region.db")
        self.backups = [self.region.back_up()]
        (folder := self.new_folder()).mkdir()
        self.nodes: list[Node] = [LargeNode(folder, self.names)]

    def new_folder(self) -> Path:
        return self.folder / f"node{next(self.folders)}"

    def of(self, nth: int) -> Node:
        return self.nodes[nth % len(self.nodes)]

    @rule(
        nth=nth,
        priorities=st.lists(st.sampled_from([0, 0, 4]), min_size=1, max_size=4),
        ttl_s=st.sampled_from([None, None, 50.0]),
    )
    def append(self, nth: int, priorities: list[int], ttl_s: float | None) -> None:
        self.of(nth).append(*priorities, ttl_s=ttl_s)

    @rule(nth=nth, keep=st.integers(0, 8), ack_lost=st.booleans(), to_all=st.booleans())
    def send(self, nth: int, keep: int, ack_lost: bool, to_all: bool) -> None:
        node = self.of(nth)
        node.send()
        acks = self.region.take(node.in_transit[:keep])
        del node.in_transit[:keep]
        if not ack_lost:
            for ack in acks:
                for each in self.nodes if to_all else [node]:
                    each.acknowledge(ack)

    @rule(nth=nth)
    def report(self, nth: int) -> None:
        self.region.hear(self.of(nth))

    @rule(nth=nth, killed=st.booleans())
    def restart(self, nth: int, killed: bool) -> None:
        self.of(nth).restart(killed=killed)

    @rule(nth=nth, seconds=st.sampled_from([1.0, 60.0]))
    def time_passes(self, nth: int, seconds: float) -> None:
        self.of(nth).wait(seconds)
        self.of(nth).expire()

    @rule(nth=nth)
    def copy_files(self, nth: int) -> None:
        if len(self.nodes) < 3:
            self.nodes.append(LargeNode(self.of(nth).copied_files(self.new_folder()), self.names))

    @rule(nth=nth)
    def copy_process(self, nth: int) -> None:
        if len(self.nodes) < 3:
            twin = self.of(nth).copied_process(self.new_folder())
            twin.given_up = set(self.of(nth).given_up)
            self.nodes.append(twin)

    @rule()
    def back_up(self) -> None:
        if len(self.backups) < 3:
            self.backups.append(self.region.back_up())

    @rule(which=st.integers(0, 2))
    def put_back(self, which: int) -> None:
        self.region.put_back(self.backups[which % len(self.backups)])

    def teardown(self) -> None:
        exchange(self.region, self.nodes)
        stored = self.region.contents()
        given_up = set().union(*(node.given_up for node in self.nodes))
        for node in self.nodes:
            assert node.deleted - given_up <= stored.keys(), "acknowledged, and lost by a restore"
        assert set(stored.values()) <= {1}, "stored twice"
        for node in self.nodes:
            node.close()
        self.region.store.close()
        shutil.rmtree(self.folder)


RestoredHistories.TestCase.settings = settings(
    derandomize=True, max_examples=examples(25), stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
TestRestoredHistories = RestoredHistories.TestCase
