"""Codec of control packets and properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.bus import packets
from hedgerow.bus.packets import Acked, Publication
from hedgerow.bus.properties import (
    IN_PUBLISH,
    MalformedPacket,
    Property,
    PublishProperties,
    decode_properties,
    decode_varint,
    encode_properties,
    encode_varint,
)
from hedgerow.text import not_in_mqtt

PahoProperties: Any = Properties  # its methods lack annotations

texts = st.text(max_size=40).filter(lambda text: not_in_mqtt(text) is None)
publish_pairs = st.lists(
    st.one_of(
        st.tuples(st.just(Property.USER), st.tuples(texts, texts)),
        st.tuples(st.just(Property.SUBSCRIPTION_ID), st.integers(1, 268_435_455)),
    ),
    max_size=5,
).flatmap(
    lambda repeated: st.fixed_dictionaries(
        {},
        optional={
            Property.PAYLOAD_FORMAT: st.integers(0, 1),
            Property.EXPIRY: st.integers(0, 2**32 - 1),
            Property.CONTENT_TYPE: texts,
            Property.RESPONSE_TOPIC: texts,
            Property.CORRELATION_DATA: st.binary(max_size=40),
            Property.TOPIC_ALIAS: st.integers(1, 65_535),
        },
    ).map(lambda once: [*once.items(), *repeated])
)


@given(publish_pairs)
def test_properties_survive_a_round_trip(pairs: list[Any]) -> None:
    assert decode_properties(encode_properties(pairs)) == pairs


@given(publish_pairs)
def test_paho_decodes_our_properties(pairs: list[Any]) -> None:
    """An independent decoder agrees on every property of a PUBLISH."""
    raw = encode_properties(pairs)
    paho = PahoProperties(PacketTypes.PUBLISH)
    paho.unpack(encode_varint(len(raw)) + raw)

    read = PublishProperties(raw)
    assert getattr(paho, "ContentType", "") == read.content_type
    assert getattr(paho, "MessageExpiryInterval", None) == read.expiry_s
    assert getattr(paho, "ResponseTopic", None) == read.response_topic
    assert getattr(paho, "CorrelationData", None) == read.correlation_data
    assert getattr(paho, "UserProperty", []) == read.user_properties


@given(st.lists(st.tuples(texts, texts), max_size=4), texts, st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_we_decode_properties_from_paho(users: list[Any], content_type: str, correlation: bytes, expiry: int) -> None:
    paho = PahoProperties(PacketTypes.PUBLISH)
    paho.ContentType, paho.CorrelationData, paho.MessageExpiryInterval = content_type, correlation, expiry
    if users:
        paho.UserProperty = users
    packed = paho.pack()
    length, start = decode_varint(packed, 0)

    read = PublishProperties(packed[start:])
    assert start + length == len(packed)
    assert (read.content_type, read.correlation_data, read.expiry_s) == (content_type, correlation, expiry)
    assert read.user_properties == users


@given(st.binary(max_size=80))
def test_random_properties_are_decoded_or_malformed(raw: bytes) -> None:
    try:
        pairs = decode_properties(raw)
        encoded = encode_properties(pairs)
    except MalformedPacket:
        return
    except ValueError as error:
        assert "not an MQTT string" in str(error)  # noqa: PT017 - received, but never sent
        return
    assert decode_properties(encoded) == pairs


@given(st.binary(max_size=80) | publish_pairs.map(encode_properties))
def test_the_fast_path_for_publish_properties_is_as_strict_as_the_decoder(raw: bytes) -> None:
    """The fast path gives the same result or error as the strict decoder."""
    try:
        pairs = decode_properties(raw)
        if any(kind not in IN_PUBLISH for kind, _ in pairs):
            raise MalformedPacket("not in a PUBLISH")
    except MalformedPacket:
        with pytest.raises(MalformedPacket):
            PublishProperties(raw)
        return
    read = PublishProperties(raw)
    assert read.user_properties == [value for kind, value in pairs if kind is Property.USER]
    assert read.content_type == next((value for kind, value in pairs if kind is Property.CONTENT_TYPE), "")
    assert read.expiry_s == next((value for kind, value in pairs if kind is Property.EXPIRY), None)


@given(
    st.sampled_from([packets.decode_connack, packets.decode_puback, packets.decode_suback, packets.decode_disconnect]),
    st.binary(max_size=60),
)
def test_random_packets_are_decoded_or_malformed(decode: Callable[[bytes], object], body: bytes) -> None:
    try:
        decode(body)
    except MalformedPacket as error:
        assert error.remedy  # noqa: PT017 - it may, but need not, be raised


@given(st.integers(0, 268_435_455))
def test_variable_byte_integers_survive_a_round_trip(value: int) -> None:
    raw = encode_varint(value)

    assert decode_varint(raw + b"rest", 0) == (value, len(raw))


@pytest.mark.parametrize(
    ("value", "raw"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (268_435_455, "ffffff7f")],
)
def test_variable_byte_integers_match_the_standard(value: int, raw: str) -> None:
    """Examples from the standard's table 1-1."""
    assert encode_varint(value).hex() == raw


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff\xff\xff\xff\x01"])
def test_a_truncated_or_overlong_variable_byte_integer_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_varint(raw, 0)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(Property.EXPIRY, 2**32)], "does not fit"),
        ([(Property.CONTENT_TYPE, "a\0b")], r"U\+0000"),
        ([(Property.CONTENT_TYPE, "x" * 65_536)], "at most 65535"),
        ([(Property.CONTENT_TYPE, b"bytes")], "is not a valid value"),
    ],
)
def test_a_value_that_does_not_fit_its_property_is_refused(pairs: list[Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode_properties(pairs)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x02\x00\x00", "EXPIRY is truncated"),
        (b"\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01", "occurs twice"),
        (b"\x03\x00\x02\xff\xfe", "not UTF-8"),
        (b"\x03\x00\x01\x00", "NUL"),
        (b"\x03\x00\x05abc", "truncated"),
        (b"\x7f", "Unknown property"),
    ],
)
def test_malformed_properties_report_the_problem(raw: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        decode_properties(raw)


def test_a_property_of_another_packet_is_refused_in_a_publish() -> None:
    with pytest.raises(MalformedPacket, match="RECEIVE_MAXIMUM"):
        PublishProperties(encode_properties({Property.RECEIVE_MAXIMUM: 5}))


def test_connect_carries_will_user_and_properties() -> None:
    """Compared byte by byte with the standard."""
    raw = packets.encode_connect(
        client_id="id",
        clean_start=True,
        keepalive_s=60,
        properties=packets.session_expiry(10),
        will=Publication("w", b"bye", qos=1, retain=True),
        username="u",
        password="p",
    )

    assert raw.hex(" ") == (
        "10 26 00 04 4d 51 54 54 05 ee 00 3c 05 11 00 00 00 0a 00 02 69 64 00 00 01 77 00 03 62 79 65"
        " 00 01 75 00 01 70".replace("10 26", f"10 {len(raw) - 2:02x}")
    )


def test_subscribe_requests_retained_messages_only_for_new_subscriptions() -> None:
    assert packets.encode_subscribe(7, {"a/#": 1}).hex(" ") == "82 09 00 07 00 00 03 61 2f 23 11"


def test_a_puback_without_a_reason_means_success() -> None:
    assert packets.decode_puback(packets.encode_puback(513)[2:]) == Acked(513, (0,))


def test_an_unknown_reason_code_is_shown_as_a_number() -> None:
    assert packets.reason_name(0xF0) == "reason code 0xf0"
