"""Converts decoded values to arrays of numbers: every value exactly, or not at all.

A whole number must be representable in the dtype. A number with a fraction is rounded to the dtype's precision, as everywhere;
but a large one with more digits than float32 keeps (a time, a counter) is refused unless float32 was asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from hedgerow.errors import FrameError
from hedgerow.frame import Array
from hedgerow.wire.values import Label, cleaned

FLOAT32: Final = np.dtype(np.float32)
_SHORT: Final = 4096
_FLOATS: Final = {float}
_WHOLE: Final = {int}
_BOTH: Final = {float, int}
_INTEGERS_END: Final[dict[np.dtype[Any], float]] = {
    np.dtype(np.float16): 2.0**11,
    np.dtype(np.float32): 2.0**24,
    np.dtype(np.float64): 2.0**53,
}
"""Below this, a float dtype holds every whole number."""


class RoundedError(Exception):
    """The decoder may have rounded a whole number: decode again, exactly."""


def below(dtype: np.dtype[Any] | None) -> float:
    """Return the number below which a dtype holds every whole number that is also exact in float64."""
    return _INTEGERS_END.get(FLOAT32 if dtype is None else dtype, 2.0**53)


class ArrayReader:
    """Makes arrays of what JSON, MessagePack or CSV was decoded to.

    Args:
        dtype: of the arrays; None: float32 if any number has a fraction, else int64, uint64 or bool.
        fill: takes the place of null, NaN and infinity; None: these are refused.
        text: also accept numbers written as text.
    """

    def __init__(self, dtype: np.dtype[Any] | None = None, fill: float | None = None, *, text: bool = False) -> None:
        self.dtype = dtype
        self._fill = fill
        self._text = text
        self._float = dtype or FLOAT32
        self._end = below(dtype)

    @property
    def makes_floats(self) -> bool:
        """Whether numbers with a fraction become floats, as `rows` needs: true without a dtype."""
        return self._float.kind == "f"

    def array(self, value: Any, label: Label | None = None, rounded_from: float = math.inf) -> Array:
        """Convert a number, or nested lists of numbers, to an array; one number becomes (1,).

        Args:
            value: the number or lists.
            label: names a value in errors; by default by its position.
            rounded_from: the decoder may have rounded whole numbers from here on.
        Raises:
            RoundedError: a value may have been rounded by the decoder.
            MissingValue: a value is null, NaN or infinite, and there is no `fill`.
            FrameError: it contains something else, is ragged, or a value does not fit the dtype.
        """
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError, TypeError):
            return self._checked(value, None, label or _by_position, rounded_from)
        if not array.ndim:
            array = array.reshape(1)
        kind = array.dtype.kind
        if kind == "f":
            # Proves that all numbers are finite, and so small that no whole one is rounded: most arrays end here.
            if self._float.kind == "f" and _all_below(array, self._end):
                return array.astype(self._float, copy=False)
        elif kind in "iub":
            return array if self.dtype is None else convert(array, self.dtype, label=label)
        return self._checked(value, array, label or _by_position, rounded_from)

    def rows(self, values: Sequence[Sequence[Any]], wanted: Array) -> tuple[Array, Array]:
        """Convert rows of single numbers at once, as `array` converts each of them; for a reader that `makes_floats`.

        Args:
            values: n rows of k values each.
            wanted: (n,) bool; other rows do not matter.
        Returns: (n, k); and (n,) bool, which rows are converted: others hold something else, are of another dtype than
            most, or need a closer look.
        """
        kinds = [_kind_of(row) for row in values]
        if self.dtype is not None:
            kinds = [kind and float for kind in kinds]
        counts = Counter(kind for kind, ok in zip(kinds, wanted.tolist(), strict=True) if ok and kind is not None)
        kind = max(counts, key=counts.__getitem__, default=None)
        fit = wanted & [each is kind for each in kinds] & (kind is not None)
        blank = (0.0 if kind is float else 0,) * len(values[0])
        try:
            array = np.array([row if ok else blank for row, ok in zip(values, fit.tolist(), strict=True)])
        except OverflowError:
            return np.zeros((len(values), len(blank))), np.zeros_like(fit)
        if kind is int:
            return array, fit if array.dtype == np.int64 else np.zeros_like(fit)
        fit &= ((array < self._end) & (array > -self._end)).all(axis=1)
        return np.where(fit[:, np.newaxis], array, 0).astype(self._float), fit

    def _checked(self, value: Any, array: Array | None, label: Label, rounded_from: float) -> Array:
        """Convert what needs a closer look: missing and large values, text, and what is not an array at all."""
        if array is None or array.dtype.kind != "f" or not np.isfinite(array).all():
            value = cleaned(value, label, self._fill, self._text)
            array = _numeric(value, label)
        if not array.ndim:
            value, array = [value], array.reshape(1)
        if array.dtype.kind != "f":
            return array if self.dtype is None else convert(array, self.dtype, label=label)
        size, rounds = np.abs(array), self.dtype is not None  # NaN, if `fill` is NaN, is not large
        if (size >= rounded_from).any():
            raise RoundedError
        if (size >= min(below(self._float), 2.0**53)).any():  # there may be whole numbers among the others
            return _wide(value, array, self._float, label, rounds=rounds)
        return convert(array, self._float, label=label, rounds=rounds)


def convert(array: Array, dtype: np.dtype[Any], *, label: Label | None = None, rounds: bool = True) -> Array:
    """Convert an array of numbers to another dtype.

    Args:
        array: of real numbers; NaN stays NaN.
        dtype: a real dtype.
        label: names a value in errors; by default by its position.
        rounds: whether large floats may lose digits, too.
    Raises: FrameError: a value does not fit (`out-of-range`), or is complex.
    """
    source = array.dtype
    if source == dtype or source.kind == "b":
        return array.astype(dtype, copy=False)
    if source.kind not in "iuf":
        raise FrameError(f"{source} cannot be converted to {dtype}", code="not-numbers", remedy="Send real numbers.")
    if source.kind != "f" and dtype.kind == "f" and _all_below(array.astype(np.float64), below(dtype)):
        return array.astype(dtype)
    with np.errstate(all="ignore"):
        if dtype.kind == "f":
            converted = array.astype(dtype)
            wrong = _inexact(array, converted, rounds=rounds)
        else:
            wrong = ~_fits(array, np.iinfo(dtype))
            converted = array.astype(dtype)
    if wrong.any():
        raise _unfit(array, int(np.argmax(wrong)), dtype, label or _by_position, rounds=rounds)
    return converted


def _kind_of(row: Sequence[Any]) -> type | None:
    """Return float if a row has only numbers, one of them a float; int if it has only whole numbers; None: other values."""
    kinds = {*map(type, row)}
    return float if kinds in (_FLOATS, _BOTH) else int if kinds == _WHOLE else None


def _all_below(array: Array, end: float) -> bool:
    """Return whether all numbers are finite and smaller than `end`. False may be wrong."""
    if array.size > _SHORT:  # a BLAS would start its threads
        return bool(-end < array.min() and array.max() < end)
    flat = array if array.ndim == 1 else array.reshape(-1)
    return bool(np.vdot(flat, flat) < end * end)


def _plain(value: Any) -> Array | None:
    """Return an array if it has only numbers, or only booleans, in rows of equal length."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, TypeError):
        return None
    return array if array.dtype.kind in "fiub" else None


