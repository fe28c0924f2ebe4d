"""Published messages: they round-trip, and no content prevents an error from being reported."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Frame, FrameError
from hedgerow.wire import messages as wire

HEAD = {"schema": wire.RESULT_SCHEMA, "node": "r/s/n", "pipeline": "doors"}


@pytest.mark.parametrize("encode", [wire.encode_json, wire.encode_msgpack])
def test_numpy_values_are_published_as_numbers(encode: Any) -> None:
    value = {
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "yes": np.bool_(True),
        "array": np.arange(4).reshape(2, 2),
        "reversed": np.arange(3)[::-1],
        "big-endian": np.array([1, 2], ">i4"),
        "half": np.array([0.5], np.float16),
        "set": {3, 1, 2},
        "tuple": (1, "a"),
    }
    kind = wire.JSON if encode is wire.encode_json else wire.MSGPACK

    assert wire.decode_payload(encode(value), kind) == {
        "scalar": 0.5,
        "count": 3,
        "yes": True,
        "array": [[0, 1], [2, 3]],
        "reversed": [2, 1, 0],
        "big-endian": [1, 2],
        "half": [0.5],
        "set": [1, 2, 3],
        "tuple": [1, "a"],
    }


def test_json_has_no_nan_so_it_becomes_null() -> None:
    assert json.loads(wire.encode_json({"a": math.nan, "b": np.array([1.0, math.inf])})) == {
        "a": None,
        "b": [1.0, None],
    }


def test_messagepack_keeps_nan_and_bytes() -> None:
    back = msgpack.unpackb(wire.encode_msgpack({"a": math.nan, "b": b"\0", "c": memoryview(b"x")}))

    assert math.isnan(back["a"])
    assert (back["b"], back["c"]) == (b"\0", b"x")


def test_in_json_bytes_are_base64() -> None:
    assert json.loads(wire.encode_json({"crop": b"\xff\xd8"})) == {"crop": base64.b64encode(b"\xff\xd8").decode()}


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("encode", [wire.encode_json, wire.encode_msgpack])
@pytest.mark.parametrize(
    "value",
    [object(), {"a": print}, 2**70, "\udcff", {1, "a"}, endless(), np.array([object()]), {"a": 1j}, np.complex64(1j)],
    ids=["object", "function", "huge", "surrogate", "mixed-set", "endless", "objects", "complex", "numpy-complex"],
)
def test_a_value_that_cannot_be_encoded_raises_a_frame_error(encode: Any, value: Any) -> None:
    with pytest.raises(FrameError) as caught:
        encode({"result": value})

    assert caught.value.code == "unserialisable-result"


def test_a_result_has_its_frame_and_lineage() -> None:
    frame = Frame(id="f1", stream="door", topic="plant/door", sequence=4, captured_at=5.5, result={"open": True})
    body = wire.result_body(frame, 0, HEAD, {"stages": []}, 6.5)

    assert body == {
        **HEAD,
        "id": "f1",
        "at": 6.5,
        "frame": {"id": "f1", "stream": "door", "topic": "plant/door", "sequence": 4, "captured_at": 5.5},
        "result": {"open": True},
        "lineage": {"stages": []},
    }
    assert wire.result_body(frame, 2, HEAD, {}, 6.5)["id"] == "f1/2"


def test_a_frame_without_a_result_publishes_its_tensors_or_else_its_metadata() -> None:
    bare = Frame(meta={"luma": 0.5}, fields={"luma": 9, "unit": "lx"})

    assert wire.result_of(Frame(fields={"unit": "lx"})) == {"unit": "lx"}
    assert wire.result_of(bare) == {"luma": 0.5}
    assert wire.result_of(bare.with_tensors({"y": np.ones(1)})) == {"y": np.ones(1)}
    assert wire.result_of(bare.with_result(0)) == 0


def test_a_dead_letter_has_the_reason_and_the_frame() -> None:
    frame = Frame(b"\xff\xd8", id="f1", stream="door", topic="t", content_type="image/jpeg")
    letter = json.loads(wire.dead_letter(frame, FrameError("torn", code="bad-jpeg", remedy="Look."), "decode", HEAD))

    assert letter["schema"] == wire.DEAD_SCHEMA
    assert (letter["reason"], letter["message"], letter["remedy"]) == ("bad-jpeg", "torn", "Look.")
    assert (letter["stage"], letter["frame"]["id"], letter["content_type"]) == ("decode", "f1", "image/jpeg")
    assert base64.b64decode(letter["payload_base64"]) == b"\xff\xd8"


def test_a_dead_letter_omits_a_large_payload() -> None:
    frame = Frame(bytes(wire.LARGEST_DEAD_PAYLOAD + 1))
    letter = json.loads(wire.dead_letter(frame, FrameError("x"), "", HEAD))

    assert letter["payload_bytes"] == wire.LARGEST_DEAD_PAYLOAD + 1
    assert "payload_base64" not in letter


@given(st.text(st.characters()), st.text(st.characters()))
def test_no_error_message_prevents_its_dead_letter(message: str, code: str) -> None:
    """Lone surrogates come from file names and foreign exceptions."""
    letter = json.loads(wire.dead_letter(Frame(), FrameError(message + "\udcff\0", code=code + "\udcff"), "", HEAD))

    assert "\\udcff" in letter["message"]


def test_a_payload_that_is_neither_json_nor_messagepack_is_refused() -> None:
    for payload, kind in (
        (b"{", wire.JSON),
        (b"\xc1", wire.MSGPACK),
        (b"\xa1\xff", wire.MSGPACK),
        (b"\x81\x90\x01", wire.MSGPACK),
    ):
        with pytest.raises(FrameError, match="Not a"):
            wire.decode_payload(payload, kind)


def test_messages_name_their_schema_and_omit_absent_fields() -> None:
    status = json.loads(wire.Status(state="offline", session="s", node="n", version="1").encode())
    reply = json.loads(wire.Reply(command="ping", node="n", ok=True, value={"at": np.float64(1)}).encode())

    assert status == {"schema": "hedgerow.status/1", "state": "offline", "session": "s", "node": "n", "version": "1"}
    assert reply == {"schema": "hedgerow.reply/1", "command": "ping", "node": "n", "ok": True, "value": {"at": 1.0}}


def test_times_are_formatted_as_rfc_3339() -> None:
    assert wire.rfc3339(1777896000.25) == "2026-05-04T12:00:00.250Z"
