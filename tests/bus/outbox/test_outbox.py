"""The whole outbox: disks that fill up and corrupt data, brokers that start late, nodes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.disks import mounted_disk

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outbox import Ack, Ledger, Number, Outbox, OutboxError, Record, read_gap
from hedgerow.bus.outbox.mark import Boot
from hedgerow.bus.outbox.records import OutboxEntry, key_of
from hedgerow.bus.outbox.store import REMEMBERED_ORIGINS, MachineAndKey, OutboxStore
from hedgerow.bus.set_aside.messages import MessageSetAside
from hedgerow.errors import BusError
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.topics import Address, Channel, late

Eventually = Callable[..., Awaitable[None]]


def record(text: str = "x", **more: Any) -> Record:
    return Record("doors", "out/doors", text.encode(), **more)


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, kind: str, detail: dict[str, Any]) -> None:
        self.append((kind, detail))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


class RecordingOutbox(Outbox):
    """An outbox that records its publishes, which the site's broker accepts."""

    accepted = True

    def __init__(self, path: Path, **more: Any) -> None:
        self.sent: list[tuple[str, bytes, Callable[[Exception | None], None]]] = []
        self.events = Events()
        super().__init__(path, gap_topic="gaps", late=late, publish=self.record_publish, on_event=self.events, **more)

    def record_publish(
        self, topic: str, payload: bytes | memoryview, *, qos: int, properties: bytes, done: Any
    ) -> None:
        assert qos == 1
        assert b"number" in properties
        self.sent.append((topic, bytes(payload), done))
        if self.accepted:
            asyncio.get_running_loop().call_soon(done, None)

    async def store(self, *records: Record, origins: tuple[int, ...] = ()) -> None:
        """Append records and wait until they are stored."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: OutboxError | None) -> None:
            waiting.set_exception(error) if error else waiting.set_result(None)

        self.append(records, origins, done)
        await waiting

    @property
    def payloads(self) -> list[bytes]:
        return [payload for topic, payload, _ in self.sent if topic != "gaps"]


async def fill(outbox: RecordingOutbox, text: str) -> None:
    for _ in range(1000):
        await outbox.store(record(text))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def test_a_record_that_is_set_aside_is_not_sent_again_if_it_was_read_before_its_gap_was_written(
    path: Path, eventually: Eventually
) -> None:
    """It would end the link again, and hold up all others."""
    async with RecordingOutbox(path) as outbox:
        outbox.accepted = False
        outbox.link_changed(up=True)
        await outbox.store(record("bad"))
        await eventually(lambda: outbox.payloads == [b"bad"])
        done = outbox.sent[0][2]
        done(MessageSetAside(BusError("closed", remedy="x"), None))
        key = key_of(0, 1)
        outbox._send([OutboxEntry(key, key, "out/doors", b"", b"bad")])  # as read before, for a probe
        await eventually(lambda: any(topic == "gaps" for topic, _, _ in outbox.sent))

        assert outbox.payloads == [b"bad"]
        assert outbox._giving_up == {}


async def test_queued_records_are_written_and_confirmed_in_order(path: Path) -> None:
    confirmed: list[int] = []
    async with RecordingOutbox(path) as outbox:
        for number in range(500):
            outbox.append([record(str(number))], [], lambda _, number=number: confirmed.append(number))  # type: ignore[misc]
        await outbox.store(record("last"))

    assert confirmed == list(range(500))


async def test_records_survive_a_restart_and_keep_their_numbers(path: Path, eventually: Eventually) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record("a"), record("b"))
        epoch = outbox.epoch
    async with RecordingOutbox(path) as outbox:
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) == 2)

        assert outbox.epoch == ""
        assert outbox.payloads == [b"a", b"b"]
        outbox.acknowledge(Ack(epoch, {0: 2}))
        await eventually(lambda: outbox.status.entries == 0)
    assert outbox.events == []


async def test_new_results_overtake_the_backlog_which_is_sent_by_priority(path: Path, eventually: Eventually) -> None:
    async with RecordingOutbox(path, window=4) as outbox:
        await outbox.store(*(record(f"old {n}") for n in range(4)), record("old urgent", priority=9))
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) >= 1)
        await outbox.store(record("new"))
        await eventually(lambda: b"new" in outbox.payloads)

        assert outbox.payloads[0] == b"old urgent"
        assert b"old 3" not in outbox.payloads


async def test_resent_and_late_results_go_to_the_late_topic(path: Path, eventually: Eventually) -> None:
    """A subscriber that opens a door on a result must not receive one from an hour ago."""
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record("stored while the link was down"))
        outbox.link_changed(up=True)
        await outbox.store(record("new"))
        await eventually(lambda: len(outbox.sent) == 2)
        outbox.link_changed(up=False)
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) == 3)

        assert {(topic, payload) for topic, payload, _ in outbox.sent[:2]} == {
            ("out/doors/late", b"stored while the link was down"),
            ("out/doors", b"new"),
        }
        assert outbox.sent[2][0] == "out/doors/late"


def numbers_sent(outbox: RecordingOutbox, topic: str) -> list[int]:
    """Return the payloads published to a topic, in order."""
    return [int(payload) for each, payload, _ in outbox.sent if each == topic]


async def test_the_site_receives_new_results_however_long_the_region_is_silent(
    path: Path, eventually: Eventually
) -> None:
    """The window bounds what the region has yet to acknowledge; local subscribers do not wait for it."""
    async with RecordingOutbox(path, window=4) as outbox:
        outbox.link_changed(up=True)
        for number in range(40):
            await outbox.store(record(str(number)))
        await eventually(lambda: len(numbers_sent(outbox, "out/doors")) == 40)

        assert numbers_sent(outbox, "out/doors") == list(range(40))
        assert set(numbers_sent(outbox, "out/doors/late")) <= set(range(4))  # probes, of what is in flight
        await eventually(lambda: outbox.status.in_flight == 4)
        ledger = Ledger(outbox.epoch)
        while outbox.status.entries:  # the region is back: it has what was in flight, and gets the rest from disk
            for key in [*range(1, 5), *(number + 1 for number in numbers_sent(outbox, "out/doors/late"))]:
                ledger.add(Number(outbox.epoch, 0, key))
            outbox.acknowledge(ledger.ack())
            await asyncio.sleep(0.01)

        assert len(numbers_sent(outbox, "out/doors")) == 40
        assert [number for number in numbers_sent(outbox, "out/doors/late") if number >= 4] == list(range(4, 40))


async def test_origins_are_remembered_across_restarts(path: Path) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record("a"), origins=(-7, 1 << 62))
        assert outbox.has_stored(-7)
        await outbox.store(record("b"), origins=tuple(range(10, 10 + REMEMBERED_ORIGINS)))
        assert not outbox.has_stored(-7)  # a broker does not redeliver anything that old
    async with RecordingOutbox(path) as outbox:
        assert outbox.has_stored(10)
        assert outbox.has_stored(9 + REMEMBERED_ORIGINS)
        assert not outbox.has_stored(1 << 62)


async def test_results_reach_a_region_through_a_broker_that_starts_late_and_restarts(
    mosquitto: Mosquitto, path: Path, eventually: Eventually
) -> None:
    """Every result arrives although the broker loses its state; duplicates have the same number."""
    mosquitto.kill()
    received: dict[int, bytes] = {}
    ledgers: list[Ledger] = []

    options = ClientOptions(url=mosquitto.url, min_backoff_s=0.02, max_backoff_s=0.1)

    def take_acks(messages: list[Message]) -> None:
        for message in messages:
            outbox.acknowledge(Ack.decode(message.payload))
            node.ack(message)

    def take_results(messages: list[Message]) -> None:
        for message in messages:
            [text] = [value for name, value in message.properties.user_properties if name == "number"]
            number = Number.parse(text)
            if not ledgers:
                ledgers.append(Ledger(number.epoch))
            payload = bytes(message.payload)
            assert received.setdefault(number.sequence, payload) == payload
            ledgers[0].add(number)
            region.ack(message)
        region.publish("ack", ledgers[0].ack().encode(), qos=1)

    events = Events()
    node = Client(options, take_acks, lambda up, _: outbox.link_changed(up=up))
    region = Client(options, take_results)
    outbox = Outbox(path, gap_topic="out/gap", late=late, publish=node.publish, on_event=events, window=16)
    async with outbox, node, region:
        await node.subscribe({"ack": 1})
        await region.subscribe({"out/#": 1})
        outcomes: list[OutboxError | None] = []
        for number in range(100):
            outbox.append([record(str(number))], [], outcomes.append)
        await eventually(lambda: len(outcomes) == 100)
        mosquitto.start()
        await eventually(lambda: len(received) >= 40)
        mosquitto.kill()
        for number in range(100, 200):
            outbox.append([record(str(number))], [], outcomes.append)
        mosquitto.start()
        await eventually(lambda: len(received) == 200 and outbox.status.entries == 0, lambda: f"{len(received)}", 90)

    assert outcomes == [None] * 200
    assert sorted(map(int, received.values())) == list(range(200))
    assert events == []


async def test_a_full_outbox_evicts_the_oldest_of_the_lowest_priority_and_declares_it(
    path: Path, eventually: Eventually
) -> None:
    async with RecordingOutbox(path, max_bytes=128 << 10) as outbox:
        await outbox.store(record("urgent", priority=5))
        for number in range(200):
            await outbox.store(record(f"{number} " + "x" * 2000))
        outbox.link_changed(up=True)
        await eventually(lambda: any(topic == "gaps" for topic, _, _ in outbox.sent))
        [gap] = [read_gap(payload)[1] for topic, payload, _ in outbox.sent if topic == "gaps"]

        assert gap.first == key_of(0, 1)
        assert gap.reasons == {"evicted": gap.count}
        assert gap.last == key_of(0, gap.count)
        await eventually(lambda: len(outbox.payloads) == 201 - gap.count)
        assert outbox.payloads[0] == b"urgent"
        assert outbox.payloads[-1].startswith(b"199 ")
        assert outbox.status.lost == {"evicted": gap.count}


async def test_a_full_outbox_refuses_new_records_if_configured(path: Path) -> None:
    async with RecordingOutbox(path, max_bytes=128 << 10, when_full="refuse") as outbox:
        with pytest.raises(OutboxError) as caught:
            await fill(outbox, "x" * 2000)

        assert caught.value.code == "outbox-full"
        entries = outbox.status.entries
        outbox.acknowledge(Ack(outbox.epoch, {0: entries}))
        await outbox.store(record("room again"))
        assert outbox.status.entries == 1


async def test_a_record_the_broker_refuses_three_times_is_given_up(path: Path, eventually: Eventually) -> None:
    async with RecordingOutbox(path) as outbox:
        outbox.accepted = False
        outbox.link_changed(up=True)
        await outbox.store(record("too large"))
        for attempt in range(1, 4):
            await eventually(lambda attempt=attempt: len(outbox.sent) == attempt)
            outbox.sent[-1][2](RuntimeError("no"))
        await eventually(lambda: outbox.sent[-1][0] == "gaps")

        assert read_gap(outbox.sent[-1][1])[1].reasons == {"refused": 1}
        assert "outbox-refused" in outbox.events.kinds


async def test_a_store_in_use_is_neither_opened_nor_set_aside(path: Path) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record())
        with pytest.raises(OutboxError) as caught:
            await RecordingOutbox(path).__aenter__()

        assert caught.value.code == "outbox-in-use"
        await outbox.store(record())
        assert outbox.status.entries == 2


@pytest.mark.parametrize("damage", ["header", "page"])
async def test_a_damaged_store_is_set_aside_and_the_next_epoch_declares_it(
    path: Path, eventually: Eventually, damage: str
) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(*(record("x" * 500) for _ in range(100)))
        old = outbox.epoch
    with path.open("r+b") as file:
        file.seek(0 if damage == "header" else 4096)
        file.write(b"\xff" * 4096)

    async with RecordingOutbox(path) as outbox:
        assert outbox.events.kinds == ["outbox-set-aside", "outbox-epoch-lost"]
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) == 1)
        epoch, gap = read_gap(outbox.sent[0][1])
        [previous] = gap.previous
        assert epoch != old
        assert (previous.epoch, previous.numbers) == (old, (101, *[1] * 9))
        assert len(list(path.parent.glob("outbox.db.damaged-*"))) >= 1
        await outbox.store(record("goes on"))


async def test_a_corrupt_payload_is_declared_lost_and_the_others_are_sent(path: Path, eventually: Eventually) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record("a"), record("rotting"), record("c"))
    corrupt(path)

    async with RecordingOutbox(path) as outbox:
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) == 3)
        assert outbox.payloads == [b"a", b"c"]
        assert outbox.status.lost == {"corrupt": 1}


async def test_an_acknowledgement_of_unassigned_numbers_starts_a_new_epoch(path: Path, eventually: Eventually) -> None:
    """The store is an old copy, or its disk lost writes. Its records still reach the region."""
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record("a"), record("b"))
        old = outbox.epoch
        outbox.link_changed(up=True)
        outbox.acknowledge(Ack(old, {0: 7}))
        await outbox.store(record("c"))
        await eventually(lambda: outbox.epoch != old)
        await outbox.store(record("d"))
        await eventually(lambda: {b"a", b"b", b"c", b"d"} <= set(outbox.payloads))
        gaps = [read_gap(payload)[1] for topic, payload, _ in outbox.sent if topic == "gaps"]

        assert [previous.epoch for gap in gaps for previous in gap.previous] == [old]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", "24m") as disk:
        yield disk


async def test_a_full_disk_refuses_records_until_there_is_space(small_disk: Path, eventually: Eventually) -> None:
    async with RecordingOutbox(small_disk / "outbox.db", when_full="refuse") as outbox:
        with pytest.raises(OutboxError) as caught:
            await fill(outbox, "x" * 200_000)
        stored = outbox.status.entries

        assert caught.value.code == "outbox-disk"
        assert stored > 10
        assert "Free some disk space" in caught.value.remedy
        assert outbox.status.failure is not None
        outbox.acknowledge(Ack(outbox.epoch, {0: stored - 1}))
        await eventually(lambda: outbox.status.entries == 1)
        await outbox.store(record("goes on"))
        assert outbox.status.failure is None
        assert outbox.events.kinds == ["outbox-failing", "outbox-recovered"]
    async with RecordingOutbox(small_disk / "outbox.db") as outbox:
        outbox.link_changed(up=True)
        await eventually(lambda: len(outbox.sent) == 2)


async def test_a_full_disk_evicts_the_oldest_for_new_records_until_there_is_space(
    small_disk: Path, eventually: Eventually
) -> None:
    """The quota says what it may take, the disk what it can."""
    async with RecordingOutbox(small_disk / "outbox.db") as outbox:
        for number in range(300):
            await outbox.store(record(f"{number} " + "x" * 200_000))
        assert outbox.status.failure is None
        assert outbox.status.lost["evicted"] > 100
        assert outbox.events.kinds.count("outbox-disk-full") == 1
        stored = outbox.status.entries
        assert stored > 10
        outbox.link_changed(up=True)
        ledger = Ledger(outbox.epoch)
        while outbox.status.entries:
            for topic, payload, _ in outbox.sent:
                if topic == "gaps":
                    ledger.add_gap(read_gap(payload)[1])
                else:
                    ledger.add(Number(outbox.epoch, 0, int(payload.split()[0]) + 1))
            outbox.acknowledge(ledger.ack())
            await asyncio.sleep(0.01)
        assert ledger.ranges(0).all() == [(1, 300)]


async def test_an_outbox_on_a_full_disk_opens_once_there_is_space(small_disk: Path, eventually: Eventually) -> None:
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        for _ in range(10_000):
            file.write(b"x" * 4096)
    async with RecordingOutbox(small_disk / "outbox.db") as outbox:
        with pytest.raises(OutboxError):
            await outbox.store(record())
        ballast.unlink()
        await eventually(lambda: outbox.status.failure is None)
        await outbox.store(record())


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"rotting", b"rotten!"))


def store(path: Path, boot: Boot) -> OutboxStore:
    return OutboxStore(path, max_bytes=1 << 20, boot=lambda: boot)


def expire_at(path: Path, boot: Boot) -> int:
    """Open the store at this time, expire records, close it. Returns: the number expired."""
    opened = store(path, boot)
    with opened.transaction():
        opened.expire()
    lost = opened.take_changes().lost["expired"]
    opened.close()
    return lost


def test_downtime_counts_within_one_boot(path: Path) -> None:
    first = store(path, Boot("a", 1000.0))
    with first.transaction():
        first.append([record(ttl_s=60.0)])
    first.close()

    assert expire_at(path, Boot("a", 1059.0)) == 0
    assert expire_at(path, Boot("a", 1061.0)) == 1


def test_after_a_reboot_only_the_time_since_then_counts(path: Path) -> None:
    """Whatever the wall clock shows: it may be an hour off, or start in 1970."""
    first = store(path, Boot("a", 1000.0))
    with first.transaction():
        first.append([record(ttl_s=60.0)])
    first.close()

    assert expire_at(path, Boot("b", 30.0)) == 0
    assert expire_at(path, Boot("c", 20.0)) == 0
    assert expire_at(path, Boot("c", 31.0)) == 1


async def test_a_clock_that_jumps_expires_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RecordingOutbox(path) as outbox:
        await outbox.store(record(ttl_s=600.0))
        for jump_s in (3600.0, -7200.0, 50 * 365 * 86400.0):
            now = __import__("time").time() + jump_s
            monkeypatch.setattr("time.time", lambda now=now: now)
            await outbox.store(record())

        assert outbox.status.lost == {}


CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from hedgerow.bus.outbox import Outbox, Record

async def main():
    def confirm(first, error):
        sys.stdout.write(f"{first}\\n")
        sys.stdout.flush()
    outbox = Outbox(Path(sys.argv[1]), gap_topic="g", late=str, publish=lambda *a, **k: None, on_event=print)
    async with outbox:
        outbox.link_changed(up=True)
        for turn in itertools.count():
            first = int(sys.argv[2]) + 3 * turn
            records = [Record("p", "t", b"%d" % number * 40) for number in range(first, first + 3)]
            outbox.append(records, [], lambda error, first=first: confirm(first, error))
            while outbox.status.appending > 300:
                await asyncio.sleep(0)

asyncio.run(main())
"""