def _numeric(value: Any, label: Label) -> Array:
    """Return lists of numbers as an array; whole numbers of more than 64 bits make it float64."""
    array = _plain(value)
    if array is None:
        try:
            return np.asarray(value, dtype=np.float64)
        except OverflowError:
            raise FrameError(
                "A number has more than 308 digits",
                code="out-of-range",
                remedy="Send a number of at most 64 bits, or one with an exponent.",
            ) from None
        except (ValueError, TypeError):
            raise _ragged(value, label) from None
    return array


def _fits(array: Array, limits: np.iinfo[Any]) -> Array:
    if array.dtype.kind == "f":
        wide = array.astype(np.float64)  # the limits are not all floats, but the powers of two beyond them are
        whole: Array = np.rint(wide) == wide
        return whole & (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    return np.logical_and(array >= limits.min, array <= limits.max)


def _inexact(array: Array, converted: Array, *, rounds: bool) -> Array:
    source, dtype = array.dtype, converted.dtype
    if source.kind == "f":
        wrong = np.isfinite(array) & ~np.isfinite(converted)
        if not rounds:
            wrong |= (np.abs(array) >= below(dtype)) & (converted != array) & ~_has_few_digits(array)
        return wrong
    limits = np.iinfo(source)
    # What was rounded up to the power of two beyond the largest has no counterpart in the source's dtype.
    wide = converted.astype(np.float64)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    inexact: Array = ~inside | (np.where(inside, wide, 0).astype(source) != array)
    return inexact


def _has_few_digits(array: Array) -> Array:
    """Return which numbers have at most the seven significant digits that float32 keeps: 3.7e12, but not 1700000000.123."""
    size = np.abs(array)
    unit = 10.0 ** (np.floor(np.log10(size, where=size > 0, out=np.zeros_like(size))) - 6)
    few: Array = np.abs(np.rint(array / unit) * unit - array) <= size * 1e-15
    return few


def _wide(value: Any, array: Array, dtype: np.dtype[Any], label: Label, *, rounds: bool) -> Array:
    """Convert an array of floats that has been made of whole numbers among others, of which some may have been rounded."""
    numbers = np.array(value, dtype=object).reshape(-1)
    flat = np.abs(array).reshape(-1)
    if dtype.kind == "f":
        converted = convert(array, dtype, label=label, rounds=rounds)
        for position, read in zip(
            np.flatnonzero(flat >= below(dtype)), converted[np.abs(array) >= below(dtype)], strict=True
        ):
            if isinstance(numbers[position], int) and float(read) != numbers[position]:
                raise _unfit(numbers.reshape(array.shape), int(position), dtype, label)
        return converted
    wide = flat >= 2.0**53
    converted = convert(np.where(wide, 0.0, array.reshape(-1)).reshape(array.shape), dtype, label=label)
    limits = np.iinfo(dtype)
    for position in np.flatnonzero(wide):
        if not limits.min <= numbers[position] <= limits.max:
            raise _unfit(numbers.reshape(array.shape), int(position), dtype, label)
    converted.reshape(-1)[wide] = [int(number) for number in numbers[wide]]
    return converted


def _unfit(array: Array, flat_position: int, dtype: np.dtype[Any], label: Label, *, rounds: bool = True) -> FrameError:
    where = label(tuple(int(index) for index in np.unravel_index(flat_position, array.shape)))
    value = array.reshape(-1)[flat_position]
    value = value.item() if isinstance(value, np.generic) else value
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        why = f"holds whole numbers from {limits.min} to {limits.max}"
    elif math.isfinite(value) and abs(value) > (largest := float(np.finfo(dtype).max)):
        why = f"ends at {largest:.3g}"
    else:
        rounded = dtype.type(value)
        why = f"would make it {int(rounded) if isinstance(value, int) else float(rounded)!r}"
    holding = next((name for name in ("float64", "int64", "uint64") if _holds(np.dtype(name), value)), None)
    remedy = f"Set `dtype: {holding}`." if holding else "Send a number of at most 64 bits, or one with an exponent."
    if not rounds and isinstance(value, float):
        remedy += f" Set `dtype: {dtype}` if seven digits are enough."
    return FrameError(f"{where} is {value!r}; {dtype} {why}", code="out-of-range", remedy=remedy)


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    if dtype.kind == "f":
        return isinstance(value, float) or float(value) == value
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max and value == int(value))


def _ragged(value: Any, label: Label) -> FrameError:
    """Return the error for lists of different lengths, which names the first two that differ."""
    position: tuple[int, ...] = ()
    while isinstance(value, list):
        sizes = [len(item) if isinstance(item, list) else None for item in value]
        other = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            first, second = (
                f"{label((*position, index))} has {'one number' if sizes[index] is None else sizes[index]}"
                for index in (0, other)
            )
            return FrameError(
                f"Not an array: {first}, {second}", code="ragged-array", remedy="Send rows of equal length."
            )
        inner = next((i for i, item in enumerate(value) if isinstance(item, list) and _plain(item) is None), None)
        if inner is None:
            break
        position, value = (*position, inner), value[inner]
    return FrameError(
        "Not an array: the lists differ in length", code="ragged-array", remedy="Send rows of equal length."
    )


def _by_position(position: tuple[int, ...]) -> str:
    return "Value " + "".join(f"[{index}]" for index in position) if position else "The payload"
