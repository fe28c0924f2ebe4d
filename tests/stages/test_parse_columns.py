"""`parse` gives the same for columns as for single frames, whatever sensors send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow import Frame, FrameBatch, Irregular
from hedgerow.stages.parse import Parse, ParseConfig
from hedgerow.testing.kit import run_stage

NUMBERS = st.one_of(
    st.floats(-100, 100).map(repr),
    st.integers(-50, 50).map(str),
    st.sampled_from(["16777217", "16777216.0", "9007199254740993", "1e300", "18446744073709551616", "-0", "1e-400"]),
)
OTHERS = st.sampled_from(
    ["true", "false", "null", "NaN", '"1.5"', '"north"', "[1, 2]", "[1.5]", "{}", '{"v": 2.5}', "-inf"]
)
VALUES = st.one_of(NUMBERS, NUMBERS, NUMBERS, OTHERS)
FIELDS = st.dictionaries(st.sampled_from(["a", "b", "c", "hz"]), VALUES, min_size=1, max_size=4)
TEXTS = st.one_of(
    FIELDS.map(lambda fields: "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}"),
    st.sampled_from(
        ["", "{", "[1, 2]", "7", '{"a": 1, "a": 2, "b": 3}', '{"a": 1.5, "b": 2.5}', '{"a": 1.5, "b": 2.5}']
    ),
)
SETTINGS: list[dict[str, Any]] = [
    {"field": ["a", "b"]},
    {"field": "a"},
    {"field": ["a", "b"], "dtype": "float32"},
    {"field": ["a", "b"], "dtype": "float64", "missing": -1.5},
    {"field": ["b", "a.v"], "missing": "drop"},
    {"field": "a", "dtype": "float16", "missing": 3},
    {"field": "a", "dtype": "int32"},
    {"field": ["a", "b"], "text": True},
    {"tensors": {"x": "a", "y": "b"}},
    {"tensors": {"x": "a"}, "dtype": "float32", "meta": {"rate": "hz", "of": "c"}},
    {"field": "a", "time": "c", "time_unit": "ms"},
]


def shown(frame: Frame) -> Any:
    array = frame.array if frame.has_array else np.zeros(0)
    arrays = {"": array, **frame.tensors}
    values = {name: (str(each.dtype), each.shape, each.tobytes()) for name, each in arrays.items()}
    return frame.stream, values, repr(dict(frame.fields)), repr(dict(frame.meta)), frame.captured_at


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_columns_give_the_same_arrays_fields_and_errors(settings: dict[str, Any], texts: list[str]) -> None:
    given_frames = [
        Frame(text.encode(), id=f"f{n}", stream=f"s{n}", topic="t", content_type="application/json", captured_at=1.0)
        for n, text in enumerate(texts)
    ]

    one_by_one = run_stage(Parse, given_frames, together=False, **settings)
    as_columns = run_stage(Parse, given_frames, columns=True, **settings)

    assert sorted(map(shown, as_columns.out), key=repr) == sorted(map(shown, one_by_one.out), key=repr)
    assert as_columns.dropped == one_by_one.dropped
    assert sorted(map(str, as_columns.errors)) == sorted(map(str, one_by_one.errors))


def test_plain_telemetry_runs_as_columns() -> None:
    """And what is not plain leaves alone."""
    texts = [f'{{"a": {n}.5, "b": {n}, "name": "x"}}' for n in range(5)] + [
        '{"a": 1.5}',
        '{"a": 1e9, "b": 2}',
        '{"a": 1.5, "b": null}',
    ]
    given_frames = [
        Frame(text.encode(), stream=f"s{n}", content_type="application/json") for n, text in enumerate(texts)
    ]

    run = run_stage(Parse, given_frames, columns=True, field=["a", "b"], dtype="float32")

    assert run.columns == {"Parse": 5}
    assert len(run.out) == 6
    assert run.dead == {"missing-field": 1, "missing-value": 1}
    assert run.out[3].fields == {"name": "x"}


def test_lists_are_left_to_frames_before_all_are_decoded() -> None:
    stage = Parse(ParseConfig(field="a"))
    stage.setup(None)  # type: ignore[arg-type]
    frames = [Frame(b'{"a": [1, 2]}', stream=f"s{n}", content_type="application/json") for n in range(4)]
    batch = FrameBatch.of(frames)
    assert batch is not None

    with pytest.raises(Irregular):
        stage.process_batch(batch)
