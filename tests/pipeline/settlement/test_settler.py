"""Where frames end: published, dead-lettered or dropped, counted once, acknowledged when it is safe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hedgerow.bus.message import Message
from hedgerow.bus.outbox import OutboxError, Record
from hedgerow.errors import BusError, FrameError
from hedgerow.pipeline.delivery import Delivery, Settlement
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import Tally

TOPIC = "results"


class Link:
    """A client that keeps what it is given; the test answers for the broker."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.outstanding_bytes = 0
        self.connected = True
        self.max_packet_bytes = 1000
        self.refuses: bytes | None = None
        self.sent: list[tuple[str, bytes, int, Any]] = []
        self.acked: list[Message] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, properties: bytes, done: Any) -> None:
        if payload == self.refuses:
            raise BusError("too large", remedy="less")
        self.sent.append((topic, payload, qos, done))

    def ack(self, message: Message) -> None:
        self.acked.append(message)

    @property
    def payloads(self) -> list[tuple[str, bytes]]:
        return [(topic, payload) for topic, payload, _, _ in self.sent]


class Store:
    """An outbox that is told by the test when something is safe."""

    max_record_bytes = 1 << 40

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.known: set[int] = set()

    def has_stored(self, origin: int) -> bool:
        return origin in self.known

    def append(self, records: Sequence[Record], origins: Sequence[int], done: Any) -> None:
        self.known.update(origins)
        self.waiting.append(done)


class Bench:
    """A settler between two links."""

    def __init__(self, *, qos: int = 1, outbox: Store | None = None) -> None:
        self.source, self.sink, self.tally = Link(), Link(), Tally()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.woken = 0
        self.built: Any = SimpleNamespace(
            name="doors",
            encoder=SimpleNamespace(topic=TOPIC, dead_topic="dead"),
            config=SimpleNamespace(publish=SimpleNamespace(qos=qos, priority=0, ttl_s=None)),
            bury=lambda delivery, error: Settlement(delivery, dead=encoded(b"letter"), reason=error.code),
        )
        self.settler = Settler(
            self.source,  # type: ignore[arg-type]
            self.sink,  # type: ignore[arg-type]
            self.tally,
            lambda kind, detail: self.events.append((kind, detail)),
            self._wake,
            outbox,  # type: ignore[arg-type]
        )

    def _wake(self) -> None:
        self.woken += 1

    def came(self, number: int = 1, *, qos: int = 1, sender_id: bool = False) -> Delivery:
        properties = b"\x26\x00\x02id\x00\x01%d" % number if sender_id else b""
        message = Message("in", b"frame", qos << 1, number if qos else 0, time.monotonic() - 1.0, properties)
        delivery = Delivery(message, "in", number, None)
        self.tally.received += 1
        self.tally.held.add(delivery)
        return delivery

    def settle(self, *settlements: Settlement) -> None:
        self.settler.settle(self.built, settlements)

    def publishes(self, delivery: Delivery, *payloads: bytes) -> None:
        self.settle(Settlement(delivery, results=[encoded(payload) for payload in payloads or [b"result"]]))

    @property
    def counts(self) -> tuple[int, dict[str, int], dict[str, int], int]:
        """Out, dropped, dead, in flight."""
        assert self.tally.balanced
        return self.tally.out, dict(self.tally.dropped), dict(self.tally.dead), self.tally.in_flight


def encoded(payload: bytes = b"result", properties: bytes = b"") -> Encoded:
    return Encoded(payload, properties, "")


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)


def test_a_frame_is_done_with_when_the_broker_has_accepted_its_last_result() -> None:
    bench = Bench()
    delivery = bench.came()
    bench.publishes(delivery, b"1", b"2")
    (*_, first), (*_, second) = bench.sink.sent

    assert bench.sink.payloads == [(TOPIC, b"1"), (TOPIC, b"2")]
    first(None)
    assert (bench.counts, bench.source.acked, bench.woken) == ((0, {}, {}, 1), [], 0)
    second(None)
    assert (bench.counts, bench.source.acked, bench.woken) == ((1, {}, {}, 0), [delivery.message], 1)
    assert (bench.tally.results, bench.tally.latency.quantile(1.0)) == (2, 1.0)


