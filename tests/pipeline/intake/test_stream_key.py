"""The stream key: assigns messages to streams as `stream:` configures."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.pipeline.messages import config, message

from hedgerow import FrameError
from hedgerow.bus.message import Message
from hedgerow.pipeline.intake import stream_key
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.wire.codec import ENVELOPE, pack_envelope

ONE_TOPIC = "plant/line3/door"


def test_an_envelope_is_recognised_whatever_the_case_and_parameters_of_its_type() -> None:
    packed = pack_envelope(b"x", content_type="text/csv", stream="cam-2")

    assert StreamKey(config(subscribe=ONE_TOPIC))(message(packed, content_type=f"{ENVELOPE.upper()}; v=1")) == "cam-2"


@pytest.mark.parametrize(
    ("stream", "received", "key"),
    [
        ({}, message(), "plant/line3/door"),
        ({"by": "level", "level": 1}, message(), "line3"),
        ({"by": "field", "field": "machine"}, message(json.dumps({"machine": "m1"}).encode()), "m1"),
        ({"by": "field", "field": "machine"}, message(json.dumps({"machine": 7}).encode()), "7"),
        (
            {"by": "field", "field": "machine"},
            message(msgpack.packb({"machine": "m2"}), content_type="application/msgpack"),
            "m2",
        ),
    ],
)
def test_streams_are_identified_as_configured(stream: dict[str, Any], received: Message, key: str) -> None:
    assert StreamKey(config(stream=stream, subscribe=ONE_TOPIC))(received) == key


@pytest.mark.parametrize(
    "subscribe", ["plant/+/door", "#", ["plant/line3/door", "plant/line4/door"], "$share/g/plant/#"]
)
@pytest.mark.parametrize("by", [{"by": "field", "field": "stream"}, {}], ids=["field", "envelope"])
def test_a_stream_that_a_payload_names_belongs_to_its_topic(by: dict[str, Any], subscribe: Any) -> None:
    """Otherwise any sensor could write into the stream of another: the broker only decides who publishes where."""
    key = StreamKey(config(stream=by, subscribe=subscribe))

    def named(name: str, topic: str = ONE_TOPIC) -> str:
        return key(message(msgpack.packb({"stream": name, "payload": b""}), topic=topic, content_type=ENVELOPE))

    assert named("plant/line4/door") == "plant/line3/door#plant/line4/door"
    assert named(ONE_TOPIC) == ONE_TOPIC
    assert named("m1", "plant") != named("m1")
    assert named("line3/door", "plant") != named(ONE_TOPIC), "a topic above cannot reach it either"


@pytest.mark.parametrize(
    "fields",
    [{"subscribe": "plant/line3/door"}, {"subscribe": "$share/g/plant/x"}, {"stream": {"across_topics": True}}],
)
def test_a_gateway_that_speaks_for_many_names_their_streams(fields: dict[str, Any]) -> None:
    """On a topic that is the pipeline's only one, and on several if the configuration says so."""
    packed = pack_envelope(b"x", content_type="text/csv", stream="cam-2")

    assert StreamKey(config(**fields))(message(packed, content_type=ENVELOPE)) == "cam-2"


@pytest.mark.parametrize(
    ("fields", "level", "topic", "stream"),
    [
        ({"subscribe": "plant/+/door"}, 1, "plant/s1/door", "s1"),
        ({"subscribe": ["plant/+/door", "plant/#"]}, 1, "plant/s1/x/door", "s1"),
        ({"subscribe": "$share/g/plant/+/door"}, 1, "plant/s1/door", "s1"),
        ({"subscribe": "#"}, 0, "plant/s1/door", "plant"),
        ({"subscribe": "plant/+/+"}, 2, "plant/s1/s2", "plant/s1/s2"),
        ({"subscribe": "plant/#"}, 2, "plant/s1/s2", "plant/s1/s2"),
        ({"subscribe": "#"}, 1, "plant/s1/s2", "plant/s1"),
        ({"subscribe": ["plant/+/door", "yard/+/door"]}, 1, "yard/s1/door", "yard/s1"),
        ({"subscribe": "plant/+/+", "stream": {"across_topics": True}}, 2, "plant/s1/s2", "s2"),
    ],
)  # fmt: skip
def test_a_level_names_a_stream_together_with_what_a_sender_could_choose_before_it(
    fields: dict[str, Any], level: int, topic: str, stream: str
) -> None:
    """A sensor that may publish on plant/s1/# would otherwise write into the stream of plant/s2/s2 as plant/s1/s2."""
    by_level = {"by": "level", "level": level, **fields.pop("stream", {})}

    assert StreamKey(config(stream=by_level, **fields))(message(topic=topic)) == stream