def kill_at_random(path: Path, rounds: int, seed: int) -> None:
    """Every record confirmed before a kill exists afterwards, under the same number."""
    rng = random.Random(seed)
    confirmed: set[int] = set()
    numbers: dict[bytes, int] = {}
    first = 0
    for _ in range(rounds):
        child = processes.start([sys.executable, "-c", CHILD, str(path), str(first)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(rng.randint(1, 150)):
            confirmed.add(int(child.stdout.readline()))
        os.kill(child.pid, signal.SIGKILL)
        confirmed.update(int(line) for line in child.stdout.read().split(b"\n")[:-1])
        child.wait()
        child.stdout.close()
        first = max(confirmed) + 100_000
        opened = OutboxStore(path, max_bytes=1 << 30)
        entries = opened.read(0, 1 << 60, 1_000_000, 1 << 40)
        opened.abandon()
        assert [entry.key for entry in entries] == list(range(1, len(entries) + 1))
        for entry in entries:
            assert numbers.setdefault(entry.payload, entry.key) == entry.key
        assert all(b"%d" % number * 40 in numbers for start in confirmed for number in range(start, start + 3))


def test_confirmed_records_survive_kill_9(path: Path) -> None:
    kill_at_random(path, rounds=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_confirmed_records_survive_a_hundred_kill_9(path: Path) -> None:
    kill_at_random(path, rounds=100, seed=2)


async def test_a_record_that_the_client_still_has_is_not_given_to_it_again(path: Path, eventually: Eventually) -> None:
    """The client sends it again itself. A copy more for each link would block those behind it, if it ends the links."""

    async with RecordingOutbox(path) as outbox:
        outbox.accepted = False
        outbox.link_changed(up=True)
        await outbox.store(record("a"))
        await eventually(lambda: len(outbox.sent) == 1)
        for _ in range(3):
            outbox.link_changed(up=False)
            outbox.link_changed(up=True)
        await outbox.store(record("b"))
        await eventually(lambda: len(outbox.sent) == 2)
        assert outbox.payloads == [b"a", b"b"]

        outbox.sent[0][2](MessageSetAside(BusError("closed", remedy="-"), None))
        await eventually(lambda: [topic for topic, _, _ in outbox.sent if topic == "gaps"])
        assert outbox.status.lost == {"set-aside": 1}


async def test_records_that_waited_since_another_name_are_sent_under_the_present_one(
    path: Path, eventually: Eventually
) -> None:
    """No broker would take them under the former one; their numbers, and the records on disk, stay as they were."""
    old, present = Address("r", "hall", "a"), Address("r", "yard", "b")
    async with RecordingOutbox(path) as outbox:
        await outbox.store(*(Record("doors", old.topic(Channel.RESULT, "doors"), b"x") for _ in range(3)))
    for address in (present, old):  # and back, before the region has acknowledged anything
        async with RecordingOutbox(path, readdress=address.present) as outbox:
            outbox.link_changed(up=True)
            await eventually(lambda outbox=outbox: len(outbox.sent) == 3)
            assert {topic for topic, _, _ in outbox.sent} == {late(address.topic(Channel.RESULT, "doors"))}


def test_a_file_that_comes_from_another_machine_or_key_is_a_notice(path: Path) -> None:
    def changed(machine: str, identity: str) -> list[str]:
        opened = OutboxStore(path, max_bytes=1 << 20, runs_on=MachineAndKey(machine, identity))
        events = [detail["changed"] for kind, detail in opened.take_changes().events if kind == "outbox-moved"]
        assert events == ([opened.moved] if opened.moved else [])
        opened.close()
        return opened.moved

    assert changed("m1", "k1") == []
    assert changed("m1", "k1") == []
    assert changed("m2", "k1") == ["machine"]
    assert changed("m2", "") == []
    assert changed("m2", "k2") == ["key"]