def test_an_answer_that_comes_twice_counts_once() -> None:
    bench = Bench()
    bench.publishes(bench.came(), b"1")
    done = bench.sink.sent[0][3]
    done(None)
    done(None)

    assert (bench.counts, bench.woken) == ((1, {}, {}, 0), 1)


def test_results_of_qos_0_are_done_with_once_they_are_sent() -> None:
    bench = Bench(qos=0)
    delivery = bench.came(qos=0)
    bench.publishes(delivery, b"1", b"2")

    assert [(qos, done) for _, _, qos, done in bench.sink.sent] == [(0, None), (0, None)]
    assert (bench.counts, bench.source.acked) == ((1, {}, {}, 0), []), "a frame of QoS 0 has no acknowledgement"
    assert bench.tally.results == 2


def test_results_of_qos_0_are_dropped_while_the_broker_is_away() -> None:
    bench = Bench(qos=0)
    bench.sink.connected = False
    bench.publishes(bench.came())
    assert (bench.counts, bench.sink.sent) == ((0, {"broker-away": 1}, {}, 0), [])

    bench = Bench(qos=1)
    bench.sink.connected = False
    bench.publishes(bench.came())
    assert (bench.counts, bench.sink.payloads) == ((0, {}, {}, 1), [(TOPIC, b"result")]), "with QoS 1 they wait"


@pytest.mark.parametrize(("room", "topic"), [(0, TOPIC), (-1, "dead")])
def test_a_result_of_qos_0_that_no_packet_can_hold_becomes_a_dead_letter(room: int, topic: str) -> None:
    """Topic, payload, properties, and at most sixteen bytes around them."""
    bench = Bench(qos=0)
    bench.sink.max_packet_bytes = len(TOPIC) + 100 + 10 + 16 + room
    bench.settle(Settlement(bench.came(qos=0), results=[encoded(), encoded(bytes(100), bytes(10))]))

    assert bench.sink.sent[0][0] == topic
    assert [kind for kind, _ in bench.events] == ["result-refused"] * (topic == "dead")


def test_a_result_that_is_refused_makes_its_frame_a_dead_letter_whatever_becomes_of_the_others() -> None:
    bench = Bench()
    bench.publishes(bench.came(), b"1", b"2", b"3")
    first, second, third = (done for *_, done in bench.sink.sent)

    first(None)
    second(ValueError("no quota"))
    third(None)
    third(ValueError("again"))
    assert bench.sink.payloads[3:] == [("dead", b"letter")]
    assert bench.events == [("result-refused", {"error": "no quota", "remedy": "Look at the broker's log."})]
    assert bench.counts == (0, {}, {}, 1), "until the dead letter is safe"
    bench.sink.sent[3][3](None)
    assert bench.counts == (0, {}, {BusError.code: 1}, 0)


def test_a_result_that_cannot_be_sent_at_all_makes_its_frame_a_dead_letter() -> None:
    bench = Bench()
    bench.sink.refuses = b"2"
    bench.publishes(bench.came(), b"1", b"2", b"3")
    first, letter = (done for *_, done in bench.sink.sent)

    assert bench.sink.payloads == [(TOPIC, b"1"), ("dead", b"letter")]
    assert bench.events == [("result-refused", {"error": "too large", "remedy": "less"})]
    first(None)
    first(ValueError("refused after all"))
    assert bench.counts == (0, {}, {}, 1), "what becomes of the other parts changes nothing"
    assert len(bench.sink.sent) == 2
    letter(None)
    assert bench.counts == (0, {}, {BusError.code: 1}, 0)


