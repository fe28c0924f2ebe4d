"""Published results and dead letters: payload and properties as a subscriber sees them."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Frame, FrameBatch, FrameError
from hedgerow.bus.properties import PublishProperties
from hedgerow.config import PublishSection
from hedgerow.pipeline import result_encoder as encoder_module
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


class Unpublishable:
    """Raises whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


VALUES: dict[str, Any] = {
    "number": 0.1,
    "float32": np.float32(0.1),
    "text": 'a "quoted" null',
    "nothing": None,
    "NaN": {"scores": [1.0, float("nan")]},
    "infinite": np.array([np.inf]),
    "array": np.arange(3, dtype=">f4"),
    "map": {"a": 1, "b": {"c": None}},
    "map by number": {1: "a", 2.5: "b"},
    "map by clashing keys": {1: "a", "1": "b"},
    "bytes": b"picture",
    "bytes inside": {"crop": memoryview(b"x")},
    "set": {"b", "a"},
    "too large": 2**70,
    "no value": object(),
    "raises": Unpublishable(),
}
COLUMNS: dict[str, list[Any]] = {
    "float32": [np.float32(0.1), np.float32(2)],
    "numbers": [1, 2.5],
    "booleans": [True, None],
    "texts": ["a,b", "null"],
    "NaN in one": [1.0, float("nan")],
    "too large in one": [1, 2**70],
    "maps": [{"a": 1}, {2: "b"}],
}
ARRAYS: dict[str, Any] = {
    "f4": np.array([0.1, 2], "<f4"),
    "big-endian": np.array([0.1, 2], ">f4"),
    "booleans": np.array([True, False]),
    "vectors": np.arange(6.0).reshape(2, 3),
    "infinite in one": np.array([[1.0], [np.inf]]),
    "objects": np.array([{"a": 1}, None], object),
}
IDS = ["id", 'q"uoted', "ö", "a\0b", "\udcff", "x" * 70_000]


def rows(draw: Any) -> FrameBatch:
    """Two rows that differ in what may be in a result."""
    batch = FrameBatch(
        [b"one", b"two"],
        ids=tuple(draw(st.sampled_from(IDS)) for _ in range(2)),
        streams=("s/1", draw(st.sampled_from(['s/"2"', "s/null", "x" * 70_000]))),
        topics=["t/1", "t/2"],
        sequences=[0, draw(st.sampled_from([7, 2**70]))],
        captured_at=[0.5, draw(st.sampled_from([1777896000.123, float("nan")]))],
        content_type="image/jpeg",
        traceparents=draw(st.sampled_from([None, [None, f"00-{'a' * 32}-{'b' * 16}-01"], ["odd", "a\0"]])),
        meta=draw(st.sampled_from([{}, {"rate": 8000.0}])),
    )
    if draw(st.booleans()):
        batch = batch.with_tensors(
            {name: ARRAYS[name] for name in draw(st.lists(st.sampled_from(list(ARRAYS)), max_size=3))}
        )
    kind = draw(st.sampled_from(["results", "columns", "none"]))
    if kind == "results":
        return batch.with_results([VALUES[draw(st.sampled_from(list(VALUES)))] for _ in range(2)])
    if kind == "columns":
        chosen = draw(st.lists(st.sampled_from(list(COLUMNS)), max_size=3, unique=True))
        arrays = draw(st.lists(st.sampled_from(list(ARRAYS)), max_size=2, unique=True))
        named = {name: COLUMNS[name] for name in chosen} | {f"array {name}": ARRAYS[name] for name in arrays}
        return batch.with_result_columns(**named)
    return batch


@pytest.mark.parametrize("fewest", [1, 3])
@given(
    st.data(),
    st.sampled_from(["json", "msgpack"]),
    st.sampled_from([{}, {"keep": ["a", "text", "numbers"]}, {"drop": ["a", "maps"]}, {"keep": []}]),
    st.booleans(),
)
def test_the_results_of_a_batch_are_those_of_its_frames_byte_by_byte(
    fewest: int, data: st.DataObject, form: str, fields: dict[str, Any], doubtful: bool
) -> None:
    """And what cannot be encoded is refused alike, for that row only."""
    batch = rows(data.draw)
    both = encoder(format=form, fields=fields, expiry_s=60)
    timings, waited_s = [("decode", 0.0015, 3)], [0.25, 1 / 3]
    clock = {"clock": "doubtful"} if doubtful else {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoder_module, "_FEWEST_COLUMNS", fewest)
        patched.setattr(encoder_module, "trace_child", lambda parent: f"child of {parent}")
        expected: list[Any] = []
        for row in range(len(batch)):
            try:
                expected += both.results(
                    [batch.frame(row)], {**both.lineage(timings), **clock}, waited_s[row], 1777896000.25
                )
            except FrameError as error:
                expected.append((error.code, str(error), error.remedy))
        found = both.batch(batch, {**both.lineage(timings), **clock}, waited_s, 1777896000.25)

    assert [(each.code, str(each), each.remedy) if isinstance(each, FrameError) else each for each in found] == expected


def test_ordinary_results_do_not_become_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare frames with frames."""
    monkeypatch.setattr(encoder_module, "_FEWEST_COLUMNS", 2)
    monkeypatch.delattr(FrameBatch, "frame")
    batch = FrameBatch(
        [b"", b""], ids=("1", "2"), streams=("a", "b"), topics=["a", "b"], sequences=[1, 2], captured_at=[0.5, 1.5]
    )
    for form in ("json", "msgpack"):
        both = encoder(format=form)
        for each in (
            batch.with_results([{"a": None}, "text"]),
            batch.with_result_columns(score=np.array([0.5, 1.5]), label=["x", "y"]),
            batch.with_tensors({"x": np.ones((2, 3))}),
        ):
            assert all(isinstance(one, Encoded) for one in both.batch(each, both.lineage([]), [0.1, 0.2], 1777896000.0))