@pytest.mark.parametrize(
    "bad", ["\x1b]0;x\x07", "a\nb", "\x7f", "\x9b2J", "\ufffe", "\U0010ffff", "\u2028", "\u2066"], ids=ascii
)
@pytest.mark.parametrize("across_topics", [True, False])
def test_a_stream_name_that_brokers_or_terminals_act_upon_is_refused(bad: str, across_topics: bool) -> None:
    by_field = StreamKey(config(stream={"by": "field", "field": "machine", "across_topics": across_topics}))

    with pytest.raises(FrameError) as caught:
        by_field(message(json.dumps({"machine": bad}).encode()))

    assert caught.value.code == "bad-text"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("stream", "received", "code"),
    [
        ({"by": "level", "level": 9}, message(), "no-stream-key"),
        ({"by": "field", "field": "machine"}, message(b"{}"), "no-stream-key"),
        ({"by": "field", "field": "machine"}, message(b'{"machine": [1]}'), "no-stream-key"),
        ({"by": "field", "field": "machine"}, message(b'{"machine": true}'), "no-stream-key"),
        ({"by": "field", "field": "machine"}, message(b"[1]"), "no-stream-key"),
        (
            {"by": "field", "field": "machine"},
            message(json.dumps({"machine": "m" * 1025}).encode()),
            "long-stream-name",
        ),
        ({"by": "field", "field": "machine"}, message(b"\xff"), "bad-json"),
        ({"by": "field", "field": "machine"}, message(b"\x81\x90\1", content_type="a/msgpack"), "bad-msgpack"),
        ({}, message(b"\x81\x90\1", content_type=ENVELOPE), "bad-msgpack"),
        (
            {},
            message(pack_envelope(b"", content_type="", stream="s" * 1025), content_type=ENVELOPE),
            "long-stream-name",
        ),
    ],
)
def test_a_message_without_a_stream_is_a_frame_error(stream: dict[str, Any], received: Message, code: str) -> None:
    with pytest.raises(FrameError) as caught:
        StreamKey(config(stream=stream))(received)

    assert caught.value.code == code


BY_FIELD = {"by": "field", "field": "machine"}
GARBAGE = "[" + "}{,nonsense" * 1000 + "]"
"""No JSON: it would be refused if it were decoded."""


@pytest.mark.parametrize(
    "payload",
    [
        b'{"machine":"m1","samples":' + GARBAGE.encode() + b"}",
        b'{"samples":' + GARBAGE.encode() + b',"machine":"m1"}',
        b'{"at": 5, "machine": "m1", "unit": "mm", "samples":' + GARBAGE.encode() + b"}\n",
        b'{"samples":' + GARBAGE.encode() + b', "unit": "mm", "machine": "m1" }',
        b'{"machine":"m1","image":"' + b"/9j/4AAQ" * 1000 + b'\xff"}',
        b'{"image":"' + b"/9j/4AAQ" * 1000 + b'\xff","machine":"m1"}',
    ],
    ids=["in front", "behind", "among others in front", "among others behind", "before a picture", "behind a picture"],
)
def test_a_large_payload_is_not_decoded_for_its_stream(payload: bytes) -> None:
    """The event loop reads the key; the lane decodes the payload, and refuses it if it is invalid."""
    assert (
        StreamKey(config(stream=BY_FIELD, subscribe=ONE_TOPIC))(message(payload, content_type="application/json"))
        == "m1"
    )