def test_while_the_links_are_being_closed_nothing_is_a_refusal() -> None:
    bench = Bench()
    bench.publishes(bench.came(1))
    bench.settle(Settlement(bench.came(2), dead=encoded(b"letter"), reason="bad"))
    bench.settler.closing = True
    for *_, done in bench.sink.sent:
        done(BusError("closed", remedy=""))

    assert (bench.counts, bench.events, len(bench.sink.sent)) == ((0, {}, {}, 2), [], 2)
    for *_, done in bench.sink.sent:
        done(None)
    assert bench.counts == (1, {}, {"bad": 1}, 0), "what the broker still accepts counts"


def test_a_dead_letter_counts_when_the_broker_has_it_and_its_frame_is_acknowledged() -> None:
    bench = Bench()
    delivery = bench.came()
    bench.settle(Settlement(delivery, dead=encoded(b"letter"), reason="bad-frame"))
    (topic, _, qos, done) = bench.sink.sent[0]

    assert (topic, qos, bench.counts, bench.source.acked) == ("dead", 1, (0, {}, {}, 1), [])
    done(None)
    done(None)
    assert (bench.counts, bench.source.acked) == ((0, {}, {"bad-frame": 1}, 0), [delivery.message])
    assert (bench.events, bench.woken) == ([], 1)


def test_a_dead_letter_that_is_refused_is_told_of_and_counts() -> None:
    bench = Bench()
    bench.settler.bury(bench.built, bench.came(), FrameError("torn", code="torn"))
    bench.sink.sent[0][3](BusError("not authorised", remedy=""))

    assert bench.counts == (0, {}, {"torn": 1}, 0)
    assert bench.events == [("dead-letter-refused", {"reason": "torn", "error": "not authorised"})]


@pytest.mark.parametrize("qos", [0, 1])
def test_with_the_broker_full_only_what_cannot_be_sent_again_is_dropped(qos: int) -> None:
    bench = Bench()
    bench.sink.outstanding = 2048
    delivery = bench.came(qos=qos)
    bench.settle(Settlement(delivery, dead=encoded(b"letter"), reason="bad"))

    assert bench.sink.payloads == ([("dead", b"letter")] if qos else [])
    assert bench.counts == ((0, {}, {}, 1) if qos else (0, {"broker-away": 1}, {}, 0))


def test_with_room_a_bad_frame_of_qos_0_has_a_dead_letter_too() -> None:
    bench = Bench()
    bench.settle(Settlement(bench.came(qos=0), dead=encoded(b"letter"), reason="bad"))

    assert bench.sink.payloads == [("dead", b"letter")]


def test_a_frame_that_is_dropped_is_acknowledged_and_counts_by_its_reason() -> None:
    bench = Bench()
    one, other = bench.came(1), bench.came(2)
    bench.settle(Settlement(one, dropped="too-dark"), Settlement(other))

    assert bench.counts == (0, {"too-dark": 1, "dropped": 1}, {}, 0)
    assert bench.source.acked == [one.message, other.message]


def test_what_was_given_up_is_not_settled_again_and_its_neighbours_are() -> None:
    bench = Bench()
    gone, here = bench.came(1), bench.came(2)
    bench.settler.drop(gone, "shutdown")
    bench.settle(Settlement(gone, dropped="late"), Settlement(here, dropped="late"))

    assert bench.counts == (0, {"shutdown": 1, "late": 1}, {}, 0)


def test_giving_up_leaves_durable_frames_to_the_broker() -> None:
    """Which sends them again to whoever comes next; those of QoS 0 are lost, and counted as lost."""
    bench = Bench(outbox=Store())
    bench.came(1)
    fleeting = bench.came(2, qos=0)
    bench.settler.give_up()

    assert bench.counts == (0, {"returned-to-broker": 1, "shutdown": 1}, {}, 0)
    assert bench.source.acked == [fleeting.message]


