"""The settler: publishes, dead-letters or drops each frame, counts it once and acknowledges it when that is safe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from hedgerow.bus.message import Message
from hedgerow.bus.outbox import OutboxError, Record
from hedgerow.errors import BusError, FrameError
from hedgerow.pipeline.delivery import BatchSettlement, Delivery, Settlement
from hedgerow.pipeline.result_encoder import Encoded
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.telemetry.tally import Tally

TOPIC = "results"


class FakeLink:
    """Records what is published; the test plays the broker."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.outstanding_bytes = 0
        self.connected = True
        self.max_packet_bytes = 1000
        self.refuses: bytes | None = None
        self.sent: list[tuple[str, bytes, int, Any]] = []
        self.writes: list[int] = []
        self.acked: list[Message] = []

    def publish(self, topic: str, payload: bytes, *, qos: int, properties: bytes, done: Any) -> None:
        if payload == self.refuses:
            raise BusError("too large", remedy="less")
        self.sent.append((topic, payload, qos, done))

    def publish_all(self, topic: str, messages: Sequence[tuple[bytes, bytes]]) -> None:
        if any(payload == self.refuses for payload, _ in messages):
            raise BusError("too large", remedy="less")
        self.writes.append(len(messages))
        self.sent += [(topic, payload, 0, None) for payload, _ in messages]

    def ack(self, message: Message) -> None:
        self.acked.append(message)

    @property
    def payloads(self) -> list[tuple[str, bytes]]:
        return [(topic, payload) for topic, payload, _, _ in self.sent]


class FakeOutbox:
    """An outbox whose appends the test completes."""

    max_record_bytes = 1 << 40
    max_packet_bytes: int | None = None

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.stored: set[int] = set()

    def has_stored(self, origin: int) -> bool:
        return origin in self.stored

    def append(self, records: Sequence[Record], origins: Sequence[int], done: Any) -> None:
        self.stored.update(origins)
        self.waiting.append(done)


class Bench:
    """A settler between two links."""

    def __init__(self, *, qos: int = 1, outbox: FakeOutbox | None = None) -> None:
        self.source, self.sink, self.tally = FakeLink(), FakeLink(), Tally()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.wakes = 0
        self.outbox = outbox
        self.built: Any = SimpleNamespace(
            name="doors",
            encoder=SimpleNamespace(topic=TOPIC, dead_topic="dead"),
            config=SimpleNamespace(publish=SimpleNamespace(qos=qos, priority=0, ttl_s=None)),
            dead_letter=lambda delivery, error: Settlement(delivery, dead=encoded(b"letter"), reason=error.code),
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
        self.wakes += 1

    def receive(self, number: int = 1, *, qos: int = 1, sender_id: bool = False) -> Delivery:
        properties = b"\x26\x00\x02id\x00\x01%d" % number if sender_id else b""
        message = Message("in", b"frame", qos << 1, number if qos else 0, time.monotonic() - 1.0, properties)
        delivery = Delivery(message, "in", number, None)
        self.tally.received += 1
        self.tally.held.add(delivery)
        return delivery

    def settle(self, *settlements: Settlement) -> None:
        self.settler.settle(self.built, settlements)

    def publish_results(self, delivery: Delivery, *payloads: bytes) -> None:
        self.settle(Settlement(delivery, results=[encoded(payload) for payload in payloads or [b"result"]]))

    @property
    def counts(self) -> tuple[int, dict[str, int], dict[str, int], int]:
        """Out, dropped, dead, in flight."""
        assert self.tally.balanced
        return self.tally.out, dict(self.tally.dropped), dict(self.tally.dead), self.tally.in_flight


def encoded(payload: bytes = b"result", properties: bytes = b"") -> Encoded:
    return Encoded(payload, properties, "")


@pytest.fixture(autouse=True)
def _frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)


def test_a_frame_is_acknowledged_when_the_broker_has_accepted_its_last_result() -> None:
    bench = Bench()
    delivery = bench.receive()
    bench.publish_results(delivery, b"1", b"2")
    (*_, first), (*_, second) = bench.sink.sent

    assert bench.sink.payloads == [(TOPIC, b"1"), (TOPIC, b"2")]
    first(None)
    assert (bench.counts, bench.source.acked, bench.wakes) == ((0, {}, {}, 1), [], 0)
    second(None)
    assert (bench.counts, bench.source.acked, bench.wakes) == ((1, {}, {}, 0), [delivery.message], 1)
    assert (bench.tally.results, bench.tally.latency.quantile(1.0)) == (2, 1.0)


