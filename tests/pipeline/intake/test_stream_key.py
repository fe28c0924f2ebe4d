"""The stream key: assigns messages to streams as `stream:` configures."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from tests.pipeline.messages import config, message

from hedgerow import FrameError
from hedgerow.bus.message import Message
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.wire.codec import ENVELOPE, pack_envelope


def test_an_envelope_is_recognised_whatever_the_case_and_parameters_of_its_type() -> None:
    packed = pack_envelope(b"x", content_type="text/csv", stream="cam-2")

    assert StreamKey(config())(message(packed, content_type=f"{ENVELOPE.upper()}; v=1")) == "cam-2"


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
    assert StreamKey(config(stream=stream))(received) == key


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
