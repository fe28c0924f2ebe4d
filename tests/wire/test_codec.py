"""Codec of frames and arrays: valid input is decoded, and any other raises FrameError."""

from __future__ import annotations

import contextlib
import io
import math
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.lib import format as npy

from hedgerow import Frame, FrameError
from hedgerow.text import refusal
from hedgerow.wire import codec, document

LIMIT = 1 << 20


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(text: str) -> bytes:
    raw = text.encode("latin1") + b"\n"
    return npy.magic(1, 0) + len(raw).to_bytes(2, "little") + raw


def code_of(read: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(FrameError) as caught:
        read(*args)
    return caught.value.code


READERS: dict[str, Callable[[bytes], Any]] = {
    "json": document.decode_json,
    "msgpack": document.decode_msgpack,
    "npy": lambda payload: codec.parse_npy(payload, LIMIT),
    "envelope": lambda payload: codec.open_envelope(Frame(payload)),
}


@pytest.mark.parametrize("reader", READERS)
@given(payload=st.binary(max_size=300))
def test_any_bytes_are_decoded_or_raise_a_frame_error(reader: str, payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        READERS[reader](payload)


@given(st.binary(max_size=120), st.binary(max_size=40))
def test_any_npy_header_is_decoded_or_raises_a_frame_error(text: bytes, rest: bytes) -> None:
    payload = npy.magic(1, 0) + len(text).to_bytes(2, "little") + text + rest
    assert code_of(codec.parse_npy, payload, LIMIT) in ("bad-npy", "truncated-array", "array-too-large")


@given(
    st.sampled_from(["<f4", "|O", "V8", "<U3", "(2,3)f4", "f4,f4", "<M8[s]", "?", ">i2", "nonsense"]),
    st.lists(st.integers(-2, 10**30), max_size=4),
    st.booleans(),
    st.binary(max_size=64),
)
def test_any_shape_in_an_npy_header_is_decoded_or_raises_a_frame_error(
    descr: str, shape: list[int], fortran: bool, rest: bytes
) -> None:
    payload = header(str({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)})) + rest
    try:
        array = codec.parse_npy(payload, LIMIT)
    except FrameError:
        return
    assert array.shape == tuple(shape)
    assert array.nbytes == len(rest)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values)
def test_messagepack_round_trips(value: Any) -> None:
    assert document.decode_msgpack(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdf\xff\xff\xff\xff\x01",  # a map of as many
        b"\xc6\xff\xff\xff\xffx",  # four gigabytes of binary
        b"\x91" * 100_000,  # nested
        b"\x81" * 100_000,
        b"\x81\x91\x01\x02",  # a list as a key
        b"\x81\x81\x01\x01\x02",  # a map as a key
        b"\xa1\xff",  # text that is not UTF-8
        b"\x00\x00",  # trailing bytes
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a time with too many nanoseconds
    ],
)
def test_a_messagepack_bomb_is_refused(payload: bytes) -> None:
    assert code_of(document.decode_msgpack, payload) == "bad-msgpack"


def test_nested_lists_of_claimed_length_use_little_memory() -> None:
    """500 nested lists, each with a claimed length of the whole payload."""
    bomb = (b"\xdd" + (60_000).to_bytes(4, "big")) * 500 + bytes(57_500)
    tracemalloc.start()
    try:
        assert code_of(document.decode_msgpack, bomb) == "bad-msgpack"
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("payload", [b"", b"{", b'{"a":1}x', b"\xff", b"[" * 5000])
def test_invalid_json_is_refused(payload: bytes) -> None:
    assert code_of(document.decode_json, payload) == "bad-json"


@given(
    npst.arrays(
        st.sampled_from([np.dtype(t) for t in ("<f4", ">f8", "u1", "<i8", "?", "<c8", "<f2")]),
        npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_an_npy_array_round_trips(array: np.ndarray[Any, Any], fortran: bool) -> None:
    original = np.asfortranarray(array) if fortran else array
    read = codec.parse_npy(npy_bytes(original), LIMIT)

    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.shape == array.shape
    assert np.array_equal(read, array, equal_nan=array.dtype.kind in "fc")


def test_an_npy_array_is_a_view_of_the_payload() -> None:
    payload = npy_bytes(np.arange(6, dtype=np.float32))
    read = codec.parse_npy(memoryview(payload), LIMIT)

    assert np.shares_memory(read, np.frombuffer(payload, np.uint8))


def test_a_pickle_in_npy_is_refused_without_unpickling() -> None:
    assert code_of(codec.parse_npy, npy_bytes(np.array([{}, None], dtype=object)), LIMIT) == "bad-npy"
    assert code_of(codec.parse_npy, b"\x80\x04\x95bad", LIMIT) == "bad-npy"


def test_an_npy_array_of_the_wrong_length_is_refused() -> None:
    payload = npy_bytes(np.zeros((4, 4), np.float32))

    assert code_of(codec.parse_npy, payload[:-1], LIMIT) == "truncated-array"
    assert code_of(codec.parse_npy, payload + b"\0", LIMIT) == "truncated-array"


def test_an_npy_header_that_claims_an_exabyte_is_refused_by_its_size() -> None:
    bomb = header(str({"descr": "<f8", "fortran_order": False, "shape": (2**30, 2**30)}))

    assert code_of(codec.parse_npy, bomb, LIMIT) == "array-too-large"


def test_an_empty_npy_array_with_a_huge_side_is_refused() -> None:
    bomb = header(str({"descr": "<f8", "fortran_order": False, "shape": (0, 10**30)}))

    assert code_of(codec.parse_npy, bomb, LIMIT) == "bad-npy"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-05-04T12:00:00Z", datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()),
        ("2026-05-04T14:00:00.250+02:00", datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp() + 0.25),
        ("1777896000.5", 1777896000.5),
    ],
)
def test_a_time_is_rfc_3339_or_unix_seconds(text: str, seconds: float) -> None:
    assert codec.timestamp(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "now", "nan", "inf", "-inf", "2026-13-01T00:00:00Z", "9" * 400, "0001-01-01", "2026-05-04T12:00:00", "1e300"],
)
def test_an_invalid_time_is_refused(text: str) -> None:
    assert code_of(codec.timestamp, text) == "bad-time"


