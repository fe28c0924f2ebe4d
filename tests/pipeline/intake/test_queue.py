"""The frame queue: loses and duplicates nothing, is bounded and fair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.examples import examples

from hedgerow.config import QueueSection
from hedgerow.pipeline.intake.queue import FrameQueue
from hedgerow.telemetry.tally import DropReason

NEVER = float("inf")
STREAMS = ("a", "b", "c", "t#a", "t#b", "t#c", "u#a")


@dataclass(eq=False)
class Item:
    stream: str
    number: int = 0
    size: int = 100
    expires_at: float = NEVER
    durable: bool = False


def queue(**limits: Any) -> FrameQueue[Item]:
    return FrameQueue(QueueSection(**limits))


def fill(waiting: FrameQueue[Item], *items: Item) -> list[tuple[Item, DropReason]]:
    return [shed for item in items for shed in waiting.put(item)]


def reasons(shed: list[tuple[Item, DropReason]]) -> dict[str, int]:
    return dict(Counter(str(reason) for _, reason in shed))


def test_with_latest_the_newest_frame_replaces_the_oldest_of_its_stream() -> None:
    waiting = queue(max_frames_per_stream=2)
    shed = fill(waiting, *(Item("a", number) for number in range(4)))

    assert [(item.number, reason) for item, reason in shed] == [(0, "superseded"), (1, "superseded")]
    assert [item.number for item in waiting.take(10, 0)[0]] == [2, 3]


@pytest.mark.parametrize(
    ("policy", "streams", "left", "why"),
    [
        ("latest", ["a"] * 6, [3, 4, 5], {"superseded": 3}),
        ("fifo", ["a"] * 6, [0, 1, 2], {"queue-full": 3}),
        ("latest", ["t#a", "t#b", "t#c", "t#d", "t#e", "t#a"], [1, 2, 5], {"queue-full": 2, "superseded": 1}),
        ("fifo", ["t#a", "t#b", "t#c", "t#d", "t#e", "t#a"], [0, 1, 2], {"queue-full": 3}),
    ],
)
def test_qos_1_frames_of_one_topic_above_their_limit_are_shed_and_counted(
    policy: str, streams: list[str], left: list[int], why: dict[str, int]
) -> None:
    waiting = queue(policy=policy, max_qos1_frames_per_topic=3)
    shed = fill(waiting, *(Item(stream, number, durable=True) for number, stream in enumerate(streams)))
    assert fill(waiting, *(Item("b", number, durable=True) for number in range(3))) == []

    assert reasons(shed) == why
    kept = [item for item in waiting.drain() if item.stream != "b"]
    assert sorted(item.number for item in kept) == left
    assert not waiting.has_ready
    assert (len(waiting), waiting.bytes) == (0, 0)


def test_the_largest_of_a_queue_is_a_stream_or_a_topic_that_names_its_streams() -> None:
    waiting = queue()
    assert waiting.largest() == (None, 0)
    fill(waiting, *(Item(f"t#{number}", durable=True) for number in range(4)), *(Item("a") for _ in range(3)))
    item, count = waiting.largest()
    assert item is not None
    assert item.stream.partition("#")[0] == "t"
    assert count == 4


def test_streams_that_a_topic_names_take_one_turn_together() -> None:
    """Nobody decides what a payload names: with a turn for each name, a sensor would leave none to others."""
    waiting = queue()
    fill(waiting, *(Item(f"thief#{number}") for number in range(1000)), Item("gate"), Item("door#a"), Item("door#b"))

    order = [item.stream for item in waiting.take(7, 0)[0]]
    assert order == ["thief#0", "gate", "door#a", "thief#1", "door#b", "thief#2", "thief#3"]
    assert waiting.ready == 996


def test_streams_that_a_topic_names_have_half_of_the_queue() -> None:
    waiting = queue(max_frames=100)
    shed = fill(waiting, *(Item(f"thief#{number}") for number in range(1000)))

    assert reasons(shed) == {"queue-full": 950}
    assert fill(waiting, *(Item("gate", number) for number in range(8)), *(Item("door#a") for _ in range(8))) == []


def test_a_stream_that_its_topic_names_gives_several_frames_to_a_list() -> None:
    waiting = queue()
    fill(waiting, *(Item("a#x", number) for number in range(3)), Item("a#y"))

    assert [(item.stream, item.number) for item in waiting.take(3, 0)[0]] == [("a#x", 0), ("a#y", 0), ("a#x", 1)]
    assert waiting.take(3, 0) == ([], [])
    waiting.release(["a#x", "a#y"])
    assert [item.number for item in waiting.take(3, 0)[0]] == [2]


def test_with_fifo_the_new_frame_is_shed() -> None:
    waiting = queue(policy="fifo", max_frames_per_stream=2)
    shed = fill(waiting, *(Item("a", number) for number in range(4)))

    assert [(item.number, reason) for item, reason in shed] == [(2, "queue-full"), (3, "queue-full")]
    assert [item.number for item in waiting.take(10, 0)[0]] == [0, 1]


def test_a_stream_can_replace_its_only_frame() -> None:
    """The queue has room for one frame only."""
    waiting = queue(max_frames=1)
    shed = fill(waiting, Item("a", 0), Item("a", 1))

    assert reasons(shed) == {"queue-full": 1}
    assert [item.number for item in waiting.take(10, 0)[0]] == [1]


def test_a_durable_frame_is_never_shed() -> None:
    """Receive Maximum bounds those."""
    waiting = queue(max_frames_per_stream=1, max_frames=2, max_bytes=1024)
    shed = fill(waiting, *(Item("a", number, size=1000, durable=True) for number in range(20)))

    assert shed == []
    assert reasons(waiting.put(Item("b"))) == {"queue-full": 1}, "durable frames count towards the limits"
    assert len(waiting) == 20


def test_a_frame_larger_than_the_queue_displaces_nothing() -> None:
    waiting = queue(max_bytes=1024)
    fill(waiting, Item("a"), Item("b"))

    assert reasons(waiting.put(Item("c", size=1025))) == {"queue-full": 1}
    assert len(waiting) == 2


def test_a_noisy_stream_gets_no_more_than_its_share_of_the_queue() -> None:
    waiting = queue(max_frames=20, max_frames_per_stream=100)
    shed = fill(waiting, *(Item("noisy", number) for number in range(100)), *(Item(f"quiet-{n}") for n in range(10)))
    fill(waiting, *(Item("noisy", number) for number in range(100, 200)))

    assert {item.stream for item, _ in shed} == {"noisy"}
    taken, _ = waiting.take(100, 0)
    assert Counter(item.stream for item in taken) == {"noisy": 10, **{f"quiet-{n}": 1 for n in range(10)}}
    assert [item.number for item in taken if item.stream == "noisy"] == list(range(190, 200))


def test_a_stream_of_large_frames_does_not_displace_small_ones() -> None:
    waiting = queue(max_bytes=10_000)
    fill(waiting, *(Item(f"small-{n}", size=100) for n in range(20)))
    shed = fill(waiting, *(Item("large", number, size=4_000) for number in range(10)))

    assert {item.stream for item, _ in shed} == {"large"}
    assert len(waiting) == 22


def test_a_noisy_stream_does_not_delay_the_others() -> None:
    """Streams take turns within a list, however many frames of one are queued."""
    waiting = queue(max_frames_per_stream=100)
    fill(waiting, *(Item("noisy", number) for number in range(50)), Item("quiet"))

    assert [item.stream for item in waiting.take(3, 0)[0]] == ["noisy", "quiet", "noisy"]


def test_a_busy_stream_waits_until_it_is_released() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0), Item("a", 1))
    assert [item.number for item in waiting.take(1, 0)[0]] == [0]

    assert waiting.take(1, 0) == ([], [])
    assert not waiting.has_ready
    waiting.release(["a"])
    assert [item.number for item in waiting.take(1, 0)[0]] == [1]


def test_an_expired_frame_is_shed_instead_of_taken() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=1.0), Item("a", 1, expires_at=9.0, durable=True))

    taken, expired = waiting.take(10, 5.0)
    assert [item.number for item in taken] == [1]
    assert [(item.number, reason) for item, reason in expired] == [(0, "expired")]


def test_frames_expire_while_nothing_is_taken() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=1.0), Item("a", 1, durable=True), Item("b", 2, expires_at=1.0))

    assert sorted(item.number for item, _ in waiting.expire(5.0)) == [0, 2]
    assert len(waiting) == 1
    assert waiting.bytes == 100
    assert [item.number for item in waiting.take(10, 5.0)[0]] == [1]
    assert not waiting.has_ready


def test_frames_expire_in_a_busy_stream() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0), Item("a", 1, expires_at=1.0))
    waiting.take(1, 0)

    assert [item.number for item, _ in waiting.expire(5.0)] == [1]
    assert (len(waiting), waiting.holds("a")) == (0, True)
    waiting.release(["a"])
    assert (waiting.holds("a"), waiting.has_ready) == (False, False)


def test_a_stream_without_frames_is_forgotten() -> None:
    """Thousands of streams with one frame each leave nothing behind."""
    waiting = queue(max_frames=10_000)
    fill(waiting, *(Item(f"stream-{n}") for n in range(5_000)))
    while waiting.has_ready:
        waiting.release(item.stream for item in waiting.take(64, 0)[0])

    assert waiting._streams == {}


def test_durable_frames_are_not_shed_for_a_frame_that_is_not_durable() -> None:
    waiting = queue(max_frames_per_stream=1)
    fill(waiting, Item("a", 0, durable=True))

    assert reasons(waiting.put(Item("a", 1))) == {"queue-full": 1}
    assert [item.number for item in waiting.take(10, 0)[0]] == [0]


def test_all_bytes_of_the_limit_can_be_used() -> None:
    waiting = queue(max_bytes=2000)

    assert fill(waiting, Item("a", size=1200), Item("b", size=800)) == []
    assert waiting.bytes == 2000
    assert [(item.stream, reason) for item, reason in waiting.put(Item("c", size=1))] == [("a", "queue-full")]
    assert queue(max_bytes=2000).put(Item("a", size=2000)) == []


def test_all_frames_of_the_limit_can_be_used() -> None:
    waiting = queue(max_frames=2)

    assert fill(waiting, Item("a"), Item("b")) == []
    assert [item.stream for item, _ in waiting.put(Item("c"))] == ["a"]


def test_of_two_equal_streams_the_other_one_sheds_for_the_new_frame() -> None:
    waiting = queue(max_frames=1)
    fill(waiting, Item("b", 0))
    waiting.take(1, 0)
    fill(waiting, Item("a", 1))

    assert [item.number for item, _ in waiting.put(Item("b", 2))] == [1]
    assert [item.number for item in waiting.drain()] == [2]


def test_if_the_largest_stream_has_nothing_to_shed_the_next_largest_does() -> None:
    waiting = queue(max_frames=6)
    fill(waiting, Item("small"), *(Item("durable", durable=True) for _ in range(3)), Item("big"), Item("big"))

    assert [item.stream for item, _ in waiting.put(Item("new"))] == ["big"]


def test_the_largest_stream_displaces_no_frames_of_others() -> None:
    waiting = queue(max_frames=4)
    fill(waiting, *(Item("big", number, durable=True) for number in range(3)), Item("small"))

    assert [item.number for item, _ in waiting.put(Item("big", 3))] == [3]


def test_the_new_frame_counts_towards_its_stream() -> None:
    waiting = queue(max_frames=2)
    fill(waiting, Item("a", 0), Item("b", 1))

    assert [item.number for item, _ in waiting.put(Item("b", 2))] == [1]


def test_at_the_frame_limit_the_stream_with_the_most_frames_sheds() -> None:
    waiting = queue(max_frames=3, max_bytes=3000)
    fill(waiting, Item("many", size=100), Item("many", size=100), Item("large", size=1800))

    assert [item.stream for item, _ in waiting.put(Item("new", size=1000))] == ["many"]


def test_at_the_byte_limit_the_stream_with_the_most_bytes_sheds() -> None:
    waiting = queue(max_bytes=4000)
    fill(waiting, *(Item("many", size=100) for _ in range(5)), Item("large", size=3000))

    assert [item.stream for item, _ in waiting.put(Item("new", size=1000))] == ["large"]
    waiting = queue(max_bytes=4000)
    fill(waiting, Item("other", size=2000), Item("own", size=1500))
    assert [item.stream for item, _ in waiting.put(Item("own", size=1000))] == ["own"], (
        "the new frame counts towards its stream"
    )


def test_no_more_items_are_taken_than_the_limit() -> None:
    waiting = queue()
    fill(waiting, Item("a"), Item("b"), Item("c"))
    assert waiting.ready == 3

    assert [item.stream for item in waiting.take(2, 0)[0]] == ["a", "b"]
    assert waiting.ready == 1


def test_a_frame_expires_after_its_expiry_time_and_not_at_it() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=4.9), Item("b", 1, expires_at=5.0))
    taken, expired = waiting.take(10, 5.0)
    assert ([item.number for item in taken], [item.number for item, _ in expired]) == ([1], [0])

    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=5.0), Item("b", 1, expires_at=4.9), Item("b", 2, expires_at=5.0))
    assert [item.number for item, _ in waiting.expire(5.0)] == [1]
    assert [item.number for item in waiting.drain()] == [0, 2]


def test_streams_that_are_not_busy_can_be_released() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0), Item("b"), Item("a", 1))
    waiting.take(1, 0)
    waiting.release(["unknown", "b", "a"])

    assert [item.stream for item in waiting.take(10, 0)[0]] == ["b", "a"]


def test_a_stream_is_held_while_queued_or_busy() -> None:
    waiting = queue()
    assert not waiting.holds("a")
    fill(waiting, Item("a"))
    assert waiting.holds("a")
    waiting.take(1, 0)
    assert waiting.holds("a")
    waiting.release(["a"])
    assert not waiting.holds("a")


class Untraversed(dict[Any, Any]):
    """A dict that may be read and written by key, but not gone through."""

    def __iter__(self) -> Any:
        raise AssertionError("went through all streams")

    keys = values = items = __iter__


def test_a_frame_costs_the_same_however_many_streams_there_are() -> None:
    """Nothing goes through all streams, or turns the ring, for a frame or a list."""
    waiting = queue(max_frames=50, max_frames_per_stream=4)
    names = [f"s{number}" for number in range(100)] + [f"t#{number}" for number in range(100)]
    fill(waiting, *(Item(name) for name in names))  # finds who has most, once
    waiting._streams = Untraversed(waiting._streams)

    for turn in range(3):
        shed = fill(waiting, *(Item(name, turn) for name in names))
        taken, _ = waiting.take(20, 0)
        waiting.release([item.stream for item in taken])
        assert shed
        assert len(taken) == 20


class EverythingIsAccountedFor(RuleBasedStateMachine):
    """Compared with a model: a list of what was put and has not left."""

    @initialize(
        policy=st.sampled_from(["latest", "fifo"]),
        per_stream=st.integers(1, 4),
        frames=st.integers(1, 10),
        size=st.integers(1024, 4096),
    )
    def create(self, policy: str, per_stream: int, frames: int, size: int) -> None:
        self.limits = QueueSection(policy=policy, max_frames_per_stream=per_stream, max_frames=frames, max_bytes=size)
        self.queue: FrameQueue[Item] = FrameQueue(self.limits)
        self.queued: list[Item] = []
        self.busy: set[str] = set()
        self.number = 0
        self.now = 0.0

    @rule(stream=st.sampled_from(STREAMS), size=st.integers(0, 5000), ttl=st.integers(0, 20), durable=st.booleans())
    def put(self, stream: str, size: int, ttl: int, durable: bool) -> None:
        item = Item(stream, self.number, size, self.now + ttl, durable)
        self.number += 1
        self.queued.append(item)
        for shed, reason in self.queue.put(item):
            assert not shed.durable
            assert reason in (DropReason.QUEUE_FULL, DropReason.SUPERSEDED)
            assert reason is not DropReason.SUPERSEDED or (shed.stream == stream and self.limits.policy == "latest")
            self.queued.remove(shed)

    @rule(limit=st.integers(1, 8))
    def take(self, limit: int) -> None:
        available = {item.stream for item in self.queued if item.expires_at >= self.now} - self.busy
        taken, expired = self.queue.take(limit, self.now)
        assert len(taken) <= limit
        assert bool(taken) == bool(available), "frames of streams that are not busy can be taken"
        for item in taken:
            assert item.stream not in self.busy, "a busy stream is not taken"
            assert item.expires_at >= self.now
        for item, reason in expired:
            assert item.expires_at < self.now
            assert reason is DropReason.EXPIRED
            self.queued.remove(item)
        for item in taken:
            first = next(waiting for waiting in self.queued if waiting.stream == item.stream)
            assert item is first, "a stream's frames leave in order"
            self.queued.remove(item)
        self.busy |= {item.stream for item in taken}

    @rule(streams=st.sets(st.sampled_from(STREAMS)))
    def release(self, streams: set[str]) -> None:
        self.queue.release(streams)
        self.busy -= streams

    @rule(seconds=st.integers(0, 15))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        for item, reason in self.queue.expire(self.now):
            assert item.expires_at < self.now
            assert reason is DropReason.EXPIRED
            self.queued.remove(item)
        assert all(item.expires_at >= self.now for item in self.queued)

    @rule()
    def drain(self) -> None:
        assert {item.number for item in self.queue.drain()} == {item.number for item in self.queued}
        self.queued.clear()

    @invariant()
    def counts_are_correct(self) -> None:
        assert len(self.queue) == len(self.queued)
        assert self.queue.bytes == sum(item.size for item in self.queued)
        assert self.queue.has_ready == any(item.stream not in self.busy for item in self.queued)
        streams = self.queue._streams
        assert all(stream.bytes == sum(item.size for item in stream.items) for stream in streams.values())
        idle = {name: stream for name, stream in streams.items() if not stream.busy}
        assert all(stream.items and stream.listed for stream in idle.values())
        behind = [name for namer in self.queue._namers.values() for name in namer.behind]
        assert sorted([*self.queue._ready, *behind]) == sorted(idle)
        assert {name for name, stream in streams.items() if stream.busy} == self.busy & streams.keys()

    @invariant()
    def limits_hold_without_durable_frames(self) -> None:
        durable = [item for item in self.queued if item.durable]
        if not durable:
            assert len(self.queued) <= self.limits.max_frames
            assert self.queue.bytes <= self.limits.max_bytes
            for stream, count in Counter(item.stream for item in self.queued).items():
                assert count <= self.limits.max_frames_per_stream, stream

    @invariant()
    def what_may_be_shed_is_counted(self) -> None:
        for name, stream in self.queue._streams.items():
            assert stream.sheddable == sum(not item.durable for item in stream.items)
            assert stream.namer is None or (name in stream.namer.sheddable) == bool(stream.sheddable)


TestEverythingIsAccountedFor = EverythingIsAccountedFor.TestCase
TestEverythingIsAccountedFor.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)


def ten_ms_each(items: int) -> float:
    return items * 0.010


def test_no_more_is_taken_than_can_finish_in_time() -> None:
    """Of five frames of 10 ms each, three fit into 35 ms; the others wait for the next list."""
    waiting = queue()
    fill(waiting, *(Item(f"s{number}", number, expires_at=0.035) for number in range(5)))

    taken, late = waiting.take(10, 0.0, ten_ms_each)

    assert [item.number for item in taken] == [0, 1, 2]
    assert (late, len(waiting)) == ([], 2)
    assert [item.number for item in waiting.take(10, 0.010, ten_ms_each)[0]] == [3, 4]


def test_a_frame_that_would_be_late_even_alone_is_shed_as_late() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=0.005), Item("b", 1, expires_at=0.050))

    taken, shed = waiting.take(10, 0.0, ten_ms_each)

    assert [item.number for item in taken] == [1]
    assert [(item.number, reason) for item, reason in shed] == [(0, DropReason.LATE)]


def test_a_frame_that_finishes_exactly_in_time_is_taken() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=5.0), Item("b", 1, expires_at=5.5), Item("c", 2, expires_at=6.0))

    taken, shed = waiting.take(10, 5.0, lambda items: items * 0.5)

    assert [item.number for item in taken] == [1, 2]
    assert [(item.number, reason) for item, reason in shed] == [(0, DropReason.LATE)]


def test_a_frame_that_would_be_late_alone_is_shed_even_if_others_were_taken() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=9.0), Item("b", 1, expires_at=5.4), Item("c", 2, expires_at=9.0))

    taken, shed = waiting.take(10, 5.0, lambda items: items * 0.5)

    assert [item.number for item in taken] == [0, 2]
    assert [(item.number, reason) for item, reason in shed] == [(1, DropReason.LATE)]


def test_a_frame_that_is_in_time_only_alone_waits_for_the_next_list() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=9.0), Item("b", 1, expires_at=5.5), Item("c", 2, expires_at=9.0))

    taken, shed = waiting.take(10, 5.0, lambda items: items * 0.5)

    assert ([item.number for item in taken], shed) == ([0], [])
    assert (len(waiting), waiting.bytes) == (2, 200)
    fill(waiting, Item("b", 3, expires_at=9.0))
    assert waiting.ready == 2, "each stream is ready once"
    assert [item.number for item in waiting.take(10, 5.0, lambda items: items * 0.5)[0]] == [1, 2, 3]


def test_a_postponed_frame_keeps_its_place_in_its_stream() -> None:
    waiting = queue()
    fill(waiting, Item("a", 0, expires_at=0.011), Item("a", 1, expires_at=0.015), Item("b", 2, expires_at=1.0))

    taken, _ = waiting.take(10, 0.0, ten_ms_each)
    waiting.release({item.stream for item in taken})
    again, late = waiting.take(10, 0.004, ten_ms_each)

    assert [item.number for item in taken] == [0, 2]
    assert [item.number for item in again] == [1]
    assert late == []
