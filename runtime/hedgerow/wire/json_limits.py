"""Finds what JSON cannot express but an encoder accepts silently: NaN, infinity, and keys that become the same text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import BaseModel


def not_finite(value: Any, path: str = "") -> str | None:
    """Return where the first NaN or infinity is, which JSON would show as null: `result.scores[3] is NaN`.

    Args:
        value: what an encoder has accepted, so it has no cycles.
        path: where the value is.
    """
    import numpy as np  # a region, which encodes JSON too, does not need it

    if isinstance(value, (float, np.floating)):
        if math.isfinite(value):
            return None
        return f"{path} is {'NaN' if math.isnan(value) else 'infinite'}"
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            finite = np.isfinite(value)
            if finite.all():
                return None
            index = np.unravel_index(np.argmin(finite), value.shape)
            return not_finite(value[index], f"{path}[{', '.join(map(str, index))}]")
        if value.dtype.kind != "O":
            return None
        value = value.tolist()
    return next(filter(None, (not_finite(part, f"{path}{name}") for name, part in _parts(value))), None)


def clashing_key(value: Any) -> str | None:
    """Return the first key that becomes the same text as another of its mapping, such as 1 and "1"."""
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        seen: set[str] = set()
        for key in value:
            (text,) = orjson.loads(orjson.dumps({key: 0}, option=orjson.OPT_NON_STR_KEYS))
            if text in seen:
                return str(text)
            seen.add(text)
    return next(filter(None, (clashing_key(part) for _, part in _parts(value))), None)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value with their names."""
    if isinstance(value, dict):
        yield from ((f".{key}", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("{}", part) for part in value)
    elif isinstance(value, BaseModel):
        yield from ((f".{name}", part) for name, part in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{each.name}", getattr(value, each.name)) for each in dataclasses.fields(value))
