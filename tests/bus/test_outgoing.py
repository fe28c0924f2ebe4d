"""Outgoing publishes across lost links and sessions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.outgoing import Outbound, Outgoing, joined
from hedgerow.bus.packets import encode_publish_head
from hedgerow.bus.reader import Reader
from hedgerow.errors import BusError


def _ignore(kind: int, body: bytes) -> None:
    """Ignore other packets."""


def _finish(publish: Outgoing, error: Exception | None) -> None:
    if publish.done is not None:
        publish.done(error)


def outgoing(number: int, outcomes: list[Any] | None = None, size: int = 1) -> Outgoing:
    payload = b"%d" % number * size
    head = encode_publish_head(f"t/{number}", len(payload), qos=1)
    return Outgoing(head, payload, None if outcomes is None else outcomes.append)


def connect(
    outbound: Outbound, *, session_present: bool = False, window: int = 65_535, max_packet: int = 2**28
) -> None:
    outbound.link_up(session_present=session_present, receive_maximum=window, max_packet_bytes=max_packet)


def send_all(outbound: Outbound) -> list[tuple[str, int, bool]]:
    """Send everything permitted. Returns: topic, packet identifier and DUP, as decoded by `Reader`."""
    reader = Reader(Acknowledgements(), 2**20, _ignore)
    while (taken := outbound.take()) is not None:
        data = b"".join(taken[:2])
        reader.buffer()[: len(data)] = data
        reader.advance(len(data))
    return [(message.topic, message.packet_id, message.dup) for message in reader.take()]


def test_qos_0_is_sent_at_once_and_fails_with_the_link() -> None:
    outbound = Outbound(_finish)
    connect(outbound, window=1)
    for number in (1, 2):
        outbound.add(outgoing(number))
    send_all(outbound)
    qos0 = Outgoing(encode_publish_head("f", 1), b"x", None)
    outbound.add(qos0)

    assert outbound.take() == (qos0.head, b"x", qos0)
    outbound.add(qos0)
    assert outbound.link_lost() == [qos0]
    assert (len(outbound), outbound.payload_bytes) == (2, 2)


def test_nothing_is_sent_without_a_link() -> None:
    outbound = Outbound(_finish)
    outbound.add(outgoing(1))
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))

    assert send_all(outbound) == []
    assert len(outbound) == 2
    connect(outbound)
    outbound.link_lost()
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))
    assert send_all(outbound) == []
    assert len(outbound) == 2


def test_no_more_are_in_flight_than_receive_maximum() -> None:
    outbound = Outbound(_finish)
    connect(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))

    assert send_all(outbound) == [("t/1", 1, False), ("t/2", 2, False)]
    outbound.acked(1)
    assert send_all(outbound) == [("t/3", 3, False)]


def test_publishes_in_flight_are_resent_with_dup_if_the_session_exists() -> None:
    outbound = Outbound(_finish)
    connect(outbound)
    outbound.add(outgoing(1))
    outbound.add(outgoing(2))
    send_all(outbound)
    outbound.add(outgoing(3))
    outbound.link_lost()

    connect(outbound, session_present=True)
    assert send_all(outbound) == [("t/1", 1, True), ("t/2", 2, True), ("t/3", 3, False)]


def test_publishes_in_flight_are_resent_as_new_if_the_session_is_lost() -> None:
    outbound = Outbound(_finish)
    connect(outbound)
    outbound.add(outgoing(1))
    send_all(outbound)
    outbound.link_lost()

    connect(outbound, session_present=False)
    assert send_all(outbound) == [("t/1", 1, False)]


def test_a_second_lost_link_while_resending_keeps_the_order() -> None:
    outbound = Outbound(_finish)
    connect(outbound)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))
    send_all(outbound)
    outbound.link_lost()
    connect(outbound, session_present=True, window=2)
    send_all(outbound)
    outbound.link_lost()

    connect(outbound, session_present=True)
    assert [topic for topic, _, _ in send_all(outbound)] == ["t/1", "t/2", "t/3"]


def test_a_publish_above_the_broker_limit_fails_and_the_next_is_sent() -> None:
    outbound = Outbound(_finish)
    outcomes: list[Exception | None] = []
    outbound.add(outgoing(1, outcomes, size=100))
    outbound.add(outgoing(2))
    connect(outbound, max_packet=50)

    assert [topic for topic, _, _ in send_all(outbound)] == ["t/2"]
    assert isinstance(outcomes[0], BusError)
    assert outbound.payload_bytes == 1


def test_counters_distinguish_queued_and_in_flight() -> None:
    outbound = Outbound(_finish)
    assert (len(outbound), outbound.payload_bytes, outbound.max_packet_bytes) == (0, 0, 0)
    connect(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number, size=10))
    send_all(outbound)
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (3, 3, 2, 30)

    outbound.link_lost()
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (4, 3, 2, 31)
    connect(outbound, window=1)
    send_all(outbound)
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (3, 3, 2, 30)

    assert outbound.acked(1) is not None
    assert outbound.acked(1) is None
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (2, 2, 1, 20)


def test_clear_returns_publishes_oldest_first() -> None:
    outbound = Outbound(_finish)
    connect(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))
    send_all(outbound)
    outbound.link_lost()
    connect(outbound, window=1)
    send_all(outbound)
    outbound.link_lost()
    connect(outbound, window=1)
    send_all(outbound)
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))

    assert [publish.topic for publish in outbound.clear()] == ["t/1", "t/2", "t/3", "f"]
    assert (len(outbound), outbound.payload_bytes, outbound.clear()) == (0, 0, [])
    assert send_all(outbound) == []


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("spare", "is_sent"), [(0, True), (-1, False)])
def test_a_publish_of_exactly_the_broker_limit_is_sent(*, qos: int, spare: int, is_sent: bool) -> None:
    outbound = Outbound(_finish)
    outcomes: list[Exception | None] = []
    publish = Outgoing(encode_publish_head("t", 50, qos=qos), bytes(50), outcomes.append)
    outbound.add(publish)
    outbound.add(Outgoing(encode_publish_head("t", 1, qos=qos), b"x", None))
    connect(outbound, max_packet=len(publish.head) + 50 + spare)
    first = outbound.take()

    assert first is not None
    assert len(first[1]) == (50 if is_sent else 1)
    assert len(outcomes) == (0 if is_sent else 1)


def test_a_retained_qos_0_publish_is_sent_at_once() -> None:
    outbound = Outbound(_finish)
    connect(outbound)
    retained = Outgoing(encode_publish_head("t", 1, retain=True), b"x", None)
    outbound.add(retained)

    assert outbound.take() == (retained.head, b"x", retained)
    assert outbound.unacknowledged == 0


@pytest.mark.parametrize("topic", ["a", "b" * 100, "c" * 256, "d" * 20_000])
def test_topic_and_packet_identifier_are_found_at_any_offset(topic: str) -> None:
    """The packet length takes one to four bytes, the topic length two."""
    outbound = Outbound(_finish)
    outbound._next_id = 0x1233
    publish = Outgoing(encode_publish_head(topic, 3, qos=1, properties=b"\x01\x01"), b"abc", None)
    outbound.add(publish)
    connect(outbound)

    assert publish.topic == topic
    assert send_all(outbound) == [(topic, 0x1234, False)]
    outbound.link_lost()
    connect(outbound, session_present=True)
    assert send_all(outbound) == [(topic, 0x1234, True)]


@pytest.mark.parametrize("length", [126, 127, 128, 129, 16_383, 16_384])
def test_a_topic_is_found_in_packets_of_any_length(length: int) -> None:
    """The packet length takes another byte from 128 and from 16,384 on."""
    head = encode_publish_head("topic", length - 8, qos=0)

    assert Outgoing(head, bytes(length - 8), None).topic == "topic"


def test_identifiers_are_assigned_in_order_up_to_65000() -> None:
    """Higher ones are reserved for subscriptions, so no more than 65,000 are in flight, whatever the broker accepts."""
    outbound = Outbound(_finish)
    outbound._next_id = 64_998
    connect(outbound)
    for number in range(4):
        outbound.add(outgoing(number))

    assert [packet_id for _, packet_id, _ in send_all(outbound)] == [64_999, 65_000, 1, 2]
    for number in range(65_000):
        outbound.add(outgoing(number))
    while outbound.take() is not None:
        pass
    assert outbound.in_flight == 65_000


@given(st.data())
def test_identifiers_in_flight_are_never_reused(data: st.DataObject) -> None:
    """Also after wrapping around at 65,000."""
    outbound = Outbound(_finish)
    outbound._next_id = 64_990
    connect(outbound, window=40)
    in_flight: set[int] = set()
    for number in range(200):
        outbound.add(outgoing(number))
        for _, packet_id, _ in send_all(outbound):
            assert packet_id not in in_flight
            in_flight.add(packet_id)
        acknowledge: bool = data.draw(st.booleans()) if in_flight else False
        if acknowledge:
            packet_id = data.draw(st.sampled_from(sorted(in_flight)))
            assert outbound.acked(packet_id) is not None
            in_flight.remove(packet_id)
    assert len(in_flight) <= 40


def end(outbound: Outbound, *, restarted: bool = False) -> Outgoing | None:
    """End a link as the peer does, or all of the peer. Returns: the message that is set aside."""
    outbound.peer_ended()
    outbound.link_lost()
    return outbound.take_guilty(restarted=restarted)


def test_after_two_ended_links_what_was_in_flight_is_sent_alone_and_only_the_guilty_one_is_set_aside() -> None:
    outbound, outcomes = Outbound(_finish), list[Any]()
    messages = [outgoing(number, outcomes) for number in range(4)]
    for each in messages[:3]:
        outbound.add(each)
    for _ in range(2):
        connect(outbound)
        assert [topic for topic, _, _ in send_all(outbound)] == ["t/0", "t/1", "t/2"]
        assert end(outbound) is None
    outbound.add(messages[3])

    connect(outbound)
    assert (outbound.in_doubt, send_all(outbound)) == (True, []), "nothing is sent on a link that has not answered"
    outbound.answered = True
    for number in (0, 1):
        ((topic, packet_id, _),) = send_all(outbound)
        assert topic == f"t/{number}"
        if number == 0:
            assert outbound.acked(packet_id) is messages[0]
    assert end(outbound) is None, "a link may end for another reason"
    connect(outbound)
    outbound.answered = True
    assert [topic for topic, _, _ in send_all(outbound)] == ["t/1"]
    assert end(outbound) is messages[1]

    connect(outbound)
    outbound.answered = True
    ((topic, packet_id, _),) = send_all(outbound)
    assert topic == "t/2"
    outbound.acked(packet_id)
    assert [topic for topic, _, _ in send_all(outbound)] == ["t/3"]
    assert (outbound.in_flight, outbound.payload_bytes) == (1, 1)
    assert not outcomes, "the caller finishes what is set aside"


def test_links_that_end_before_they_answer_blame_no_message() -> None:
    """A broker that drops every link at once, or gives it to another node of the same name, is not over a message."""
    outbound = Outbound(_finish)
    outbound.add(outgoing(0))
    for _ in range(10):
        connect(outbound)
        send_all(outbound)
        assert end(outbound) is None
    assert outbound.unacknowledged == 1


def test_qos_0_waits_while_a_message_is_in_doubt_so_that_it_is_really_alone() -> None:
    outbound = Outbound(_finish)
    outbound.add(outgoing(0))
    for _ in range(2):
        connect(outbound)
        send_all(outbound)
        end(outbound)
    connect(outbound)
    outbound.answered = True
    outbound.add(Outgoing(encode_publish_head("q", 1), b"x", None))
    ((topic, packet_id, _),) = send_all(outbound)
    assert topic == "t/0"
    outbound.acked(packet_id)
    assert [topic for topic, _, _ in send_all(outbound)] == ["q"]


@pytest.mark.parametrize(("restarted", "ends"), [(False, 4), (True, 8)])
def test_a_broker_that_ends_itself_is_blamed_before_the_message(restarted: bool, ends: int) -> None:
    outbound = Outbound(_finish)
    message, behind = outgoing(0), outgoing(1)
    outbound.add(message)
    blamed = []
    while not blamed or blamed[-1] is None:
        connect(outbound)
        outbound.answered = True
        assert send_all(outbound)[0][0] == "t/0"
        blamed.append(end(outbound, restarted=restarted))
    outbound.add(behind)
    assert (len(blamed), blamed[-1], outbound.payload_bytes) == (ends, message, 1)
    connect(outbound)
    assert [topic for topic, _, _ in send_all(outbound)] == ["t/1"]


def test_joined_publishes_are_written_together_and_counted_each() -> None:
    outbound = Outbound(_finish)
    connect(outbound, max_packet=50)
    together = joined([encode_publish_head(f"t/{n}", 40) for n in range(3)], [b"x" * 40] * 3)
    outbound.add(together)

    assert len(outbound) == 3
    assert send_all(outbound) == [("t/0", 0, False), ("t/1", 0, False), ("t/2", 0, False)], (
        "though larger than a packet may be"
    )
    assert (len(outbound), outbound.payload_bytes) == (0, 0)
    outbound.add(together)
    assert outbound.link_lost() == [together]
    assert (len(outbound), outbound.payload_bytes) == (0, 0)
    outbound.add(together)
    assert outbound.clear() == [together]
    assert (len(outbound), outbound.payload_bytes) == (0, 0)
