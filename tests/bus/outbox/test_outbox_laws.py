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
from hedgerow.bus.outbox.records import PRIORITIES, Gap, Number, OutboxEntry, PreviousEpoch, Record, key_of, read_gap
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
        self.stored: dict[Number, bytes] = {}  # what was ever stored
        self.received: dict[Number, bytes] = {}
        self.declared: list[tuple[Number, Number]] = []  # first and last of the gaps that the region received
        self.ledgers: dict[str, Ledger] = {}
        self.in_transit: list[OutboxEntry] = []
        self.acked = 0

    @initialize(when_full=st.sampled_from(["evict", "refuse"]), window=st.integers(2, 12))
    def start(self, when_full: str, window: int) -> None:
        self.when_full = when_full
        self.window = SendWindow(window, 40_000, 0.5)
        self.max_entries = window
        self.path = self.folder / "0" / "outbox.db"
        self.open()

    def open(self) -> None:
        self.store = OutboxStore(self.path, max_bytes=MAX_BYTES, when_full=self.when_full, boot=lambda: self.boot)  # type: ignore[arg-type]
        self.store.take_changes()
        self.window.reset([key_of(priority, 1) for priority in range(PRIORITIES)], self.store.next_keys)

    def apply_changes(self, appended: list[OutboxEntry], up: bool) -> None:
        """Update the window as the outbox does after every group."""
        changes = self.store.take_changes()
        self.window.appended(appended, self.store.next_keys, up=up)
        self.window.discard(changes.given_up)
        for key in changes.rewound:
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
        numbers = [self.number(key) for key in keys]
        assert len(set(numbers)) == len(keys)
        assert self.stored.keys().isdisjoint(numbers), "a number was given twice"
        for key, number, record in zip(keys, numbers, records, strict=True):
            assert key >= next_keys[record.priority]
            self.stored[number] = record.payload
        self.apply_changes(
            [OutboxEntry(key, key, r.topic, b"", r.payload) for key, r in zip(keys, records, strict=True)], up
        )

    def number(self, key: int) -> Number:
        return self.store.epochs.of(key).number(key)

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
        span = self.store.epochs.of(entry.key)
        ledger = self.ledgers.setdefault(span.epoch, Ledger(span.epoch))
        number = span.number(entry.key)
        if not entry.topic:
            body = Gap.read(entry.key, entry.last, entry.payload).message(span.epoch, span.bases[number.priority])
            epoch, gap = read_gap(body)
            ledger.add_gap(gap)
            assert epoch == number.epoch
            self.declared.append((number, self.number(entry.last)))
            for previous in gap.previous:
                self.epoch_ended(previous)
            return
        assert entry.payload == self.stored[number], "two records with one number"
        ledger.add(number)
        self.received[number] = entry.payload

    def epoch_ended(self, previous: PreviousEpoch) -> None:
        assert previous.epoch is not None
        assert previous.numbers is not None
        for priority, after in enumerate(previous.numbers):
            if after > 1:
                ledger = self.ledgers.setdefault(previous.epoch, Ledger(previous.epoch))
                ledger.ranges(priority).add(1, after - 1)
                self.declared.append((Number(previous.epoch, priority, 1), Number(previous.epoch, priority, after - 1)))

    @rule()
    def the_region_acknowledges(self) -> None:
        for epoch, ledger in self.ledgers.items():
            if (span := self.store.epochs.named(epoch)) is not None:
                acked = span.translated(ledger.ack(), self.store.numbers)
                self.window.acked(acked, self.now, span)
                with self.store.transaction():
                    assert self.store.acknowledge(ledger.ack())
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
        self.path = self.folder / str(next(self.starts) + 1) / "outbox.db"
        shutil.copytree(self.store.path.parent, self.path.parent)
        self.store.abandon()
        log = self.path.with_name("outbox.db-wal")
        if torn and log.exists():
            with log.open("r+b") as file:
                file.truncate(data.draw(st.integers(0, log.stat().st_size)))
        if reboots:
            self.boot = Boot(f"boot {self.count}", 1.0)
        self.in_transit.clear()
        self.open()

    @rule()
    def the_node_restarts(self) -> None:
        next_keys = self.store.next_keys
        self.store.close()
        self.in_transit.clear()
        self.open()
        assert self.store.next_keys == next_keys
        assert self.store.epoch == "", "it has assigned nothing yet"

    @invariant()
    def the_quota_holds(self) -> None:
        if hasattr(self, "store"):
            assert self.store.used_bytes <= MAX_BYTES

    @invariant()
    def every_number_is_somewhere(self) -> None:
        """Every number that was ever given is a record, part of a gap, or at the region."""
        if not hasattr(self, "store"):
            return
        count = 0
        here: set[Number] = set()
        declared: list[tuple[Number, Number]] = []
        for priority, top in enumerate(self.store.next_keys):
            gap_in = ""
            for entry in self.store.read(key_of(priority, 1), top, 10_000, 1 << 30):
                count += 1
                number, last = self.number(entry.key), self.number(entry.last)
                assert last.epoch == number.epoch, "a gap covers two epochs"
                if entry.topic:
                    assert entry.payload == self.stored[number]
                    here.add(number)
                    gap_in = ""
                    continue
                assert gap_in != number.epoch, "adjacent gaps were not merged"
                gap_in = number.epoch
                declared.append((number, last))
                for previous in Gap.read(entry.key, entry.last, entry.payload).previous:
                    assert previous.epoch is not None
                    assert previous.numbers is not None
                    for one, after in enumerate(previous.numbers):
                        declared.append((Number(previous.epoch, one, 1), Number(previous.epoch, one, after - 1)))
        assert count == self.store.entries
        for number in self.stored.keys() - self.received.keys() - here:
            assert any(covers(one, number) for one in (*declared, *self.declared)), f"number {number} is missing"
        assert len(self.store.epochs.spans) <= count + 2

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
        for number, payload in self.stored.items():
            assert self.received.get(number) == payload or any(covers(one, number) for one in self.declared)
            assert self.ledgers[number.epoch].ack().through[number.priority] >= number.sequence
        self.store.close()
        self.open()
        assert len(self.store.epochs.spans) <= 1, "an epoch of which nothing waits is forgotten"
        self.store.close()
        shutil.rmtree(self.folder)


def covers(gap: tuple[Number, Number], number: Number) -> bool:
    """Whether a number is between the first and the last of a gap."""
    return gap[0][:2] == number[:2] and gap[0].sequence <= number.sequence <= gap[1].sequence


NodeAndRegion.TestCase.settings = settings(
    derandomize=True,
    max_examples=examples(200),
    stateful_step_count=40,
    phases=__import__("hypothesis").settings.default.phases[:3],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNodeAndRegion = NodeAndRegion.TestCase
