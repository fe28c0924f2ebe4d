"""The `parse` stage: payloads become arrays; an invalid payload fails only its own frame."""

from __future__ import annotations

import io
import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import FrameError
from hedgerow.errors import ConfigError
from hedgerow.stages.parse import Parse
from hedgerow.testing import frame, run_stage

NPY = "application/x-npy"


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def parsed(payload: bytes, content_type: str = "", **config: Any) -> Any:
    run = run_stage(Parse, [frame(payload, content_type=content_type)], **config)
    assert run.dead == {}, run.errors
    return run.out[0]


def error_code(payload: bytes, content_type: str = "", **config: Any) -> str:
    """The error code of a frame; checks that another frame in the list is unaffected."""
    good = {
        "npy": npy(np.ones(2)),
        "json": b"[1, 2]",
        "msgpack": msgpack.packb([1, 2]),
        "csv": b"1,2",
        "raw": bytes(8),
    }
    kind = config.get("format", "auto")
    neighbour = frame(good["json" if kind == "auto" else kind], content_type="application/json")
    if "field" in config:
        neighbour = frame(json.dumps({config["field"]: [1, 2]}), content_type="application/json")
    run = run_stage(Parse, [frame(payload, content_type=content_type), neighbour], **config)
    assert len(run.out) == 1, run.errors
    assert all(isinstance(error, FrameError) for error in run.errors)
    ((code, count),) = run.dead.items()
    assert count == 1
    return code


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (npy(np.array([1.5, 2.0], np.float32)), NPY),
        (b"[1.5, 2.0]", "application/json"),
        (msgpack.packb([1.5, 2.0]), "application/msgpack"),
        (msgpack.packb([1.5, 2.0]), "application/x-msgpack"),
        (b"1.5,2.0\n", "text/csv"),
    ],
)
def test_the_content_type_selects_the_parser(payload: bytes, content_type: str) -> None:
    array = parsed(payload, content_type).array

    assert array.dtype == np.float32
    assert array.tolist() == [1.5, 2.0]


def test_raw_bytes_are_numbers_of_the_configured_type() -> None:
    assert parsed(np.array([1, -2], "<i2").tobytes(), format="raw", dtype="int16").array.tolist() == [1, -2]
    assert parsed(np.array([0.5], "<f4").tobytes(), format="raw").array.tolist() == [0.5]


def test_numbers_are_converted_to_the_configured_type() -> None:
    assert parsed(b"[1, 2]", "application/json", dtype="float32").array.dtype == np.float32
    assert parsed(npy(np.array([1], ">i4")), NPY, dtype="int32").array.dtype == np.dtype("int32")


def test_lines_of_csv_are_rows() -> None:
    assert parsed(b"1,2\r\n3,4\r\n", "text/csv").array.tolist() == [[1, 2], [3, 4]]


def test_a_field_contains_the_numbers_and_other_fields_stay_apart_from_meta() -> None:
    out = parsed(b'{"x": [1, 2], "unit": "mm", "nr": 7}', "application/json", field="x")

    assert out.array.tolist() == [1, 2]
    assert out.fields == {"unit": "mm", "nr": 7}
    assert out.meta == {}


@pytest.mark.parametrize("name", ["array", "self", "frame", "meta", "x y", ""])
def test_fields_may_have_any_name(name: str) -> None:
    out = parsed(json.dumps({"x": [1], name: 5}).encode(), "application/json", field="x")

    assert out.fields == {name: 5}


@pytest.mark.parametrize(
    ("payload", "content_type", "config", "code"),
    [
        (b"", "application/json", {}, "empty-payload"),
        (b"[1]", "", {}, "unknown-content-type"),
        (b"[1]", "image/jpeg", {}, "unknown-content-type"),
        (b"[1", "application/json", {}, "bad-json"),
        (b"[NaN]", "application/json", {}, "missing-value"),
        (b"\xc1", "application/msgpack", {}, "bad-msgpack"),
        (b"\x91" * 5000, "application/msgpack", {}, "bad-msgpack"),
        (b"[[1], [1, 2]]", "application/json", {}, "ragged-array"),
        (b'["a"]', "application/json", {}, "not-numbers"),
        (b'{"a": 1}', "application/json", {}, "not-numbers"),
        (b'{"a": 1}', "application/json", {"field": "x"}, "missing-field"),
        (b"[1]", "application/json", {"field": "x"}, "missing-field"),
        (b"1,2\n3", "text/csv", {}, "bad-csv"),
        (b"1,two", "text/csv", {}, "bad-csv"),
        (b" \n ", "text/csv", {}, "bad-csv"),
        (b"1\xff", "text/csv", {}, "bad-csv"),
        (b"\x93NUMPY\x01\x00", NPY, {}, "bad-npy"),
        (npy(np.ones(9))[:-3], NPY, {}, "truncated-array"),
        (b"\0\0\0", "", {"format": "raw"}, "truncated-array"),
        (npy(np.ones(9)), NPY, {"max_bytes": 64}, "array-too-large"),
        (b"[1, 2e300]", "application/json", {"dtype": "uint8"}, "out-of-range"),
        (b"[300]", "application/json", {"dtype": "uint8"}, "out-of-range"),
    ],
)
def test_only_the_frame_with_the_invalid_payload_is_dead_lettered(
    payload: bytes, content_type: str, config: dict[str, Any], code: str
) -> None:
    assert error_code(payload, content_type, **config) == code


@given(st.binary(max_size=200), st.sampled_from([NPY, "application/json", "application/msgpack", "text/csv"]))
def test_any_payload_gives_an_array_or_a_frame_error(payload: bytes, content_type: str) -> None:
    """Never a failure of the stage, which would count for its circuit breaker."""
    run = run_stage(Parse, [frame(payload, content_type=content_type)])

    assert len(run.out) + len(run.errors) == 1
    assert all(isinstance(error, FrameError) for error in run.errors)
    assert all(out.array.dtype.kind in "biufc" for out in run.out)


def test_nan_in_npy_is_accepted() -> None:
    """The stage that runs the model decides what NaN means."""
    assert np.isnan(parsed(npy(np.array([np.nan])), NPY).array).all()


def test_an_unknown_format_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="format"):
        run_stage(Parse, [], format="xml")
