"""Conversion of arrays: every value as it was, or a refusal that names the value and a dtype that holds it."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hedgerow import FrameError
from hedgerow.wire.numbers import ArrayReader, convert

DTYPES = st.sampled_from(
    [np.dtype(name) for name in ("f2", "f4", "f8", "i1", "u1", "i2", "i4", "i8", "u8", ">i4", ">f8")]
)


def outcome(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    with contextlib.suppress(FrameError):
        return convert(array, dtype)
    return None


@example(np.array([-np.inf], np.float16), np.dtype(np.int32))
@given(DTYPES.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=2, max_side=3))), DTYPES)
def test_whole_numbers_survive_exactly_and_others_are_rounded_once(
    array: np.ndarray[Any, Any], dtype: np.dtype[Any]
) -> None:
    converted = outcome(array, dtype)

    if converted is None:
        return
    assert (converted.dtype, converted.shape) == (dtype, array.shape)
    for before, after in zip(array.reshape(-1).tolist(), converted.reshape(-1).tolist(), strict=True):
        if not math.isfinite(before):
            assert after == before or (math.isnan(after) and math.isnan(before))
        elif array.dtype.kind != "f" or dtype.kind != "f":
            assert Fraction(after) == Fraction(before)
        else:
            with np.errstate(all="ignore"):
                assert after == float(dtype.type(before))


@given(st.integers(-(2**63), 2**64 - 1), DTYPES)
@example(-(2**63), np.dtype(np.float16))
def test_a_whole_number_is_refused_only_if_the_dtype_lacks_it(number: int, dtype: np.dtype[Any]) -> None:
    array = np.array([number])
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            nearest = float(np.array([number], np.float64).astype(dtype)[0])
        held = math.isfinite(nearest) and int(nearest) == number
    else:
        held = np.iinfo(dtype).min <= number <= np.iinfo(dtype).max

    assert (outcome(array, dtype) is not None) == held


@pytest.mark.parametrize(
    ("value", "dtype", "remedy"),
    [
        ([300], "uint8", "Set `dtype: float64`."),
        ([2**53 + 1], "float64", "Set `dtype: int64`."),
        ([2**63 + 1], "float64", "Set `dtype: uint64`."),
        ([2**64 + 1], "float64", "Send a number of at most 64 bits, or one with an exponent."),
    ],
)
def test_the_remedy_names_a_dtype_that_holds_the_value(value: list[int], dtype: str, remedy: str) -> None:
    with pytest.raises(FrameError) as caught:
        ArrayReader(np.dtype(dtype)).array(value)

    assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([[1, 2], [3]], "ragged-array"),
        (["a"], "not-numbers"),
        ({"a": 1}, "not-numbers"),
        (None, "missing-value"),
        ([1, None], "missing-value"),
        (b"ab", "not-numbers"),
        ([1, object()], "not-numbers"),
    ],
)
def test_anything_but_an_array_of_numbers_is_refused(value: Any, code: str) -> None:
    with pytest.raises(FrameError) as caught:
        ArrayReader().array(value)

    assert caught.value.code == code


def test_without_a_dtype_fractions_become_float32_and_whole_numbers_stay() -> None:
    read = ArrayReader().array

    assert read([0.5, 1]).dtype == np.float32
    assert read([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert read([True]).dtype == np.bool_
    assert read(5).tolist() == [5]
