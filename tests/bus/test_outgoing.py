"""QoS 1 publishes over lost links and sessions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.outgoing import Outbound, Outgoing
from hedgerow.bus.packets import encode_publish_head
from hedgerow.bus.reader import Reader
from hedgerow.errors import BusError


def _ignore(kind: int, body: bytes) -> None:
    """No other packets matter here."""


def _tell(publish: Outgoing, error: Exception | None) -> None:
    if publish.done is not None:
        publish.done(error)


def outgoing(number: int, outcomes: list[Any] | None = None, size: int = 1) -> Outgoing:
    payload = b"%d" % number * size
    head = encode_publish_head(f"t/{number}", len(payload), qos=1)
    return Outgoing(head, payload, None if outcomes is None else outcomes.append)


def up(outbound: Outbound, *, session_present: bool = False, window: int = 65_535, max_packet: int = 2**28) -> None:
    outbound.link_up(session_present=session_present, receive_maximum=window, max_packet_bytes=max_packet)


def sent(outbound: Outbound) -> list[tuple[str, int, bool]]:
    """All that may be sent now: topic, packet identifier and DUP, read back by our own reader."""
    reader = Reader(Acknowledgements(), 2**20, _ignore)
    while (taken := outbound.take()) is not None:
        data = b"".join(taken[:2])
        reader.buffer()[: len(data)] = data
        reader.advance(len(data))
    return [(message.topic, message.packet_id, message.dup) for message in reader.take()]


def test_qos_0_goes_at_once_whatever_is_under_way_and_fails_with_the_link() -> None:
    outbound = Outbound(_tell)
    up(outbound, window=1)
    for number in (1, 2):
        outbound.add(outgoing(number))
    sent(outbound)
    fleeting = Outgoing(encode_publish_head("f", 1), b"x", None)
    outbound.add(fleeting)

    assert outbound.take() == (fleeting.head, b"x", fleeting)
    outbound.add(fleeting)
    assert outbound.link_lost() == [fleeting]
    assert (len(outbound), outbound.payload_bytes) == (2, 2)


def test_nothing_is_sent_without_a_link() -> None:
    outbound = Outbound(_tell)
    outbound.add(outgoing(1))
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))

    assert sent(outbound) == []
    assert len(outbound) == 2
    up(outbound)
    outbound.link_lost()
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))
    assert sent(outbound) == []
    assert len(outbound) == 2


def test_no_more_are_under_way_than_the_broker_takes() -> None:
    outbound = Outbound(_tell)
    up(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))

    assert sent(outbound) == [("t/1", 1, False), ("t/2", 2, False)]
    outbound.acked(1)
    assert sent(outbound) == [("t/3", 3, False)]


def test_what_was_under_way_goes_again_with_dup_if_the_session_is_there() -> None:
    outbound = Outbound(_tell)
    up(outbound)
    outbound.add(outgoing(1))
    outbound.add(outgoing(2))
    sent(outbound)
    outbound.add(outgoing(3))
    outbound.link_lost()

    up(outbound, session_present=True)
    assert sent(outbound) == [("t/1", 1, True), ("t/2", 2, True), ("t/3", 3, False)]


def test_what_was_under_way_goes_as_new_if_the_session_is_lost() -> None:
    outbound = Outbound(_tell)
    up(outbound)
    outbound.add(outgoing(1))
    sent(outbound)
    outbound.link_lost()

    up(outbound, session_present=False)
    assert sent(outbound) == [("t/1", 1, False)]


def test_a_second_loss_amid_sending_again_keeps_the_order() -> None:
    outbound = Outbound(_tell)
    up(outbound)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))
    sent(outbound)
    outbound.link_lost()
    up(outbound, session_present=True, window=2)
    sent(outbound)
    outbound.link_lost()

    up(outbound, session_present=True)
    assert [topic for topic, _, _ in sent(outbound)] == ["t/1", "t/2", "t/3"]


def test_one_that_is_larger_than_the_broker_takes_fails_and_the_next_goes() -> None:
    outbound = Outbound(_tell)
    outcomes: list[Exception | None] = []
    outbound.add(outgoing(1, outcomes, size=100))
    outbound.add(outgoing(2))
    up(outbound, max_packet=50)

    assert [topic for topic, _, _ in sent(outbound)] == ["t/2"]
    assert isinstance(outcomes[0], BusError)
    assert outbound.payload_bytes == 1


def test_what_is_not_done_with_is_counted_where_it_stands() -> None:
    outbound = Outbound(_tell)
    assert (len(outbound), outbound.payload_bytes, outbound.max_packet_bytes) == (0, 0, 0)
    up(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number, size=10))
    sent(outbound)
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (3, 3, 2, 30)

    outbound.link_lost()
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (4, 3, 2, 31)
    up(outbound, window=1)
    sent(outbound)
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (3, 3, 2, 30)

    assert outbound.acked(1) is not None
    assert outbound.acked(1) is None
    assert (len(outbound), outbound.unacknowledged, outbound.in_flight, outbound.payload_bytes) == (2, 2, 1, 20)


def test_what_is_given_up_is_handed_back_oldest_first() -> None:
    outbound = Outbound(_tell)
    up(outbound, window=2)
    for number in (1, 2, 3):
        outbound.add(outgoing(number))
    sent(outbound)
    outbound.link_lost()
    up(outbound, window=1)
    sent(outbound)
    outbound.link_lost()
    up(outbound, window=1)
    sent(outbound)
    outbound.add(Outgoing(encode_publish_head("f", 1), b"x", None))

    assert [publish.topic for publish in outbound.clear()] == ["t/1", "t/2", "t/3", "f"]
    assert (len(outbound), outbound.payload_bytes, outbound.clear()) == (0, 0, [])
    assert sent(outbound) == []


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("room", "goes"), [(0, True), (-1, False)])
def test_one_as_large_as_the_broker_takes_goes(*, qos: int, room: int, goes: bool) -> None:
    outbound = Outbound(_tell)
    outcomes: list[Exception | None] = []
    publish = Outgoing(encode_publish_head("t", 50, qos=qos), bytes(50), outcomes.append)
    outbound.add(publish)
    outbound.add(Outgoing(encode_publish_head("t", 1, qos=qos), b"x", None))
    up(outbound, max_packet=len(publish.head) + 50 + room)
    first = outbound.take()

    assert first is not None
    assert len(first[1]) == (50 if goes else 1)
    assert len(outcomes) == (0 if goes else 1)


def test_what_the_broker_is_to_keep_goes_at_once_with_qos_0() -> None:
    outbound = Outbound(_tell)
    up(outbound)
    kept = Outgoing(encode_publish_head("t", 1, retain=True), b"x", None)
    outbound.add(kept)

    assert outbound.take() == (kept.head, b"x", kept)
    assert outbound.unacknowledged == 0


@pytest.mark.parametrize("topic", ["a", "b" * 100, "c" * 256, "d" * 20_000])
def test_topic_and_packet_identifier_are_found_whatever_their_place(topic: str) -> None:
    """A packet's length takes one to four bytes, and a topic's two."""
    outbound = Outbound(_tell)
    outbound._next_id = 0x1233
    publish = Outgoing(encode_publish_head(topic, 3, qos=1, properties=b"\x01\x01"), b"abc", None)
    outbound.add(publish)
    up(outbound)

    assert publish.topic == topic
    assert sent(outbound) == [(topic, 0x1234, False)]
    outbound.link_lost()
    up(outbound, session_present=True)
    assert sent(outbound) == [(topic, 0x1234, True)]


@pytest.mark.parametrize("length", [126, 127, 128, 129, 16_383, 16_384])
def test_a_topic_is_found_however_long_its_packet_is(length: int) -> None:
    """The length takes another byte from 128 and from 16,384 on."""
    head = encode_publish_head("topic", length - 8, qos=0)

    assert Outgoing(head, bytes(length - 8), None).topic == "topic"


def test_identifiers_are_given_out_in_turn_up_to_65000() -> None:
    """Those above are for subscriptions; no more are under way than there are, whatever the broker takes."""
    outbound = Outbound(_tell)
    outbound._next_id = 64_998
    up(outbound)
    for number in range(4):
        outbound.add(outgoing(number))

    assert [packet_id for _, packet_id, _ in sent(outbound)] == [64_999, 65_000, 1, 2]
    for number in range(65_000):
        outbound.add(outgoing(number))
    while outbound.take() is not None:
        pass
    assert outbound.in_flight == 65_000


@given(st.data())
def test_identifiers_of_publishes_under_way_are_never_shared(data: st.DataObject) -> None:
    """Also after they have been through all 65,000."""
    outbound = Outbound(_tell)
    outbound._next_id = 64_990
    up(outbound, window=40)
    under_way: set[int] = set()
    for number in range(200):
        outbound.add(outgoing(number))
        for _, packet_id, _ in sent(outbound):
            assert packet_id not in under_way
            under_way.add(packet_id)
        answered: bool = data.draw(st.booleans()) if under_way else False
        if answered:
            packet_id = data.draw(st.sampled_from(sorted(under_way)))
            assert outbound.acked(packet_id) is not None
            under_way.remove(packet_id)
    assert len(under_way) <= 40
