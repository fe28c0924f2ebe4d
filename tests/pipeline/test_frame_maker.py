"""The frame maker: identity, capture time, content type and stream of a frame."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.messages import config, message

from hedgerow import FrameError
from hedgerow.bus.message import Message
from hedgerow.frame import Frame
from hedgerow.pipeline.delivery import QOS0_MAX_AGE_S, Delivery
from hedgerow.pipeline.frame_maker import FrameMaker, MadeFrames, message_error
from hedgerow.pipeline.intake.stream_key import StreamKey
from hedgerow.wire.codec import ENVELOPE, pack_envelope

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def make_frame(received: Message, **fields: Any) -> Frame:
    maker = FrameMaker(config(**fields))
    return maker.complete(bare(maker, received, stream="stream", sequence=7), received)


def bare(maker: FrameMaker, received: Message, stream: str = "", sequence: int = 0) -> Frame:
    return maker.bare(Delivery(received, stream, sequence, None), time.time() - time.monotonic())


def test_a_frame_takes_its_properties_from_the_message() -> None:
    frame = make_frame(
        message(content_type="Image/JPEG; camera=2", id="f1", time="2026-05-04T12:00:00Z", traceparent=TRACE)
    )

    assert (frame.id, frame.captured_at, frame.traceparent) == ("f1", 1777896000.0, TRACE)
    assert (frame.content_type, frame.meta) == ("image/jpeg", {})
    assert (frame.stream, frame.topic, frame.sequence) == ("stream", "plant/line3/door", 7)


def test_only_rate_and_channels_of_the_content_type_become_meta() -> None:
    """Meta is for communication between stages: `begins` from a sensor would reset a model's state."""
    frame = make_frame(message(content_type="audio/l16; rate=8000; channels=2; begins=1; sampled_at=x"))

    assert frame.meta == {"rate": "8000", "channels": "2"}


def test_the_pipelines_content_type_may_have_parameters_too() -> None:
    pipeline = {"content_type": "audio/L16; rate=8000"}

    frame = make_frame(message(b"\0\0"), **pipeline)
    stated = make_frame(message(b"\0\0", content_type="audio/l16"), **pipeline)

    assert (frame.content_type, frame.meta) == ("audio/l16", {"rate": "8000"})
    assert (stated.content_type, stated.meta) == ("audio/l16", {})


def test_milliseconds_are_refused_while_the_clock_is_doubtful_too() -> None:
    maker = FrameMaker(config())
    maker.clock.doubtful = True
    received = message(time="1700000000123")

    with pytest.raises(FrameError, match="in milliseconds, not in seconds"):
        maker.complete(maker.bare(Delivery(received, "s", 0, None), 0.0), received)


def test_without_properties_a_frame_has_the_time_of_arrival_and_the_configured_content_type() -> None:
    frame = make_frame(message(), content_type="image/jpeg")

    assert frame.content_type == "image/jpeg"
    assert abs(frame.captured_at - time.time()) < 5


def test_a_redelivered_frame_has_the_same_id_in_another_run_of_the_node() -> None:
    received = message()

    assert bare(FrameMaker(config()), received).id == bare(FrameMaker(config()), received, sequence=5).id


def test_identical_qos_0_messages_get_different_ids() -> None:
    makers = FrameMaker(config()), FrameMaker(config())  # two runs of the node

    assert len({bare(maker, message(qos=0)).id for maker in makers for _ in range(10)}) == 20


def test_an_envelope_is_opened_and_names_the_stream() -> None:
    packed = pack_envelope(b"\xff\xd8", content_type="image/jpeg", id="f1", stream="cam-2", captured_at=5.0)
    received = message(packed, content_type=ENVELOPE)
    frame = make_frame(received)

    assert StreamKey(config())(received) == "plant/line3/door#cam-2"
    assert (bytes(frame.payload), frame.id, frame.captured_at) == (b"\xff\xd8", "f1", 5.0)


def test_an_envelope_cannot_change_the_stream_after_the_stream_key_was_determined() -> None:
    """Otherwise a sender could create state that is never discarded, and have one stream in two lanes."""
    received = message(pack_envelope(b"x", content_type="text/csv", stream="any"), content_type=ENVELOPE)
    maker, key = FrameMaker(config()), StreamKey(config(stream={"by": "level", "level": 1}))(received)

    assert maker.complete(bare(maker, received, stream=key), received).stream == key == "plant/line3"