def _as_usual(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    pass


def _disconnected(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    bench.sink.connected = False


def _one_dropped_meanwhile(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    bench.settler.drop(deliveries[1], "shutdown")


def _one_too_large_for_the_broker(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    bench.sink.max_packet_bytes = len(TOPIC) + len(b"result 10") + 16 - 1


def _one_too_large_for_mqtt(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    bench.sink.refuses = b"result 2"


def _full(bench: Bench, deliveries: Sequence[Delivery]) -> None:
    bench.sink.outstanding = 2048


@pytest.mark.parametrize("outbox", [False, True])
@pytest.mark.parametrize("frames_qos", [0, 1])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(
    "happens",
    [_as_usual, _disconnected, _one_dropped_meanwhile, _one_too_large_for_the_broker, _one_too_large_for_mqtt, _full],
)
def test_a_batch_is_settled_as_its_deliveries_one_by_one(
    happens: Callable[[Bench, Sequence[Delivery]], None], qos: int, frames_qos: int, outbox: bool
) -> None:
    benches = [Bench(qos=qos, outbox=FakeOutbox() if outbox else None) for _ in range(2)]
    told = []
    for number, bench in enumerate(benches):
        deliveries = [bench.receive(number + 1, qos=frames_qos, sender_id=True) for number in range(3)]
        happens(bench, deliveries)
        batch = BatchSettlement(deliveries, [encoded(b"result %d" % (2 if n == 1 else 10)) for n in range(3)])
        if number:
            bench.settler.settle_batch(bench.built, batch)
        else:
            bench.settle(*batch.each())
        for done in [] if bench.outbox is None else bench.outbox.waiting:
            done(None)
        for *_, done in bench.sink.sent:
            if done is not None:
                done(None)
        acked = [
            deliveries.index(next(each for each in deliveries if each.message is one)) for one in bench.source.acked
        ]
        latency = bench.tally.latency
        told.append(
            (
                bench.counts,
                bench.sink.payloads,
                bench.events,
                acked,
                bench.tally.results,
                latency.counts,
                latency.total_s,
            )
        )

    assert told[0] == told[1]
    at_once = not outbox and qos == 0 and happens in (_as_usual, _full)
    assert benches[1].sink.writes == ([3] if at_once else [])


def test_a_duplicate_acknowledgement_counts_once() -> None:
    bench = Bench()
    bench.publish_results(bench.receive(), b"1")
    done = bench.sink.sent[0][3]
    done(None)
    done(None)

    assert (bench.counts, bench.wakes) == ((1, {}, {}, 0), 1)


def test_a_frame_with_qos_0_results_is_settled_once_they_are_sent() -> None:
    bench = Bench(qos=0)
    delivery = bench.receive(qos=0)
    bench.publish_results(delivery, b"1", b"2")

    assert [(qos, done) for _, _, qos, done in bench.sink.sent] == [(0, None), (0, None)]
    assert (bench.counts, bench.source.acked) == ((1, {}, {}, 0), []), "QoS 0 frames are not acknowledged"
    assert bench.tally.results == 2


def test_qos_0_results_are_dropped_while_the_broker_is_disconnected() -> None:
    bench = Bench(qos=0)
    bench.sink.connected = False
    bench.publish_results(bench.receive())
    assert (bench.counts, bench.sink.sent) == ((0, {"broker-away": 1}, {}, 0), [])

    bench = Bench(qos=1)
    bench.sink.connected = False
    bench.publish_results(bench.receive())
    assert (bench.counts, bench.sink.payloads) == ((0, {}, {}, 1), [(TOPIC, b"result")]), "QoS 1 results wait"


@pytest.mark.parametrize(("room", "topic"), [(0, TOPIC), (-1, "dead")])
def test_a_qos_0_result_larger_than_the_maximum_packet_is_dead_lettered(room: int, topic: str) -> None:
    """A packet has topic, payload, properties, and at most 16 bytes more."""
    bench = Bench(qos=0)
    bench.sink.max_packet_bytes = len(TOPIC) + 100 + 10 + 16 + room
    bench.settle(Settlement(bench.receive(qos=0), results=[encoded(), encoded(bytes(100), bytes(10))]))

    assert bench.sink.sent[0][0] == topic
    assert [kind for kind, _ in bench.events] == ["result-refused"] * (topic == "dead")


def test_one_refused_result_dead_letters_its_frame_whatever_happens_to_the_others() -> None:
    bench = Bench()
    bench.publish_results(bench.receive(), b"1", b"2", b"3")
    first, second, third = (done for *_, done in bench.sink.sent)

    first(None)
    second(ValueError("no quota"))
    third(None)
    third(ValueError("again"))
    assert bench.sink.payloads[3:] == [("dead", b"letter")]
    assert bench.events == [("result-refused", {"error": "no quota", "remedy": "Check the broker's log."})]
    assert bench.counts == (0, {}, {}, 1), "in flight until the dead letter is accepted"
    bench.sink.sent[3][3](None)
    assert bench.counts == (0, {}, {BusError.code: 1}, 0)


def test_a_result_that_cannot_be_sent_dead_letters_its_frame() -> None:
    bench = Bench()
    bench.sink.refuses = b"2"
    bench.publish_results(bench.receive(), b"1", b"2", b"3")
    first, letter = (done for *_, done in bench.sink.sent)

    assert bench.sink.payloads == [(TOPIC, b"1"), ("dead", b"letter")]
    assert bench.events == [("result-refused", {"error": "too large", "remedy": "less"})]
    first(None)
    first(ValueError("refused after all"))
    assert bench.counts == (0, {}, {}, 1), "the other results change nothing"
    assert len(bench.sink.sent) == 2
    letter(None)
    assert bench.counts == (0, {}, {BusError.code: 1}, 0)


def test_failed_publishes_are_not_reported_as_refused_while_the_links_close() -> None:
    bench = Bench()
    bench.publish_results(bench.receive(1))
    bench.settle(Settlement(bench.receive(2), dead=encoded(b"letter"), reason="bad"))
    bench.settler.closing = True
    for *_, done in bench.sink.sent:
        done(BusError("closed", remedy=""))

    assert (bench.counts, bench.events, len(bench.sink.sent)) == ((0, {}, {}, 2), [], 2)
    for *_, done in bench.sink.sent:
        done(None)
    assert bench.counts == (1, {}, {"bad": 1}, 0), "results still accepted while closing are counted"


def test_a_dead_letter_is_counted_and_its_frame_acknowledged_when_the_broker_accepts_it() -> None:
    bench = Bench()
    delivery = bench.receive()
    bench.settle(Settlement(delivery, dead=encoded(b"letter"), reason="bad-frame"))
    (topic, _, qos, done) = bench.sink.sent[0]

    assert (topic, qos, bench.counts, bench.source.acked) == ("dead", 1, (0, {}, {}, 1), [])
    done(None)
    done(None)
    assert (bench.counts, bench.source.acked) == ((0, {}, {"bad-frame": 1}, 0), [delivery.message])
    assert (bench.events, bench.wakes) == ([], 1)


def test_a_refused_dead_letter_is_reported_and_counted() -> None:
    bench = Bench()
    bench.settler.dead_letter(bench.built, bench.receive(), FrameError("torn", code="torn"))
    bench.sink.sent[0][3](BusError("not authorised", remedy=""))

    assert bench.counts == (0, {}, {"torn": 1}, 0)
    assert bench.events == [("dead-letter-refused", {"reason": "torn", "error": "not authorised"})]


@pytest.mark.parametrize("qos", [0, 1])
def test_when_full_only_bad_qos_0_frames_are_dropped(qos: int) -> None:
    bench = Bench()
    bench.sink.outstanding = 2048
    delivery = bench.receive(qos=qos)
    bench.settle(Settlement(delivery, dead=encoded(b"letter"), reason="bad"))

    assert bench.sink.payloads == ([("dead", b"letter")] if qos else [])
    assert bench.counts == ((0, {}, {}, 1) if qos else (0, {"broker-away": 1}, {}, 0))


def test_a_bad_qos_0_frame_is_dead_lettered_when_not_full() -> None:
    bench = Bench()
    bench.settle(Settlement(bench.receive(qos=0), dead=encoded(b"letter"), reason="bad"))

    assert bench.sink.payloads == [("dead", b"letter")]


def test_a_dropped_frame_is_acknowledged_and_counted_by_its_reason() -> None:
    bench = Bench()
    one, other = bench.receive(1), bench.receive(2)
    bench.settle(Settlement(one, dropped="too-dark"), Settlement(other))

    assert bench.counts == (0, {"too-dark": 1, "dropped": 1}, {}, 0)
    assert bench.source.acked == [one.message, other.message]


def test_a_frame_dropped_at_shutdown_is_not_settled_again() -> None:
    bench = Bench()
    dropped, other = bench.receive(1), bench.receive(2)
    bench.settler.drop(dropped, "shutdown")
    bench.settle(Settlement(dropped, dropped="late"), Settlement(other, dropped="late"))

    assert bench.counts == (0, {"shutdown": 1, "late": 1}, {}, 0)


def test_dropping_held_frames_returns_durable_ones_to_the_broker() -> None:
    """It redelivers them; QoS 0 frames are lost and counted as such."""
    bench = Bench(outbox=FakeOutbox())
    bench.receive(1)
    qos0 = bench.receive(2, qos=0)
    bench.settler.drop_held()

    assert bench.counts == (0, {"returned-to-broker": 1, "shutdown": 1}, {}, 0)
    assert bench.source.acked == [qos0.message]


async def test_dropping_held_frames_ends_retries_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda _, *call: call_later(0, *call))
    bench = Bench(outbox=(outbox := FakeOutbox()))
    bench.publish_results(bench.receive())
    outbox.waiting[0](OutboxError("disk full", remedy="", code="outbox-full"))
    bench.settler.drop_held()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert len(outbox.waiting) == 1
    assert bench.counts == (0, {"returned-to-broker": 1}, {}, 0)


@pytest.mark.parametrize(
    ("outstanding", "in_bytes", "full"),
    [(0, 0, False), (2047, (64 << 20) - 1, False), (2048, 0, True), (0, 64 << 20, True)],
)
def test_it_is_full_at_the_limit_of_results_or_bytes_not_yet_accepted_by_the_broker(
    outstanding: int, in_bytes: int, full: bool
) -> None:
    for outbox in (None, FakeOutbox()):
        bench = Bench(outbox=outbox)
        bench.sink.outstanding, bench.sink.outstanding_bytes = outstanding, in_bytes

        assert bench.settler.full is full


_OVERHEAD = Record("doors", TOPIC, b"", b"", 0, 0.0, None).size


@pytest.mark.parametrize(
    ("payloads", "full"),
    [
        ([b""] * 2047, False),
        ([b""] * 2048, True),
        ([bytes((64 << 20) - _OVERHEAD - 1)], False),
        ([bytes((64 << 20) - _OVERHEAD)], True),
    ],
    ids=["2047", "2048", "a byte less than 64 MiB", "64 MiB"],
)
def test_it_is_full_at_the_limit_of_results_or_bytes_not_yet_stored_in_the_outbox(
    payloads: list[bytes], full: bool
) -> None:
    bench = Bench(outbox=(outbox := FakeOutbox()))
    bench.publish_results(bench.receive(), *payloads)

    assert bench.settler.full is full
    outbox.waiting[0](None)
    assert not bench.settler.full


def test_a_durable_frame_is_acknowledged_once_its_results_are_stored() -> None:
    bench = Bench(outbox=(outbox := FakeOutbox()))
    assert not bench.settler.storing
    delivery = bench.receive()
    bench.publish_results(delivery, b"1")

    assert bench.settler.storing
    assert (bench.counts, bench.sink.sent, bench.source.acked) == ((0, {}, {}, 1), [], [])
    outbox.waiting[0](None)
    assert not bench.settler.storing
    assert (bench.counts, bench.wakes, bench.source.acked) == ((1, {}, {}, 0), 1, [delivery.message])


def test_stored_results_of_a_frame_dropped_meanwhile_are_not_counted() -> None:
    bench = Bench(outbox=(outbox := FakeOutbox()))
    dropped, other = bench.receive(1), bench.receive(2)
    bench.settle(Settlement(dropped, results=[encoded()]), Settlement(other, results=[encoded()]))
    bench.settler.drop(dropped, "returned-to-broker")
    outbox.waiting[0](None)

    assert bench.counts == (1, {"returned-to-broker": 1}, {}, 0)


def test_a_redelivered_frame_whose_results_are_stored_is_dropped() -> None:
    bench = Bench(outbox=FakeOutbox())
    bench.publish_results(bench.receive(1, sender_id=True))
    bench.publish_results(bench.receive(1, sender_id=True))

    assert bench.counts == (0, {"duplicate": 1}, {}, 1)


def test_results_too_large_for_the_outbox_dead_letter_their_frame() -> None:
    outbox = FakeOutbox()
    outbox.max_record_bytes = 10
    bench = Bench(outbox=outbox)
    bench.publish_results(bench.receive())

    assert bench.sink.payloads == [("dead", b"letter")]
    assert [kind for kind, _ in bench.events] == ["result-refused"]


@pytest.mark.parametrize("already_dropped", [False, True])
def test_a_qos_0_frame_whose_results_cannot_be_stored_is_dropped_once(*, already_dropped: bool) -> None:
    bench = Bench(outbox=(outbox := FakeOutbox()))
    delivery = bench.receive(qos=0)
    bench.publish_results(delivery)
    if already_dropped:
        bench.settler.drop(delivery, "shutdown")
    outbox.waiting[0](OutboxError("disk full", remedy="", code="outbox-full"))

    assert bench.counts == (0, {"shutdown" if already_dropped else "outbox": 1}, {}, 0)