@pytest.mark.parametrize(
    "text", ["0", "-0", "0.0", "1e-320", "-1e-5", "1970-01-01T00:00:00Z", "1970-01-01T01:00:00+01:00"]
)
def test_the_time_of_a_clock_that_is_not_set_is_refused(text: str) -> None:
    """0 stands for no time in a frame, so stages would take the frame for one without a time."""
    with pytest.raises(FrameError, match="clock is not set") as caught:
        codec.timestamp(text)
    assert caught.value.code == "bad-time"
    assert codec.timestamp("0.001") == 0.001


@pytest.mark.parametrize("unset", [0, 0.0, -0.0, 5e-324])
def test_an_envelope_without_a_time_keeps_that_of_the_arrival_but_one_with_0_is_refused(unset: float) -> None:
    outer = Frame(codec.pack_envelope(b"x", content_type="a", captured_at=unset), captured_at=7.0)
    assert code_of(codec.open_envelope, outer) == "bad-time"
    for arrival in (0.0, 7.0):
        outer = Frame(codec.pack_envelope(b"x", content_type="a"), captured_at=arrival)
        assert codec.open_envelope(outer).captured_at == arrival


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("1700000000123", "milliseconds", "1700000000.123"),
        ("1700000000123400", "microseconds", "1700000000.123"),
        ("1700000000123456789", "nanoseconds", "1700000000.123"),
    ],
)
def test_a_time_in_another_unit_is_refused_with_the_seconds_to_send(text: str, unit: str, seconds: str) -> None:
    with pytest.raises(FrameError, match=f"is a time in {unit}, not in seconds") as caught:
        codec.timestamp(text)

    assert caught.value.code == "bad-time"
    assert f"Send Unix seconds, {seconds}" in caught.value.remedy


@given(st.text(max_size=40))
def test_any_text_is_parsed_as_a_time_or_refused(text: str) -> None:
    try:
        assert math.isfinite(codec.timestamp(text))
    except FrameError:
        return


@given(
    payload=st.binary(),
    id=st.none() | st.text(min_size=1).filter(lambda text: refusal(text) is None),
    stream=st.none() | st.text(min_size=1),
    captured_at=st.none() | st.floats(-1e10, 1e10).filter(lambda at: abs(at) >= 0.001),
    sequence=st.none() | st.integers(0, 2**63),
)
def test_an_envelope_round_trips(
    payload: bytes, id: str | None, stream: str | None, captured_at: float | None, sequence: int | None
) -> None:
    packed = codec.pack_envelope(
        payload, content_type="image/jpeg", id=id, stream=stream, captured_at=captured_at, sequence=sequence
    )
    outer = Frame(packed, id="outer", stream="topic", captured_at=5.0, sequence=7)
    frame = codec.open_envelope(outer)

    assert (frame.payload, frame.content_type) == (payload, "image/jpeg")
    assert frame.id == (id or "outer")
    assert frame.stream == "topic", "the stream key has read it"
    assert frame.captured_at == (5.0 if captured_at is None else captured_at)
    assert frame.sequence == (7 if sequence is None else sequence)


def test_the_parameters_of_an_envelopes_content_type_become_meta() -> None:
    packed = codec.pack_envelope(b"", content_type="audio/l16; rate=8000; codecs=x")

    assert codec.open_envelope(Frame(packed)).meta == {"rate": "8000"}


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"payload": "text"},
        {"content_type": "a"},
        {"payload": b"", "id": 5},
        {"payload": b"", "sequence": True},
        {"payload": b"", "captured_at": "now"},
        {"payload": b"", "colour": "red"},
        {"payload": b"", 5: "red"},
        {"payload": b"", "id": "i" * 1025},
    ],
)
def test_an_invalid_envelope_is_refused(body: Any) -> None:
    assert code_of(codec.open_envelope, Frame(msgpack.packb(body))) == "bad-envelope"


def test_an_id_may_have_1024_characters() -> None:
    assert codec.open_envelope(Frame(msgpack.packb({"payload": b"", "id": "i" * 1024}))).id == "i" * 1024


def test_an_envelope_with_an_invalid_capture_time_is_refused() -> None:
    packed = msgpack.packb({"payload": b"", "captured_at": math.nan})

    assert code_of(codec.open_envelope, Frame(packed)) == "bad-time"


def test_a_frame_without_an_id_gets_the_same_one_on_redelivery() -> None:
    assert codec.frame_id("a", 1, b"x") == codec.frame_id("a", 1, memoryview(b"x"))
    different = {codec.frame_id("a", 1, b"x"), codec.frame_id("b", 1, b"x"), codec.frame_id("a", 2, b"x")}
    assert len(different | {codec.frame_id("a", 1, b"y")}) == 4


def test_a_content_type_is_split_from_its_parameters() -> None:
    assert codec.mime(" Audio/L16 ; rate=8000") == "audio/l16"
    assert codec.mime_parameters('Audio/L16; Rate=8000; note="a b"; odd') == {"rate": "8000", "note": "a b", "odd": ""}