def test_an_envelope_can_be_sent_over_mqtt_3() -> None:
    """The pipeline's `content_type` replaces the property that MQTT 3.1.1 lacks."""
    received = message(pack_envelope(b"x", content_type="text/csv", stream="cam-2"))
    pipeline = {"content_type": ENVELOPE, "subscribe": "plant/line3/door"}

    assert StreamKey(config(**pipeline))(received) == "cam-2"
    assert make_frame(received, **pipeline).content_type == "text/csv"


@pytest.mark.parametrize(
    ("received", "code"),
    [
        (message(time="soon"), "bad-time"),
        (message(time="2126-05-04T12:00:00Z"), "captured-in-future"),
        (message(time="1e300"), "bad-time"),
        (message(time="1700000000123"), "bad-time"),
        (message(id="i" * 1025), "bad-id"),
        (message(content_type="a" * 1025), "unknown-content-type"),
        (message(id="\x1b[2J"), "bad-text"),
        (message(id="\ufdd0"), "bad-text"),
        (message(id="a\u202eb"), "bad-text"),
        (message(content_type="a/\x85"), "bad-text"),
        (message(content_type="a/b; rate=8\n000"), "bad-text"),
        (message(pack_envelope(b"", content_type="a", id="\x00"), content_type=ENVELOPE), "bad-text"),
        (message(pack_envelope(b"", content_type="a/\x7f"), content_type=ENVELOPE), "bad-text"),
        (message(b"\xc1", content_type=ENVELOPE), "bad-msgpack"),
        (message(pack_envelope(b"", content_type="a", captured_at=9e10), content_type=ENVELOPE), "captured-in-future"),
    ],
)
def test_invalid_sender_properties_are_refused(received: Message, code: str) -> None:
    with pytest.raises(FrameError) as caught:
        make_frame(received)

    assert caught.value.code == code


def test_a_capture_time_slightly_in_the_future_is_accepted() -> None:
    """Clocks differ; `clock_tolerance_s` is the limit."""
    received = message(time=str(time.time() + 100))

    assert make_frame(received, clock_tolerance_s=3600).captured_at > time.time()


def test_qos_0_frames_expire_by_default_and_qos_1_frames_only_if_configured() -> None:
    qos0, durable = (Delivery(message(qos=qos), "", 0, None) for qos in (0, 1))
    assert qos0.expires_at == qos0.message.received_at + QOS0_MAX_AGE_S
    assert durable.expires_at == float("inf")

    durable.expire_in(3)
    assert durable.expires_at == durable.message.received_at + 3
    durable.expire_in(60)
    assert durable.expires_at == durable.message.received_at + 3


def test_an_oversized_or_malformed_message_is_refused() -> None:
    received = message(b"")
    received.oversized = 5000
    assert (message_error(received, 1000) or FrameError("")).code == "payload-too-large"
    received = message()
    received.malformed = "its topic is no UTF-8"
    assert (message_error(received, 1000) or FrameError("")).code == "malformed-message"
    assert message_error(message(), 1000) is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.replace("00-", "cc-", 1), TRACE),
        (f"cc{TRACE[2:]}-what-the-future-will-be", TRACE),
        (f"{TRACE}-extra", None),
        (f"ff{TRACE[2:]}", None),
        (TRACE.upper(), None),
        (TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), None),
        (TRACE.replace("00f067aa0ba902b7", "0" * 16), None),
        (TRACE[:-1], None),
        (f" {TRACE}", None),
        (f"{TRACE}\n", None),
        (TRACE.replace("4", "４"), None),
        ("", None),
        ("x" * 65_000, None),
        (f"cc{TRACE[2:]}-{'x' * 65_000}", None),
    ],
)
def test_a_trace_context_is_valid_and_short_or_ignored_and_counted(sent: str, kept: str | None) -> None:
    """Results repeat it: 65,000 characters from a sensor would be in each, and no collector could read them."""
    events: list[str] = []
    maker = FrameMaker(config())
    maker.on_event = lambda kind, _: events.append(kind)
    for received in (message(traceparent=sent), message(envelope(sent), content_type=ENVELOPE)):
        frame = maker.complete(bare(maker, received), received)
        assert frame.traceparent == kept
    assert set(events) == (set() if kept else {"traceparent-ignored"})


