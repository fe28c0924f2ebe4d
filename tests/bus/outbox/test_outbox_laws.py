"""Invariants of the outbox, against a model: the region receives every record or a gap that declares it lost."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.examples import examples

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.mark import Boot
from hedgerow.bus.outbox.records import PRIORITIES, Gap, Number, OutboxEntry, Record, key_of, priority_of, sequence_of
from hedgerow.bus.outbox.store import OutboxFull, OutboxStore
from hedgerow.bus.outbox.window import SendWindow

MAX_BYTES = 96 << 10


class NodeAndRegion(RuleBasedStateMachine):
    """Store and window as the outbox uses them, a path that loses messages, and a region with a ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-"))
        self.starts = itertools.count()
        self.boot = Boot("first", 100.0)
        self.now = 0.0
        self.count = 0
        self.stored: dict[int, bytes] = {}  # stored records, by key
        self.received: dict[int, bytes] = {}
        self.gaps: list[tuple[int, int]] = []  # received by the region
        self.in_transit: list[OutboxEntry] = []
        self.acked = 0

    @initialize(when_full=st.sampled_from(["evict", "refuse"]), window=st.integers(2, 12))
    def start(self, when_full: str, window: int) -> None:
        self.when_full = when_full
        self.window = SendWindow(window, 40_000, 0.5)
        self.max_entries = window
        self.path = self.folder / "0" / "outbox.db"
        self.open()
        self.ledger = Ledger(self.store.epoch)

    def open(self) -> None:
        self.store = OutboxStore(self.path, max_bytes=MAX_BYTES, when_full=self.when_full, boot=lambda: self.boot)  # type: ignore[arg-type]
        self.store.take_changes()
        self.window.reset([key_of(priority, 1) for priority in range(PRIORITIES)], self.store.next_keys)

    def apply_changes(self, appended: list[OutboxEntry], up: bool) -> None:
        """Update the window as the outbox does after every group."""
        changes = self.store.take_changes()
        self.window.appended(appended, self.store.next_keys, up=up)
        self.window.discard(changes.given_up)
        for key in changes.changed_gaps:
            self.window.rewind(key)

    @rule(
        shapes=st.lists(
            st.tuples(st.sampled_from([0, 3, 9]), st.integers(0, 9000), st.sampled_from([None, 50.0])),
            min_size=1,
            max_size=8,
        ),
        up=st.booleans(),
    )
    def append(self, shapes: list[tuple[int, int, float | None]], up: bool) -> None:
        records = []
        for priority, size, ttl_s in shapes:
            self.count += 1
            payload = b"%d " % self.count + b"x" * size
            records.append(Record("p", "t", payload, priority=priority, ttl_s=ttl_s))
        next_keys = self.store.next_keys
        try:
            with self.store.transaction():
                keys = self.store.append(records)
        except OutboxFull:
            assert self.when_full == "refuse"
            assert self.store.next_keys == next_keys
            return
        assert len(set(keys)) == len(keys)
        assert self.stored.keys().isdisjoint(keys)
        for key, record in zip(keys, records, strict=True):
            assert key >= next_keys[record.priority]
            self.stored[key] = record.payload
        self.apply_changes(
            [OutboxEntry(key, key, r.topic, b"", r.payload) for key, r in zip(keys, records, strict=True)], up
        )

    @rule()
    def send(self) -> None:
        entries, request = self.window.next(self.now)
        self.in_transit += entries
        if request is not None:
            read = self.store.read(*request)
            assert len(read) <= request.limit
            self.in_transit += self.window.offer(request, read, self.now)
        assert self.window.in_flight <= self.max_entries

    @precondition(lambda self: self.in_transit)
    @rule(data=st.data(), lost=st.booleans())
    def messages_arrive_or_are_lost(self, data: st.DataObject, lost: bool) -> None:
        count = data.draw(st.integers(1, len(self.in_transit)))
        for entry in self.in_transit[:count]:
            if not lost:
                self.receive(entry)
        del self.in_transit[:count]

    def receive(self, entry: OutboxEntry) -> None:
        if not entry.topic:
            self.gaps.append((entry.key, entry.last))
            self.ledger.add_gap(Gap.read(entry.key, entry.last, entry.payload))
            return
        assert entry.payload == self.stored[entry.key], "two records with one number"
        self.ledger.add(Number(self.store.epoch, priority_of(entry.key), sequence_of(entry.key)))
        self.received[entry.key] = entry.payload

    @rule()
    def the_region_acknowledges(self) -> None:
        ack = self.ledger.ack()
        self.window.acked(ack, self.now)
        with self.store.transaction():
            assert self.store.trim(ack)
        self.apply_changes([], False)

    @rule(seconds=st.floats(1, 100))
    def time_passes(self, seconds: float) -> None:
        self.boot = Boot(self.boot.id, self.boot.seconds + seconds)
        self.now += seconds
        self.window.probe(self.now)

    @rule()
    def old_records_expire(self) -> None:
        with self.store.transaction():
            assert not self.store.expire()
        self.apply_changes([], False)

    @rule()
    def the_link_breaks(self) -> None:
        self.window.link_down()
        self.in_transit.clear()

    @rule(data=st.data(), torn=st.booleans(), reboots=st.booleans())
    def the_node_crashes(self, data: st.DataObject, torn: bool, reboots: bool) -> None:
        """The disk keeps everything except an arbitrary part of the end of the log."""
        next_keys = self.store.next_keys
        self.path = self.folder / str(next(self.starts) + 1) / "outbox.db"
        shutil.copytree(self.store.path.parent, self.path.parent)
        self.store.abandon()
        log = self.path.with_name("outbox.db-wal")
        if torn and log.exists():
            with log.open("r+b") as file:
                file.truncate(data.draw(st.integers(0, log.stat().st_size)))
        if reboots:
            self.boot = Boot(f"boot {self.count}", 1.0)
        epoch = self.store.epoch
        self.open()
        if epoch == self.store.epoch:
            assert self.store.next_keys == next_keys
        else:  # the database had not even been created: the old epoch is lost
            assert torn
            self.the_epoch_ended(epoch)

    def the_epoch_ended(self, epoch: str) -> None:
        [row] = self.store.read(key_of(PRIORITIES - 1, 1), key_of(PRIORITIES, 0), 1, 1)
        [previous] = Gap.read(row.key, row.last, row.payload).previous
        assert previous.epoch == epoch
        assert previous.numbers is not None
        for key in self.stored:
            assert sequence_of(key) < previous.numbers[priority_of(key)], "lost and not declared"
        self.stored.clear()
        self.received.clear()
        self.gaps.clear()
        self.in_transit.clear()
        self.ledger = Ledger(self.store.epoch)

    @rule()
    def the_node_restarts(self) -> None:
        next_keys = self.store.next_keys
        self.store.close()
        self.open()
        assert self.store.next_keys == next_keys

    @invariant()
    def the_quota_holds(self) -> None:
        if hasattr(self, "store"):
            assert self.store.used_bytes <= MAX_BYTES

    @invariant()
    def every_number_is_somewhere(self) -> None:
        """Every number is a record, part of a gap, or at the region."""
        if not hasattr(self, "store"):
            return
        count = 0
        for priority, top in enumerate(self.store.next_keys):
            expected = key_of(priority, 1)
            gap_before = False
            for entry in self.store.read(expected, top, 10_000, 1 << 30):
                count += 1
                self.assert_region_has(expected, entry.key)
                assert not (gap_before and not entry.topic), "adjacent gaps were not merged"
                gap_before = not entry.topic
                if entry.topic:
                    assert entry.payload == self.stored[entry.key]
                expected = entry.last + 1
            self.assert_region_has(expected, top)
        assert count == self.store.entries

    def assert_region_has(self, start: int, end: int) -> None:
        for key in range(start, end):
            assert key in self.received or self.declared(key), f"number {sequence_of(key)} is missing"

    def declared(self, key: int) -> bool:
        return any(first <= key <= last for first, last in self.gaps)

    def teardown(self) -> None:
        """Once the path works, the region receives every number and the outbox is empty."""
        if not hasattr(self, "store"):
            return
        for _ in range(1000):
            if not self.store.entries:
                break
            self.send()
            for entry in self.in_transit:
                self.receive(entry)
            self.in_transit.clear()
            self.the_region_acknowledges()
            self.now += 1000
            self.window.probe(self.now)
        assert self.store.entries == 0
        for key, payload in self.stored.items():
            assert self.received.get(key) == payload or self.declared(key)
        for priority, number in enumerate(self.store.numbers):
            assert self.ledger.ack().through.get(priority, 0) == number - 1
        self.store.close()
        shutil.rmtree(self.folder)


NodeAndRegion.TestCase.settings = settings(
    derandomize=True,
    max_examples=examples(200),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNodeAndRegion = NodeAndRegion.TestCase
