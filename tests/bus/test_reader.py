"""Parsing of the byte stream, however it is split."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.message import Message
from hedgerow.bus.packets import encode_publish_head
from hedgerow.bus.properties import MalformedPacket, Property, encode_properties
from hedgerow.bus.reader import BUFFER_BYTES, MAX_PROPERTIES_BYTES, Reader
from hedgerow.errors import FrameError


def _ignore(kind: int, body: bytes) -> None:
    """Ignore other packets."""


def publish(topic: str, payload: bytes, *, packet_id: int = 0, properties: bytes = b"") -> bytes:
    qos = 1 if packet_id else 0
    return encode_publish_head(topic, len(payload), qos=qos, packet_id=packet_id, properties=properties) + payload


def read(data: bytes, *, cut: int = 2**30, limit: int = 2**22, others: list[Any] | None = None) -> list[Message]:
    """Parse a stream that arrives in pieces of at most `cut` bytes."""
    on_packet = (lambda kind, body: others.append((kind, body))) if others is not None else _ignore
    reader = Reader(Acknowledgements(), limit, on_packet)
    messages = []
    position = 0
    while position < len(data):
        buffer = reader.buffer()
        assert len(buffer) > 0
        piece = data[position : position + min(cut, len(buffer))]
        buffer[: len(piece)] = piece
        position += len(piece)
        reader.advance(len(piece))
        messages += reader.take()
    return messages


def fields(messages: list[Message]) -> list[tuple[Any, ...]]:
    return [
        (m.topic, bytes(m.payload), m.qos, m.packet_id, m.oversized, m.malformed, m.properties.user_properties)
        for m in messages
    ]


sizes = st.one_of(st.integers(0, 300), st.sampled_from([127, 128, 16_383, 16_384, 20_000, BUFFER_BYTES, 200_000]))
message_specs = st.lists(
    st.tuples(st.sampled_from(["a", "plant/line/é", "x" * 300]), sizes, st.booleans(), st.sampled_from([0, 5, 200])),
    max_size=8,
)


@settings(max_examples=examples(60), deadline=None)
@given(message_specs, st.integers(1, 70_000), st.sampled_from([100, 30_000, 2**22]))
def test_messages_do_not_depend_on_how_the_stream_is_split(specs: list[Any], cut: int, limit: int) -> None:
    stream = bytearray()
    expected = []
    for number, (topic, size, acknowledged, property_bytes) in enumerate(specs, 1):
        users = [("k", "v" * property_bytes)] if property_bytes else []
        payload = number.to_bytes(1, "big") * size
        packet_id = number if acknowledged else 0
        properties = encode_properties([(Property.USER, user) for user in users])
        stream += publish(topic, payload, packet_id=packet_id, properties=properties)
        too_large = size > limit
        expected_payload = b"" if too_large else payload
        expected.append(
            (topic, expected_payload, int(acknowledged), packet_id, size if too_large else None, None, users)
        )
        stream += b"\xd0\x00"  # a PINGRESP in between

    others: list[Any] = []
    cut = max(cut, len(stream) // 2000)
    assert fields(read(bytes(stream), cut=cut, limit=limit, others=others)) == expected
    assert others == [(0xD0, b"")] * len(specs)


def test_a_stream_can_arrive_byte_by_byte() -> None:
    data = publish("a/b", b"x" * 20_000, packet_id=3) + publish("c", b"")

    assert [(m.topic, len(m.payload)) for m in read(data, cut=1)] == [("a/b", 20_000), ("c", 0)]


@settings(max_examples=examples(300))
@given(st.binary(min_size=1, max_size=400), st.integers(1, 50))
def test_random_streams_are_parsed_or_malformed(data: bytes, cut: int) -> None:
    try:
        messages = read(data, cut=cut)
    except MalformedPacket:
        return
    for message in messages:
        try:
            assert message.properties is not None
        except FrameError as error:
            assert error.code == "malformed-properties"  # noqa: PT017 - it may, but need not, be raised


@settings(max_examples=examples(300))
@given(st.data())
def test_a_corrupted_publish_is_parsed_or_malformed(data: st.DataObject) -> None:
    properties = encode_properties([(Property.USER, ("k", "v")), (Property.CONTENT_TYPE, "image/jpeg")])
    raw = bytearray(publish("a/b/c", b"payload", packet_id=9, properties=properties))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        messages = read(bytes(raw) * 2)
    except MalformedPacket:
        return
    for message in messages:
        try:
            assert isinstance(message.topic, str)
            message.properties  # noqa: B018 - decoding is what may fail
        except FrameError as error:
            assert error.code == "malformed-properties"  # noqa: PT017 - it may, but need not, be raised


def test_a_large_payload_is_a_read_only_view_of_its_own_buffer() -> None:
    (message,) = read(publish("a", b"x" * 300_000), cut=50_000)

    assert isinstance(message.payload, memoryview)
    assert message.payload.readonly
    assert bytes(message.payload) == b"x" * 300_000


def test_a_small_payload_is_not_overwritten_by_later_reads() -> None:
    first, second = read(publish("a", b"first") + publish("a", b"other"), cut=12)

    assert (first.payload, second.payload) == (b"first", b"other")


def test_an_oversized_payload_is_skipped_in_bounded_memory() -> None:
    """200 MB are announced and sent; the reader holds no more than its buffer."""
    size = 200_000_000
    reader = Reader(Acknowledgements(), 1_000_000, _ignore)
    head = encode_publish_head("big", size, properties=encode_properties([(Property.USER, ("k", "v"))]))
    reader.buffer()[: len(head)] = head
    tracemalloc.start()
    reader.advance(len(head))
    (message,) = reader.take()
    left = size
    while left:
        step = min(left, len(reader.buffer()))
        reader.advance(step)
        left -= step
    after = publish("next", b"ok")
    reader.buffer()[: len(after)] = after
    reader.advance(len(after))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (message.topic, message.oversized, message.payload) == ("big", size, b"")
    assert message.properties.user_properties == [("k", "v")]
    assert [(m.topic, m.payload) for m in reader.take()] == [("next", b"ok")]
    assert peak < 1_000_000


@pytest.mark.parametrize("cut", [1000, 2**30])
def test_a_message_with_oversized_properties_is_marked_malformed(cut: int) -> None:
    many = encode_properties([(Property.USER, ("k", "v" * 1000))] * (MAX_PROPERTIES_BYTES // 1000 + 1))
    first, second = read(publish("a", b"payload", packet_id=4, properties=many) + publish("b", b"ok"), cut=cut)

    assert "properties" in (first.malformed or "")
    assert first.packet_id == 4
    assert (second.topic, second.malformed) == ("b", None)


@pytest.mark.parametrize(
    ("topic", "readable", "why"),
    [
        (b"caf\xe9", "caf\\xe9", "not UTF-8"),
        (b"a/+/b", "a/+/b", "wildcard"),
        (b"a\0b", "a\\x00b", "U+0000"),
        (b"a\x1b[2Jb", "a\\x1b[2Jb", "U+001B"),
        ("a\u202eb".encode(), "a\\u202eb", "U+202E"),
        (b"", "", "empty"),
    ],
)
def test_a_message_with_an_invalid_topic_is_delivered_as_malformed(topic: bytes, readable: str, why: str) -> None:
    """It has to be dead-lettered and acknowledged, or the broker would redeliver it forever."""
    body = len(topic).to_bytes(2, "big") + topic + b"\x00\x05\x00payload"
    (message,) = read(b"\x32" + bytes([len(body)]) + body)

    assert message.topic == readable
    assert why in (message.malformed or "")
    assert (message.payload, message.packet_id) == (b"payload", 5)


def test_malformed_properties_raise_only_when_read() -> None:
    first, second = read(publish("a", b"1", properties=b"\x7f") + publish("b", b"2"))

    with pytest.raises(FrameError) as caught:
        first.properties  # noqa: B018 - decoding is what fails
    assert caught.value.code == "malformed-properties"
    assert second.payload == b"2"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x34\x06\x00\x01a\x00\x05\x00", "QoS 2"),
        (b"\x32\x06\x00\x01a\x00\x00\x00", "identifier 0"),
        (b"\x30\x01\x00", "truncated"),
        (b"\x30\x03\x00\x09a", "truncated"),
        (b"\x30\x05\x00\x01a\x09x", "truncated"),
        (b"\x30\xff\xff\xff\xff\x01", "length"),
        (b"\xd0\xff\xff\x7f", "type 13"),
    ],
)
def test_an_unparsable_stream_is_malformed(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        read(raw)


def test_messages_before_a_malformed_packet_are_delivered() -> None:
    reader = Reader(Acknowledgements(), 1000, _ignore)
    data = publish("a", b"good", packet_id=1) + b"\x34\x06\x00\x01a\x00\x05\x00"
    reader.buffer()[: len(data)] = data

    with pytest.raises(MalformedPacket):
        reader.advance(len(data))
    assert [message.payload for message in reader.take()] == [b"good"]