def test_a_large_messagepack_payload_is_not_decoded_for_its_stream() -> None:
    head = b"\x84\xa2at\xcb" + bytes(8) + b"\xa4list\x92\x01\x02\xa7machine\xa2m1\xa7samples"
    received = message(head + b"\xc1" * 10_000, content_type="application/msgpack")

    assert StreamKey(config(stream=BY_FIELD, subscribe=ONE_TOPIC))(received) == "m1"


@pytest.mark.parametrize("stream", ["cam-2", None])
@pytest.mark.parametrize("behind", [True, False])
def test_a_large_envelope_is_not_decoded_for_its_stream(
    stream: str | None, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(stream_key, "decode_msgpack")
    body = {"payload": bytes(1 << 20), "content_type": "image/jpeg"}
    body = {**body, "stream": stream} if behind else {"stream": stream, **body}
    packed = msgpack.packb({key: value for key, value in body.items() if value is not None})

    assert StreamKey(config(subscribe=ONE_TOPIC))(message(packed, content_type=ENVELOPE)) == (stream or ONE_TOPIC)


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        ({"a": list(range(3000)), "machine": "m1", "b": list(range(3000))}, "m1"),
        ({"a": {"machine": "wrong"}, "b": "x" * 5000, "machine": "m1", "c": {"machine": "wrong"}}, "m1"),
        ({"a": '},"machine":"wrong"' * 500, "machine": "m1", "b": [1]}, "m1"),
        ({"a": ',"machine":"wrong"}' * 500, "machine": "m1", "b": [',"machine":"wrong"}' * 500]}, "m1"),
        ({"machine": "m1", "a": "[" * 5000}, "m1"),
    ],
)
def test_the_key_of_a_large_payload_is_found_wherever_it_is(payload: dict[str, Any], key: str) -> None:
    by_field = StreamKey(config(stream=BY_FIELD, subscribe=ONE_TOPIC))

    assert by_field(message(json.dumps(payload).encode(), content_type="application/json")) == key
    assert by_field(message(msgpack.packb(payload), content_type="application/msgpack")) == key


def test_two_keys_in_a_large_payload_are_refused() -> None:
    payload = b'{"machine":"m1","samples":[' + b"1," * 5000 + b'1],"machine":"m2"}'

    with pytest.raises(FrameError) as caught:
        StreamKey(config(stream=BY_FIELD, subscribe=ONE_TOPIC))(message(payload, content_type="application/json"))

    assert caught.value.code == "duplicate-field"


_TEXTS = st.text(alphabet=',:"\\{}[] machine01\u00e9', max_size=30) | st.sampled_from(
    ['","machine":"wrong', '},"machine":"wrong"}', '{"machine":"wrong",', "machine", ","]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(_TEXTS | st.just("machine"), _VALUES, max_size=6), st.integers(1, 40), st.booleans(), st.booleans()
)
@example({"a": ',"machine":"wrong', "machine": "m1"}, 12, False, False)
def test_the_ends_of_a_payload_never_name_another_stream(
    body: dict[str, Any], window: int, spaced: bool, listed: bool
) -> None:
    """However small the part that is read first, the key is the one that decoding everything gives."""
    document = [body] if listed else body
    payload = json.dumps(document, separators=None if spaced else (",", ":"), ensure_ascii=False).encode()
    by_field = StreamKey(config(stream=BY_FIELD, subscribe=ONE_TOPIC))
    value = None if listed else body.get("machine")
    expected = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    for content, kind in ((payload, "application/json"), (msgpack.packb(document), "application/msgpack")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(stream_key, "_WINDOW", window)
            found = None
            with contextlib.suppress(FrameError):
                found = by_field(message(content, content_type=kind))
        assert found == expected
