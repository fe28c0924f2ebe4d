"""From a message to a frame: identity, time, type and stream."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.pipeline.messages import config, message

from hedgerow import FrameError
from hedgerow.bus.message import Message
from hedgerow.frame import Frame
from hedgerow.pipeline.delivery import QOS0_MAX_AGE_S, Delivery
from hedgerow.pipeline.frame_maker import FrameMaker, unusable
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.wire.codec import ENVELOPE, pack_envelope


def made(received: Message, **fields: Any) -> Frame:
    maker = FrameMaker(config(**fields))
    return maker.complete(bare(maker, received, stream="stream", sequence=7), received)


def bare(maker: FrameMaker, received: Message, stream: str = "", sequence: int = 0) -> Frame:
    return maker.bare(Delivery(received, stream, sequence, None), time.time() - time.monotonic())


def test_a_frame_is_what_its_sender_says_about_it() -> None:
    frame = made(message(content_type="Image/JPEG; camera=2", id="f1", time="2026-05-04T12:00:00Z", traceparent="00-a"))

    assert (frame.id, frame.captured_at, frame.traceparent) == ("f1", 1777896000.0, "00-a")
    assert (frame.content_type, frame.meta) == ("image/jpeg", {})
    assert (frame.stream, frame.topic, frame.sequence) == ("stream", "plant/line3/door", 7)


def test_a_sender_tells_rate_and_channels_and_cannot_speak_as_a_stage() -> None:
    """Meta is how stages speak to each other: `begins` from outside would reset a model's state."""
    frame = made(message(content_type="audio/l16; rate=8000; channels=2; begins=1; sampled_at=x"))

    assert frame.meta == {"rate": "8000", "channels": "2"}


def test_a_frame_whose_sender_says_nothing_is_of_now_and_of_the_configured_type() -> None:
    frame = made(message(), content_type="image/jpeg")

    assert frame.content_type == "image/jpeg"
    assert abs(frame.captured_at - time.time()) < 5


def test_a_redelivered_frame_has_the_same_id_in_another_run_of_the_node() -> None:
    received = message()

    assert bare(FrameMaker(config()), received).id == bare(FrameMaker(config()), received, sequence=5).id


def test_qos_0_frames_have_ids_of_their_own_though_they_look_the_same() -> None:
    makers = FrameMaker(config()), FrameMaker(config())  # two runs of the node

    assert len({bare(maker, message(qos=0)).id for maker in makers for _ in range(10)}) == 20


def test_an_envelope_is_opened_and_gives_the_stream() -> None:
    packed = pack_envelope(b"\xff\xd8", content_type="image/jpeg", id="f1", stream="cam-2", captured_at=5.0)
    received = message(packed, content_type=ENVELOPE)
    frame = made(received)

    assert StreamKey(config())(received) == "cam-2"
    assert (bytes(frame.payload), frame.id, frame.captured_at) == (b"\xff\xd8", "f1", 5.0)


def test_an_envelope_cannot_put_its_frame_into_another_stream_than_it_is_counted_in() -> None:
    """Else a sender could have state made for streams that nobody ever forgets, and run one in two lanes."""
    received = message(pack_envelope(b"x", content_type="text/csv", stream="any"), content_type=ENVELOPE)
    maker, key = FrameMaker(config()), StreamKey(config(stream={"by": "level", "level": 1}))(received)

    assert maker.complete(bare(maker, received, stream=key), received).stream == key == "line3"


def test_a_sender_of_envelopes_need_not_speak_mqtt_5() -> None:
    """The pipeline's `content_type` says it for a sender that cannot."""
    received = message(pack_envelope(b"x", content_type="text/csv", stream="cam-2"))
    pipeline = {"content_type": ENVELOPE}

    assert StreamKey(config(**pipeline))(received) == "cam-2"
    assert made(received, **pipeline).content_type == "text/csv"


@pytest.mark.parametrize(
    ("received", "code"),
    [
        (message(time="soon"), "bad-time"),
        (message(time="2126-05-04T12:00:00Z"), "captured-in-future"),
        (message(time="1e300"), "captured-in-future"),
        (message(id="i" * 1025), "bad-id"),
        (message(b"\xc1", content_type=ENVELOPE), "bad-msgpack"),
        (message(pack_envelope(b"", content_type="a", captured_at=9e12), content_type=ENVELOPE), "captured-in-future"),
    ],
)
def test_what_a_sender_says_must_make_sense(received: Message, code: str) -> None:
    with pytest.raises(FrameError) as caught:
        made(received)

    assert caught.value.code == code


def test_a_frame_slightly_from_the_future_passes() -> None:
    """Clocks differ; `clock_tolerance_s` says by how much."""
    received = message(time=str(time.time() + 100))

    assert made(received, clock_tolerance_s=3600).captured_at > time.time()


def test_a_qos_0_frame_expires_by_itself_and_a_qos_1_frame_only_when_told() -> None:
    fleeting, durable = (Delivery(message(qos=qos), "", 0, None) for qos in (0, 1))
    assert fleeting.expires_at == fleeting.message.received_at + QOS0_MAX_AGE_S
    assert durable.expires_at == float("inf")

    durable.expire_in(3)
    assert durable.expires_at == durable.message.received_at + 3
    durable.expire_in(60)
    assert durable.expires_at == durable.message.received_at + 3


def test_an_oversized_or_malformed_message_is_no_frame() -> None:
    received = message(b"")
    received.oversized = 5000
    assert (unusable(received, 1000) or FrameError("")).code == "payload-too-large"
    received = message()
    received.malformed = "its topic is no UTF-8"
    assert (unusable(received, 1000) or FrameError("")).code == "malformed-message"
    assert unusable(message(), 1000) is None