async def test_giving_up_ends_the_tries_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda _, *call: call_later(0, *call))
    bench = Bench(outbox=(outbox := Store()))
    bench.publishes(bench.came())
    outbox.waiting[0](OutboxError("disk full", remedy="", code="outbox-full"))
    bench.settler.give_up()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert len(outbox.waiting) == 1
    assert bench.counts == (0, {"returned-to-broker": 1}, {}, 0)


@pytest.mark.parametrize(
    ("outstanding", "in_bytes", "full"),
    [(0, 0, False), (2047, (64 << 20) - 1, False), (2048, 0, True), (0, 64 << 20, True)],
)
def test_it_is_full_with_so_many_results_or_so_many_bytes_that_the_broker_has_yet_to_accept(
    outstanding: int, in_bytes: int, full: bool
) -> None:
    for outbox in (None, Store()):
        bench = Bench(outbox=outbox)
        bench.sink.outstanding, bench.sink.outstanding_bytes = outstanding, in_bytes

        assert bench.settler.full is full


_AROUND = Record("doors", TOPIC, b"", b"", 0, 0.0, None).size


@pytest.mark.parametrize(
    ("payloads", "full"),
    [
        ([b""] * 2047, False),
        ([b""] * 2048, True),
        ([bytes((64 << 20) - _AROUND - 1)], False),
        ([bytes((64 << 20) - _AROUND)], True),
    ],
    ids=["2047", "2048", "a byte less than 64 MiB", "64 MiB"],
)
def test_it_is_full_with_as_much_that_the_outbox_has_yet_to_store(payloads: list[bytes], full: bool) -> None:
    bench = Bench(outbox=(outbox := Store()))
    bench.publishes(bench.came(), *payloads)

    assert bench.settler.full is full
    outbox.waiting[0](None)
    assert not bench.settler.full


def test_durable_results_are_safe_once_they_are_stored() -> None:
    bench = Bench(outbox=(outbox := Store()))
    assert not bench.settler.storing
    delivery = bench.came()
    bench.publishes(delivery, b"1")

    assert bench.settler.storing
    assert (bench.counts, bench.sink.sent, bench.source.acked) == ((0, {}, {}, 1), [], [])
    outbox.waiting[0](None)
    assert not bench.settler.storing
    assert (bench.counts, bench.woken, bench.source.acked) == ((1, {}, {}, 0), 1, [delivery.message])


def test_results_of_a_frame_that_was_given_up_meanwhile_do_not_count() -> None:
    bench = Bench(outbox=(outbox := Store()))
    gone, here = bench.came(1), bench.came(2)
    bench.settle(Settlement(gone, results=[encoded()]), Settlement(here, results=[encoded()]))
    bench.settler.drop(gone, "returned-to-broker")
    outbox.waiting[0](None)

    assert bench.counts == (1, {"returned-to-broker": 1}, {}, 0)


def test_a_frame_that_comes_again_though_its_results_are_stored_is_dropped() -> None:
    bench = Bench(outbox=Store())
    bench.publishes(bench.came(1, sender_id=True))
    bench.publishes(bench.came(1, sender_id=True))

    assert bench.counts == (0, {"duplicate": 1}, {}, 1)


def test_results_too_large_for_the_outbox_make_their_frame_a_dead_letter() -> None:
    outbox = Store()
    outbox.max_record_bytes = 10
    bench = Bench(outbox=outbox)
    bench.publishes(bench.came())

    assert bench.sink.payloads == [("dead", b"letter")]
    assert [kind for kind, _ in bench.events] == ["result-refused"]


@pytest.mark.parametrize("given_up", [False, True])
def test_a_frame_of_qos_0_is_dropped_once_where_its_results_cannot_be_stored(*, given_up: bool) -> None:
    bench = Bench(outbox=(outbox := Store()))
    delivery = bench.came(qos=0)
    bench.publishes(delivery)
    if given_up:
        bench.settler.drop(delivery, "shutdown")
    outbox.waiting[0](OutboxError("disk full", remedy="", code="outbox-full"))

    assert bench.counts == (0, {"shutdown" if given_up else "outbox": 1}, {}, 0)
