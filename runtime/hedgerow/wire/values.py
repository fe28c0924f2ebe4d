"""Goes through decoded values: fills in what is missing, converts text, and says where something is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from hedgerow.errors import FrameError

Label = Callable[[tuple[int, ...]], str]
"""Names the value at a position, for error messages: `(1, 0)` → `v[1][0]`."""

_DEEPEST: Final = 32
_NO_VALUE: Final = frozenset({"", "null", "none", "n/a", "na", "unavailable", "unknown"})
"""Texts that stand for a missing number; the last two are Home Assistant's."""


class MissingValue(FrameError):
    """A value is null, not a number (NaN), infinite or absent, or it is not clear which of several it is."""

    code = "missing-value"


class _WrongValueError(Exception):
    """A value that is no number; its position is collected on the way out."""

    def __init__(self, code: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.code, self.remedy = code, remedy
        self.position: list[int] = []


def cleaned(value: Any, label: Label, fill: float | None, text: bool) -> Any:
    """Return the value with missing numbers filled in and text converted.

    Raises: FrameError: it contains anything else.
    """
    try:
        return _clean(value, fill, text, _DEEPEST)
    except _WrongValueError as error:
        where = label(tuple(reversed(error.position)))
        if error.code == MissingValue.code:
            raise MissingValue(f"{where} is {error}", remedy=error.remedy) from None
        raise FrameError(f"{where} is {error}", code=error.code, remedy=error.remedy) from None


def _clean(value: Any, fill: float | None, text: bool, depth: int) -> Any:
    if isinstance(value, list):
        if depth == 0:
            raise _WrongValueError("ragged-array", f"nested more than {_DEEPEST} lists deep", "Send fewer levels.")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(_clean(item, fill, text, depth - 1))
            except _WrongValueError as error:
                error.position.append(index)
                raise
        return items
    if isinstance(value, str) and text:
        value = _number(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        if fill is not None:
            return fill
        what = "null" if value is None else f"{value}, not a finite number"
        raise _WrongValueError(
            MissingValue.code,
            what,
            "Mend the sensor; or set `missing` of `parse` to `drop`, or to a number to use instead.",
        )
    if isinstance(value, (int, float)):
        return value
    raise _WrongValueError("not-numbers", *_description(value))


def is_missing(text: str) -> bool:
    """Return whether a text says that there is no number."""
    return text.strip().lower() in _NO_VALUE


def _number(text: str) -> int | float | None:
    """Return the number that a text is; None if it is empty or says that there is none."""
    if is_missing(text):
        return None
    stripped = text.strip()
    if stripped.isascii() and "_" not in stripped:
        for kind in (int, float):
            try:
                return kind(stripped)
            except ValueError:
                pass
    raise _WrongValueError("not-numbers", f"{text[:40]!r}, text that is no number", "Send numbers.")


def _description(value: Any) -> tuple[str, str]:
    """Return what a value is that is no number, and what to do."""
    if isinstance(value, str):
        return (
            f"text, {value[:40]!r}",
            "Send numbers; or set `text: true` of `parse` to accept numbers written as text.",
        )
    if isinstance(value, Mapping):
        names = ", ".join(str(name)[:40] for name in list(value)[:8])
        return f"a map with {names or 'no fields'}", "Name the field with the numbers: `parse: {field: NAME}`."
    if isinstance(value, bytes):
        return f"{len(value)} bytes of binary data", "Send a list of numbers, or the bytes alone with `format: raw`."
    if isinstance(value, msgpack.ExtType):
        return f"MessagePack extension type {value.code}", "Send plain numbers."
    return f"a {type(value).__name__}", "Send numbers."