def envelope(traceparent: str) -> bytes:
    return bytes(msgpack.packb({"payload": b"x", "traceparent": traceparent}))


def test_a_content_type_without_end_is_refused() -> None:
    """Results and dead letters repeat it."""
    received = message(content_type="x/" + "y" * 2000)
    with pytest.raises(FrameError, match="2002 bytes"):
        make_frame(received)


STATED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an id": {"id": "mine"},
    "an id to refuse": {"id": "a\nb"},
    "a time": {"time": "2026-05-04T12:00:00Z"},
    "a bad time": {"time": "yesterday"},
    "the future": {"time": "9999999999"},
    "a trace": {"traceparent": TRACE},
    "a trace of a later version": {"traceparent": f"01{TRACE[2:]}-more"},
    "a bad trace": {"traceparent": "00-x"},
    "the content type": {"content_type": "Audio/L16"},
    "a rate": {"content_type": "audio/l16; rate=8000"},
    "another content type": {"content_type": "image/jpeg"},
    "a content type to refuse": {"content_type": "a\tb"},
    "an envelope": {"content_type": ENVELOPE, "payload": pack_envelope(b"inside", content_type="audio/l16", id="e")},
    "a bad envelope": {"content_type": ENVELOPE},
    "all": {"id": "all", "time": "1777896000", "traceparent": TRACE, "content_type": "audio/l16"},
}


@pytest.mark.parametrize("content_type", ["audio/l16", "audio/l16; rate=8000", ENVELOPE, None])
@given(st.lists(st.tuples(st.sampled_from(sorted(STATED)), st.sampled_from([0, 1]), st.integers(0, 30)), max_size=6))
def test_frames_of_a_list_are_the_same_as_columns(content_type: str | None, sent: list[tuple[str, int, int]]) -> None:
    """Only what is unlike most, or has something wrong, becomes a frame of its own."""
    deliveries = []
    for number, (what, qos, stream) in enumerate(sent):
        received = message(**{"payload": b"payload", **STATED[what]}, qos=qos)
        deliveries.append(Delivery(received, f"s/{stream}", number, None))

    def made(columns: bool) -> tuple[MadeFrames, list[Any], list[Any]]:
        maker = FrameMaker(config(content_type=content_type))
        events: list[Any] = []
        maker.on_event = lambda kind, detail: events.append((kind, detail))
        maker._run_id = "run"
        maker._id = lambda received: f"{received.qos}-{received.packet_id}"  # type: ignore[method-assign] - counts otherwise
        made = maker.frames(deliveries, 1.5, columns=columns)
        told = {at: ("failed", repr(frame), error.code) for at, frame, error in made.failed}
        for at in (*made.rows, *made.owners):
            frame = made.frame(at)
            told[at] = tuple([getattr(frame, name) for name in Frame.__slots__])  # type: ignore[assignment]
        return made, [told[at] for at in range(len(sent))], events

    one_by_one, expected, events = made(columns=False)
    columns, found, columns_events = made(columns=True)

    assert found == expected
    assert columns_events == events
    assert not one_by_one.rows
    assert sorted([*columns.rows, *columns.owners, *[at for at, *_ in columns.failed]]) == list(range(len(sent)))
    if len({stream for *_, stream in sent}) < len(sent):
        assert not columns.rows, "two frames of one stream"


def test_one_sensor_with_another_content_type_does_not_take_the_columns_from_the_others() -> None:
    """Even if its frame is the first of the list; nor do envelopes, or what has something wrong."""
    whats = ["another content type", "an envelope", "a bad time", "the content type", "nothing", "an id"]
    deliveries = [Delivery(message(**{"payload": b"x", **STATED[what]}), what, 0, None) for what in whats]
    made = FrameMaker(config(content_type="audio/l16")).frames(deliveries, 0.0, columns=True)

    assert [whats[at] for at in made.rows] == ["the content type", "nothing", "an id"]
    assert [whats[at] for at in made.owners] == ["another content type", "an envelope"]
    assert [whats[at] for at, *_ in made.failed] == ["a bad time"]
