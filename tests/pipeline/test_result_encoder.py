"""Published results and dead letters: payload and properties as a subscriber sees them."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest

from hedgerow import Frame, FrameError
from hedgerow.bus.properties import PublishProperties
from hedgerow.config import PublishSection
from hedgerow.pipeline.result_encoder import Encoded, ResultEncoder
from hedgerow.topics import Address
from hedgerow.wire.messages import JSON, MSGPACK
from hedgerow.wire.trace import trace_child

MODELS = [{"name": "door", "digest": "abc", "backend": "onnxruntime", "device": "CPU"}]


def encoder(**publish: Any) -> ResultEncoder:
    return ResultEncoder(Address("r", "s", "n"), "doors", PublishSection(**publish), "c0ffee", MODELS)


def encode(*frames: Frame, **publish: Any) -> list[Encoded]:
    result_encoder = encoder(**publish)
    return result_encoder.results(frames, result_encoder.lineage([("decode", 0.0015, 3)]), 0.25, 1777896000.0)


def user(encoded: Encoded) -> dict[str, str]:
    return dict(PublishProperties(encoded.properties).user_properties)


def test_a_json_result_contains_the_result_its_frame_and_its_lineage() -> None:
    (result,) = encode(Frame(id="f1", stream="door", result={"open": np.bool_(True)}))
    body = json.loads(result.payload)

    assert (body["schema"], body["id"], body["pipeline"], body["result"]) == (
        "hedgerow.result/1",
        "f1",
        "doors",
        {"open": True},
    )
    assert body["lineage"]["models"] == MODELS
    assert body["lineage"]["stages"] == [["decode", 1.5, 3]]
    assert (body["lineage"]["config"], body["lineage"]["waited_ms"]) == ("c0ffee", 250)
    assert PublishProperties(result.properties).content_type == JSON


@pytest.mark.parametrize(
    ("fields", "result", "out"),
    [
        ({}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"keep": ["a", "z"]}, {"a": 1, "b": 2}, {"a": 1}),
        ({"drop": ["a", "z"]}, {"a": 1, "b": 2}, {"b": 2}),
        ({"keep": []}, {"a": 1}, {}),
        ({"keep": ["a"]}, [1, 2], {}),
        ({"keep": ["a"]}, b"a picture", {}),
        ({"drop": ["a"]}, [1, 2], [1, 2]),
    ],
)
def test_only_the_configured_fields_are_published(fields: dict[str, Any], result: Any, out: Any) -> None:
    (encoded,) = encode(Frame(id="f1", stream="door", result=result), fields=fields)

    assert json.loads(encoded.payload)["result"] == out
    assert json.loads(encoded.payload)["frame"]["stream"] == "door"


def test_a_result_carries_cloudevents_attributes() -> None:
    (result,) = encode(Frame(id="f1", stream="door", result=1), expiry_s=60)

    assert user(result) == {
        "specversion": "1.0",
        "source": "/hedgerow/r/s/n/doors",
        "type": "hedgerow.result",
        "config": "c0ffee",
        "model": "door@abc",
        "id": "f1",
        "time": "2026-05-04T12:00:00.000Z",
        "subject": "door",
    }
    assert PublishProperties(result.properties).expiry_s == 60


def test_results_can_be_messagepack() -> None:
    (result,) = encode(Frame(id="f1", result={"crop": b"\xff"}), format="msgpack")

    assert msgpack.unpackb(result.payload)["result"] == {"crop": b"\xff"}
    assert PublishProperties(result.properties).content_type == MSGPACK


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_published_unchanged(kind: Any) -> None:
    (picture,) = encode(Frame(id="f1", content_type="image/jpeg", result=kind(b"\xff\xd8")))
    (untyped,) = encode(Frame(result=kind(b"")))

    assert (picture.payload, picture.content_type) == (b"\xff\xd8", "image/jpeg")
    assert user(picture)["id"] == "f1"
    assert untyped.content_type == "application/octet-stream"


def test_each_result_of_a_frame_has_its_own_id() -> None:
    assert [user(result)["id"] for result in encode(*[Frame(id="f1", result=n) for n in range(3)])] == [
        "f1",
        "f1/1",
        "f1/2",
    ]


def test_a_trace_context_is_continued() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    child = user(encode(Frame(traceparent=parent, result=1))[0])["traceparent"]

    assert (child[:36], child[52:]) == (parent[:36], "-01")
    assert child != parent
    assert trace_child("something else") == "something else"


@pytest.mark.parametrize(
    "frame",
    [
        Frame(result=object()),
        Frame(result=2**70),
        Frame(id="x" * 70_000, result=1),
        Frame(id="a\0b", result=1),
        Frame(stream="x" * 70_000, result=1),
        Frame(traceparent="x" * 70_000, result=1),
        Frame(id="\udcff", result=1),
        Frame(tensors=5),  # type: ignore[arg-type]
    ],
    ids=["object", "huge-number", "long-id", "nul-id", "long-stream", "long-trace", "surrogate", "tensors"],
)
def test_a_result_that_cannot_be_encoded_is_a_frame_error(frame: Frame) -> None:
    """It must not end the lane."""
    with pytest.raises(FrameError) as caught:
        encode(frame)

    assert caught.value.code == "unserialisable-result"


def test_a_dead_letter_has_its_reason_as_a_user_property() -> None:
    letter = encoder().dead(Frame(id="f1"), FrameError("torn", code="bad-jpeg"), "decode")

    assert user(letter) == {"reason": "bad-jpeg"}
    assert json.loads(letter.payload)["stage"] == "decode"


@pytest.mark.parametrize("code", ["x" * 70_000, "a\0b", "\udcff"])
def test_an_error_with_an_invalid_code_is_dead_lettered(code: str) -> None:
    assert user(encoder().dead(Frame(), FrameError("torn", code=code), ""))["reason"]
