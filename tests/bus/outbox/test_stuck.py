"""Records that no bridge carries: they are not sent for ever, and delay no other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest

from hedgerow.bus.outbox import Number, Outbox, Record, read_gap
from hedgerow.bus.outbox.epochs import KeyAck
from hedgerow.bus.outbox.ledger import Ranges
from hedgerow.bus.outbox.overtaken import OvertakenRecords
from hedgerow.bus.outbox.records import PRIORITIES, Ack, OutboxEntry, key_of
from hedgerow.bus.outbox.window import SendWindow
from hedgerow.bus.properties import PublishProperties


def key_ack(*numbers: Any) -> KeyAck:
    """Return an acknowledgement of an epoch that is the file's first, by numbers only."""
    return KeyAck(Ack("e", *numbers).ranges(), None, beyond=False)


class Path:
    """A window, a store, and a path to the region that does not carry some of the records."""

    def __init__(self, blocked: set[int], max_entries: int = 8) -> None:
        self.blocked = blocked
        self.window = SendWindow(max_entries, 10_000, 0.5)
        self.window.reset([key_of(p, 1) for p in range(PRIORITIES)], [key_of(p, 1) for p in range(PRIORITIES)])
        self.stored: dict[int, OutboxEntry] = {}
        self.received = Ranges()
        self.sent: list[tuple[float, int]] = []
        self.sequence = 0
        self.now = 0.0

    def second(self, new: int = 1) -> None:
        """Let a second pass, in which some records are stored, and the region acknowledges what it has received."""
        self.now += 1
        entries = [self._entry() for _ in range(new)]
        self.window.appended(
            entries, [key_of(0, self.sequence + 1), *(key_of(p, 1) for p in range(1, PRIORITIES))], up=True
        )
        self.window.probe(self.now)
        while self._send():
            ranges = self.received.all()
            self.window.acked(key_ack({}, {0: ranges}), self.now)
            self.stored = {key: entry for key, entry in self.stored.items() if key not in self.received_keys()}

    def received_keys(self) -> set[int]:
        return {key for first, last in self.received.all() for key in range(first, last + 1)}

    def _entry(self) -> OutboxEntry:
        self.sequence += 1
        key = key_of(0, self.sequence)
        entry = self.stored[key] = OutboxEntry(key, key, "t", b"", b"x")
        return entry

    def _send(self) -> bool:
        sent, request = self.window.next(self.now)
        if request is not None:
            found = [self.stored[key] for key in sorted(self.stored) if request.start <= key < request.end]
            sent = sent + self.window.offer(request, found[: request.limit], self.now)
        for entry in sent:
            self.sent.append((self.now, entry.key))
            if entry.key not in self.blocked:
                self.received.add(entry.key, entry.key)
        return bool(sent) or request is not None


def test_a_record_that_no_bridge_carries_is_sent_at_growing_intervals() -> None:
    path = Path({1})
    for _ in range(600):
        path.second()

    times = [now for now, key in path.sent if key == 1]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) < 15
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 128
    assert path.stored.keys() == {1}
    assert path.window.stuck == 1


def test_more_of_them_than_the_window_holds_do_not_block_the_others() -> None:
    path = Path(set(range(1, 41)), max_entries=8)
    for _ in range(400):
        path.second()

    assert path.stored.keys() == path.blocked
    assert path.window.stuck == 40


def test_a_record_that_is_carried_after_all_is_no_longer_stuck() -> None:
    path = Path({1})
    for _ in range(20):
        path.second()
    assert path.window.stuck == 1
    path.blocked.clear()
    path.window.link_up(path.now)  # the bridge was changed, and the broker restarted
    path.second()

    assert path.stored == {}
    assert path.window.stuck == 0


def test_after_a_day_it_is_given_up_once() -> None:
    path = Path({1})
    for _ in range(20):
        path.second()

    assert path.window.hopeless(path.now + 86_300) == []
    assert path.window.hopeless(path.now + 86_400) == [1]
    assert path.window.hopeless(path.now + 86_400) == []


def test_a_gap_in_its_place_is_sent_at_once() -> None:
    path = Path({1})
    for _ in range(20):
        path.second()
    path.blocked.clear()
    path.window.discard([1])
    path.window.rewind(1)
    path.second(new=0)

    assert path.stored == {}


def test_two_losses_in_a_row_are_not_held_back() -> None:
    """Such as those of a broker that is restarted."""
    records = OvertakenRecords()

    assert [records.add(1, 0.0) for _ in range(3)] == [False, False, True]
    assert records.stuck == 1


def test_the_number_of_records_that_are_tracked_is_bounded() -> None:
    records = OvertakenRecords()
    for key in range(20_000):
        for _ in range(3):
            records.add(key, 0.0)

    assert records.stuck == len(records.held()) == 10_000
    records.remove([(0, 9_998)])
    assert records.held() == [9_999]


async def test_the_outbox_reports_it_and_in_the_end_declares_it_lost(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    monkeypatch.setattr("hedgerow.bus.outbox.outbox._TICK_S", 0.01)
    monkeypatch.setattr("hedgerow.bus.outbox.overtaken._FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("hedgerow.bus.outbox.overtaken._GIVE_UP_AFTER_S", 0.5)
    events: dict[str, dict[str, Any]] = {}
    gaps: list[bytes] = []
    received = Ranges()

    def publish(topic: str, payload: Any, *, qos: int, properties: bytes, done: Callable[[Any], None]) -> None:
        loop.call_soon(done, None)
        if topic == "gap":
            gaps.append(bytes(payload))
        elif payload != b"large":  # which the bridge does not carry
            number = PublishProperties(properties).user_properties[0][1]
            received.add(Number.parse(number).sequence, Number.parse(number).sequence)
            loop.call_soon(lambda: outbox.acknowledge(Ack(outbox.epoch, {}, {0: received.all()})))

    loop = asyncio.get_running_loop()
    outbox = Outbox(
        tmp_path / "outbox.db", gap_topic="gap", late=lambda topic: topic, publish=publish, on_event=events.__setitem__
    )
    async with outbox:
        outbox.link_changed(up=True)
        outbox.append([Record("p", "t", b"large")], [], lambda _: None)

        def one_more() -> bool:
            outbox.append([Record("p", "t", b"small")], [], lambda _: None)
            return outbox.status.stuck == 1

        await eventually(one_more)
        await eventually(lambda: "outbox-stuck" in events)
        await eventually(lambda: gaps)
        await eventually(lambda: "outbox-lost" in events)

    assert events["outbox-stuck"]["results"] == 1
    assert events["outbox-lost"] == {"not-carried": 1}
    assert read_gap(gaps[0])[1].reasons == {"not-carried": 1}
