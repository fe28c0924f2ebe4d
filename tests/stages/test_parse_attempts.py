"""Payloads as strangers send them, each with what is right: read to the last digit by the option that names it, or refused.

The payloads are new ones of kinds that once gave wrong numbers: rounded, out of range, missing, ambiguous, compressed, localised.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import math
import struct
import zlib
from datetime import UTC, datetime
from fractions import Fraction
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

JSON, MSGPACK, CSV = "application/json", "application/msgpack", "text/csv"


def attempt(name: str, payload: bytes, content_type: str, config: dict[str, Any], expected: Any) -> Any:
    """One attempt. Expected is the numbers; or, as text, the code of the refusal and a part of what it says."""
    return pytest.param(payload, content_type, config, expected, id=name)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


NUMBERS = [
    attempt("nanoseconds", b'{"t":1700000000123456789}', JSON, {"field": "t", "dtype": "int64"}, [1700000000123456789]),
    attempt("a geodetic fix", b"[-33.856784123456,151.2152967123]", JSON, {"dtype": "float64"}, [-33.856784123456, 151.2152967123]),
    attempt("a geodetic fix in CSV", b"-33.856784123456,151.2152967123", CSV, {"dtype": "float64"}, [-33.856784123456, 151.2152967123]),
    attempt("milliseconds in CSV", b"1700000000123,-1\n1700000000124,-2", CSV, {"dtype": "int64"}, [[1700000000123, -1], [1700000000124, -2]]),
    attempt("a serial number", msgpack.packb([2**64 - 1]), MSGPACK, {"dtype": "uint64"}, [2**64 - 1]),
    attempt("the smallest int64", b"[-9223372036854775808, 0]", JSON, {"dtype": "int64"}, [-(2**63), 0]),
    attempt("double in MessagePack", msgpack.packb({"v": [math.pi]}), MSGPACK, {"field": "v", "dtype": "float64"}, [math.pi]),
    attempt("single in MessagePack", b"\x91\xca" + struct.pack(">f", 0.1), MSGPACK, {}, [float(np.float32(0.1))]),
    attempt("whole numbers with a point", b"[1.0, 2.0]", JSON, {"dtype": "int32"}, [1, 2]),
    attempt("the smallest int64 as a float", b"[-9223372036854775808]", JSON, {"dtype": "float64"}, [-(2.0**63)]),
    attempt("four hundred digits", b"[1" + b"0" * 400 + b"]", JSON, {"dtype": "float64"}, "out-of-range: more than 308 digits"),
    attempt("exponents", b"[1e3, -2E-2]", JSON, {"dtype": "float64"}, [1000.0, -0.02]),
    attempt("the largest of float16", b"[65504, -0.5]", JSON, {"dtype": "float16"}, [65504.0, -0.5]),
    attempt("switches", b"[true, false]", JSON, {"dtype": "uint8"}, [1, 0]),
    attempt("a negative byte", b"[-1]", JSON, {"dtype": "uint8"}, "out-of-range: Value [0] is -1; uint8 holds whole numbers from 0 to 255"),
    attempt("half a count", b'{"n":[1,2.5]}', JSON, {"field": "n", "dtype": "int64"}, "out-of-range: `n[1]` is 2.5"),
    attempt("half a count in CSV", b"1,2\n3,4.5\n", CSV, {"dtype": "int16"}, "out-of-range: Line 2, column 1 is 4.5"),
    attempt("a counter above float32", b"[0.5, 16777219]", JSON, {}, "out-of-range: Value [1] is 16777219"),
    attempt("large numbers of few digits", b"[3.7e12, -1e30, 2.5e-7]", JSON, {}, [float(np.float32(n)) for n in (3.7e12, -1e30, 2.5e-7)]),
    attempt("a large number of many digits", b"[33333333.25]", JSON, {}, "out-of-range: Value [0] is 33333333.25; float32 would make it 33333334.0"),
    attempt("a Unix time in CSV", b"1700000000.5,1", CSV, {}, "out-of-range: Line 1, column 0 is 1700000000.5"),
    attempt("a counter above float32 that was asked for", b"[16777217, 0.0]", JSON, {"dtype": "float32"}, "out-of-range: Value [0] is 16777217; float32 would make it 16777216"),
    attempt("a number above float32 that was asked for", b"[16777217.5, 0]", JSON, {"dtype": "float32"}, [16777218.0, 0.0]),
    attempt("a counter above float64", msgpack.packb([2**53 + 3, 0.25]), MSGPACK, {"dtype": "float64"}, "out-of-range: Value [0] is 9007199254740995"),
    attempt("twenty-one digits", b"[123456789012345678901]", JSON, {"dtype": "float64"}, "out-of-range: 123456789012345678901"),
    attempt("twenty-one digits in CSV", b"123456789012345678901\n", CSV, {"dtype": "float64"}, "out-of-range: 123456789012345678901"),
    attempt("an overflow of float32", b"[3.5e38]", JSON, {"dtype": "float32"}, "out-of-range: float32 ends at 3.4e+38"),
    attempt("an overflow of float64", b"[1e999]", JSON, {"dtype": "float64"}, "missing-value: Value [0] is inf"),
    attempt("int16 of npy-like floats", b"[32768.0]", JSON, {"dtype": "int16"}, "out-of-range: Value [0] is 32768.0; int16"),
    attempt("minus infinity", b'{"a":-Infinity}', JSON, {"field": "a"}, "missing-value: `a` is -inf"),
    attempt("a null in rows", b"[[1,2],[3,null]]", JSON, {}, "missing-value: Value [1][1] is null"),
    attempt("a null in rows, filled", b"[[1,2],[3,null]]", JSON, {"missing": -1}, [[1, 2], [3, -1]]),
    attempt("an absent field, filled", b'{"a":1.5}', JSON, {"field": ["a", "b"], "missing": 0}, [1.5, 0.0]),
    attempt("an absent field of a record", b'[{"v":1},{"w":2}]', JSON, {"field": "v"}, "missing-field: no field 'v'; it has w"),
    attempt("an empty cell, filled", b"1,,3", CSV, {"missing": 0.5}, [1.0, 0.5, 3.0]),
    attempt("an empty cell", b"x,y\n1,\n", CSV, {"field": ["x", "y"]}, "missing-value: Line 2, column `y` is null"),
    attempt("a key twice, further inside", b'{"d":{"v":1,"v":2}}', JSON, {"field": "d.v"}, "duplicate-field: 'v' is there twice, as entries 1 and 2"),
    attempt("a key twice in a record", b'[{"v":1},{"v":2,"v":3}]', JSON, {"field": "v"}, "duplicate-field: 'v' is there twice"),
    attempt("a column twice", b"v,v\n1,2\n", CSV, {"field": "v"}, "duplicate-field: several columns 'v'"),
    attempt("a word as text", b'{"v":"high"}', JSON, {"field": "v", "text": True}, "not-numbers: `v` is 'high', text that is no number"),
    attempt("digits of another script", '["١٢"]'.encode(), JSON, {"text": True}, "not-numbers: text that is no number"),
    attempt("a field that looks like a path", b'{"a.b":1.5,"a":{"b":9}}', JSON, {"field": "a.b"}, [1.5]),
    attempt("a path through a list", b'{"r":[{"v":1},{"v":2}]}', JSON, {"field": "r.v"}, [1, 2]),
    attempt("columns of an accelerometer", b'{"x":[1,2],"y":[3,4],"z":[5,6]}', JSON, {"field": ["x", "y", "z"]}, [[1, 3, 5], [2, 4, 6]]),
    attempt("columns of unequal length", b'{"x":[1,2],"y":[3]}', JSON, {"field": ["x", "y"]}, "ragged-array: `x` has 2, `y` has 1"),
    attempt("a byte-order mark", b"\xef\xbb\xbf[1.5]", JSON, {}, [1.5]),
    attempt("a byte-order mark and many digits", b"\xef\xbb\xbf[100000000000000000001]", JSON, {"dtype": "float64"}, "out-of-range: 100000000000000000001"),
    attempt("a thousand lists", b"[" * 1000 + b"]" * 1000, JSON, {"field": "v"}, "missing-field: it is not a map but a list"),
    attempt("a thousand lists in a field", b'{"v":' + b"[" * 1000 + b"]" * 1000 + b"}", JSON, {"field": "v"}, "ragged-array: nested more than 32 lists deep"),
    attempt("a thousand lists beside NaN", b'{"v":[NaN],"w":' + b"[" * 5000 + b"]" * 5000 + b"}", JSON, {"field": "v"}, "bad-json: "),
    attempt("a thousand lists in a record", b'[{"v":1},' + b"[" * 1000 + b"]" * 1000 + b"]", JSON, {"field": "v"}, "missing-field: "),
    attempt("tabs", b"1.5\t2.5\n", CSV, {"delimiter": "\t"}, [1.5, 2.5]),
    attempt("tabs, unsaid", b"1.5\t2.5\n", CSV, {}, "bad-csv: '1.5\\t2.5', not a number"),
    attempt("thousands in the German way", b"1.234,5;2", CSV, {"delimiter": ";", "decimal": ","}, "bad-csv: '1.234,5', not a number"),
    attempt("thousands in the English way", b'"1,234.5",2', CSV, {}, "bad-csv: '1,234.5', not a number"),
    attempt("a quoted delimiter", b'"a,b",v\n1,2.5\n', CSV, {"field": "v"}, [2.5]),
    attempt("underscores", b"1_0,2", CSV, {}, "bad-csv: '1_0', not a number"),
    attempt("a column that is not there", b"1,2", CSV, {"field": 2}, "missing-field: There is no column 2; the lines have 2 cells"),
    attempt("Excel's separator line", b"sep=;\n1;2", CSV, {"delimiter": ";"}, "bad-csv: 'sep=', not a number"),
    attempt("gzip", gzip.compress(b"[1]", mtime=0), JSON, {}, "bad-json: gzip data"),
    attempt("zlib as MessagePack", zlib.compress(msgpack.packb([1] * 50)), MSGPACK, {}, "bad-msgpack: zlib data"),
    attempt("bzip2 as CSV", bz2.compress(b"1,2"), CSV, {}, "bad-csv: bzip2 data"),
    attempt("a column called as a file begins", b"ID3,caffeine\n1,x\n", CSV, {"field": "caffeine"}, "bad-csv: Line 2, column `caffeine` is 'x', not a number"),
    attempt("UTF-16", "[1]".encode("utf-16"), JSON, {}, "bad-json: UTF-16 text"),
    attempt("a WebP picture", b"RIFF\x10\0\0\0WEBPVP8 ", "", {}, "unknown-content-type: a WebP picture"),
    attempt("an extension type", msgpack.packb({"v": msgpack.ExtType(5, b"abc")}), MSGPACK, {"field": "v"}, "not-numbers: MessagePack extension type 5"),
    attempt("binary data in a map", msgpack.packb({"v": b"abcd"}), MSGPACK, {"field": "v"}, "not-numbers: `v` is 4 bytes of binary data"),
    attempt("SenML", b'[{"n":"t","v":21.5}]', "application/senml+json", {"field": "v"}, [21.5]),
    attempt("a failed reading of printf", b'{"temperature":nan,"humidity":-nan}', JSON, {"field": "humidity"}, "missing-value: `humidity` is nan"),
    attempt("a failed reading of printf, filled", b'{"t":[nan, 1.5, -inf]}', JSON, {"field": "t", "missing": 0}, [0.0, 1.5, 0.0]),
    attempt("a failed reading beside a good one", b'{"note":": nan, \\"inf\\"","t":nan,"h":40.5}', JSON, {"field": "h"}, [40.5]),
    attempt("a bare failed reading", b"nan", JSON, {}, "missing-value: is nan"),
    attempt("a word that is no number", b'{"t":nano}', JSON, {"field": "t"}, "bad-json: "),
    attempt("a text that is cut off", b'{"t":"nan', JSON, {"field": "t"}, "bad-json: "),
    attempt("EdgeX readings", b'{"readings":[{"resourceName":"t","value":"21.5"}]}', JSON, {"field": "readings.value", "text": True}, [21.5]),
    attempt("a Shelly switch", b'{"id":0,"switch:0":{"apower":8.5}}', JSON, {"field": "switch:0.apower"}, [8.5]),
    attempt("Zigbee2MQTT", b'{"contact":true,"temperature":27.5,"last_seen":1767222000123}', JSON, {"field": ["temperature", "contact"], "time": "last_seen", "time_unit": "ms"}, [27.5, 1.0]),
    attempt("Tasmota, whose time has no offset", b'{"Time":"2024-01-01T12:00:00","ENERGY":{"Power":12}}', JSON, {"field": "ENERGY.Power", "time": "Time"}, "bad-time: without an offset"),
    attempt("Home Assistant, unavailable", b'{"state":"unavailable"}', JSON, {"field": "state", "text": True}, "missing-value: `state` is null"),
    attempt("Home Assistant, unavailable, filled", b'{"state":"Unknown"}', JSON, {"field": "state", "text": True, "missing": -1}, [-1]),
    attempt("a state in a word", b'{"state":"ON"}', JSON, {"field": "state", "text": True}, "not-numbers: 'ON'"),
    attempt("a unit", '{"v":"21.5 °C"}'.encode(), JSON, {"field": "v", "text": True}, "not-numbers: '21.5 °C'"),
    attempt("hexadecimal", b'{"v":"0x10"}', JSON, {"field": "v", "text": True}, "not-numbers: '0x10'"),
    attempt("a decimal comma in text", b'{"v":"1,5"}', JSON, {"field": "v", "text": True}, "not-numbers: '1,5'"),
    attempt("two lines of JSON", b'{"v":1.5}\n{"v":2.5}\n', JSON, {"field": "v"}, "bad-json: "),
    attempt("a NUL at the end", b'{"v":1.5}\0', JSON, {"field": "v"}, "bad-json: "),
    attempt("Python's quotes", b"{'v':1.5}", JSON, {"field": "v"}, "bad-json: "),
    attempt("Latin-1", b'{"temp\xe9":1.5}', JSON, {"field": "temp"}, "bad-json: UTF-8"),
    attempt("JSON in a text", b'"{\\"v\\":1.5}"', JSON, {"field": "v"}, "missing-field: not a map but a str"),
    attempt("keys that are numbers", msgpack.packb({0: 1.5, 1: 2.5}), MSGPACK, {"field": 1}, [2.5]),
    attempt("text of an old encoder", b"\x81\xa1v\xa2\xff\xfe", MSGPACK, {"field": "v"}, "bad-msgpack: "),
    attempt("two messages in one", msgpack.packb([1.5]) * 2, MSGPACK, {}, "bad-msgpack: "),
    attempt("R's missing value", b"1,NA,3", CSV, {"missing": 0.5}, [1.0, 0.5, 3.0]),
    attempt("a missing value of SQL", b"1,null,3", CSV, {}, "missing-value: Line 1, column 1 is null"),
    attempt("a dash", b"1,-,3", CSV, {}, "bad-csv: '-', not a number"),
    attempt("a comma at the end", b"1,2,\n", CSV, {}, "missing-value: column 2 is null"),
    attempt("spaces between", b"1 2 3", CSV, {}, "bad-csv: '1 2 3', not a number"),
    attempt("a big-endian array", npy(np.array([1.5, 2], ">f4")), "application/x-npy", {}, [1.5, 2.0]),
    attempt("an archive of arrays", b"PK\x03\x04" + bytes(60), "application/x-npy", {}, "bad-npy: a ZIP archive"),
    attempt("a type that only the sender can mend", b"[1]", "application/vnd.acme", {}, "unknown-content-type: does not read the content type 'application/vnd.acme', which the frame states"),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "content_type", "config", "expected"), NUMBERS)
def test_a_payload_is_read_exactly_or_refused_by_name(
    payload: bytes, content_type: str, config: dict[str, Any], expected: Any
) -> None:
    run = run_stage(Parse, [frame(payload, content_type=content_type)], **config)

    if isinstance(expected, str):
        (error,) = run.errors
        code, said = expected.split(": ", 1)
        assert isinstance(error, FrameError)
        assert error.code == code
        assert said in str(error)
    else:
        assert run.errors == []
        assert run.out[0].array.tolist() == expected


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (b'{"v":[1,null]}', JSON),
        (b'{"v":[1,NaN]}', JSON),
        (b'{"v":[1],"v":[2]}', JSON),
        (b'{"w":1}', JSON),
        (msgpack.packb({"v": [1.0, math.nan]}), MSGPACK),
        (b"\x82\xa1v\x01\xa1v\x02", MSGPACK),
        (b"v\nnan\n", CSV),
    ],
)
def test_a_frame_with_a_missing_or_ambiguous_value_is_dropped_if_told_so(payload: bytes, content_type: str) -> None:
    run = run_stage(Parse, [frame(payload, content_type=content_type)], field="v", missing="drop")

    assert run.dropped == {"missing-value": 1}


def test_nan_in_binary_numbers_follows_the_policy_once_it_is_set() -> None:
    payload = np.array([1.0, np.nan], "<f4").tobytes()

    def read(**config: Any) -> Any:
        return run_stage(Parse, [frame(payload)], format="raw", **config)

    assert np.isnan(read().out[0].array[1])
    assert read(missing=7).out[0].array.tolist() == [1.0, 7.0]
    assert read(missing="drop").dropped == {"missing-value": 1}


def test_named_tensors_come_from_fields() -> None:
    for payload, content_type in ((b'{"t":21.5,"h":[40],"id":"a"}', JSON), (b"t,h\n21.5,40\n", CSV)):
        run = run_stage(
            Parse, [frame(payload, content_type=content_type)], tensors={"temp": "t", "hum": "h"}, dtype="float32"
        )

        assert {name: tensor.tolist() for name, tensor in run.out[0].tensors.items()} == {"temp": [21.5], "hum": [40.0]}
        assert {tensor.dtype for tensor in run.out[0].tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("payload", "content_type", "config", "seconds"),
    [
        (b'{"t":"2026-01-01T00:00:00+01:00","v":1}', JSON, {"time": "t"}, 1767222000.0),
        (b'{"t":1767222000123,"v":1}', JSON, {"time": "t", "time_unit": "ms"}, 1767222000.123),
        (b'{"t":"1767222000.5","v":1}', JSON, {"time": "t"}, 1767222000.5),
        (msgpack.packb({"t": msgpack.Timestamp(1767222000, 5 * 10**8), "v": 1}), MSGPACK, {"time": "t"}, 1767222000.5),
        (b"t,v\n2026-01-01T00:00:00Z,1\n", CSV, {"time": "t"}, datetime(2026, 1, 1, tzinfo=UTC).timestamp()),
    ],
)
def test_the_capture_time_comes_from_the_field_that_is_named(
    payload: bytes, content_type: str, config: dict[str, Any], seconds: float
) -> None:
    run = run_stage(Parse, [frame(payload, content_type=content_type)], field="v", **config)

    assert run.out[0].captured_at == seconds


@pytest.mark.parametrize(
    ("time", "unit", "said"),
    [
        (b"1767222000123", "s", "in milliseconds"), (b'"2026-01-01T00:00:00"', "s", "offset"), (b"true", "s", "not a time"),
        (b"null", "s", "not a time"), (b"true", "ms", "not a time"), (b"1767222000", "ms", "in 1970 as a time in `ms`"),
        (b'"1767222000"', "ms", "larger units"), (b"1767222000", "ns", "larger units"), (b"1767222000123", "us", "larger units"),
        (b'"20260101"', "s", "a date without an offset"), (b'"20260101120000"', "s", "a date without an offset"),
        (b'"20260101120000"', "ms", "a date without an offset"), (b"[1, 2]", "s", "not a time"),
        (b'"1_767_222_000"', "s", "not a time"), ('"١٧٦٧٢٢٢٠٠٠"'.encode(), "s", "not a time"),
    ],
)  # fmt: skip
def test_a_field_that_is_no_time_in_the_unit_is_refused(time: bytes, unit: str, said: str) -> None:
    sent = frame(b'{"v":1,"t":' + time + b"}", content_type=JSON)

    run = run_stage(Parse, [sent], field="v", time="t", time_unit=unit)

    assert run.dead == {"bad-time": 1}
    assert said in str(run.errors[0])


@pytest.mark.parametrize(
    ("content_type", "payload", "remedy"),
    [
        ("", b"[1]", "Set `content_type` of the pipeline"),
        ("application/x-riddle", b"[1]", "set `format` of `parse`"),
        ("image/jpeg", b"\xff\xd8\xff\xe0", "Use `decode`"),
        ("application/octet-stream", gzip.compress(b"[1]", mtime=0), "uncompressed"),
    ],
)
def test_the_remedy_for_a_content_type_is_one_that_helps(content_type: str, payload: bytes, remedy: str) -> None:
    (error,) = run_stage(Parse, [frame(payload, content_type=content_type)]).errors

    assert remedy in error.remedy
    assert ("content_type" in error.remedy) == (content_type == "")


def test_a_payload_is_named_by_its_topic_only_if_it_may_be_that() -> None:
    def message(payload: bytes) -> str:
        sent = frame(payload, content_type=JSON, topic="spBv1.0/group/NDATA/node")
        return str(run_stage(Parse, [sent]).errors[0])

    assert "Sparkplug B" in message(b"\x12\x05hello")
    assert "Sparkplug B" not in message(b'{"online": tru')


@pytest.mark.parametrize(
    "config",
    [
        {"field": "a", "tensors": {"x": "b"}},
        {"format": "raw", "field": "a"},
        {"decimal": ","},
        {"missing": "ignore"},
        {"field": []},
        {"field": -1},
    ],
)
def test_contradicting_settings_are_a_configuration_error(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run_stage(Parse, [], **config)


_WHOLE = st.integers(-(2**70), 2**70)
_NUMBERS = st.lists(_WHOLE | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5)
_DTYPES = st.sampled_from([None, "float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64"])


@given(_NUMBERS, _DTYPES)
def test_json_agrees_with_the_standard_library_or_is_refused(numbers: list[Any], dtype: str | None) -> None:
    """A whole number is exact; a number with a fraction is the nearest of its dtype."""
    payload = json.dumps(numbers).encode()

    run = run_stage(Parse, [frame(payload, content_type=JSON)], dtype=dtype)

    assert len(run.out) + run.dead.get("out-of-range", 0) == 1
    for out in run.out:
        for read, sent in zip(out.array.tolist(), json.loads(payload), strict=True):
            if isinstance(sent, int) or out.array.dtype.kind != "f":
                assert Fraction(read) == Fraction(sent)
            else:
                assert read == float(out.array.dtype.type(sent))


@given(_NUMBERS, st.sampled_from(["float64", "int64"]))
def test_csv_agrees_with_the_standard_library_or_is_refused(numbers: list[Any], dtype: str) -> None:
    text = ",".join(map(repr, numbers))

    run = run_stage(Parse, [frame(text, content_type=CSV)], dtype=dtype)

    assert len(run.out) + run.dead.get("out-of-range", 0) == 1
    for out in run.out:
        ((*cells,),) = csv.reader([text])
        for read, cell in zip(out.array.tolist(), cells, strict=True):
            assert read == (int(cell) if cell.lstrip("-").isdigit() else float(cell))
            assert Fraction(read) == Fraction(cell) or not cell.lstrip("-").isdigit()
