"""Decodes JSON and MessagePack documents strictly, and finds their fields."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import msgpack
import orjson

from hedgerow.errors import FrameError
from hedgerow.frame import Buffer
from hedgerow.wire.values import MissingValue

_BOM: Final = b"\xef\xbb\xbf"
_C_NAN: Final = re.compile(rb'"(?:[^"\\]|\\.?)*+(?:"|\Z)|(?<![\w.])(-?)(nan|inf)(?![\w.])', re.IGNORECASE | re.DOTALL)
"""Texts, and what C's printf makes of a reading that failed: `{"temperature":nan}`.

A text may end with the payload: otherwise the rest would be searched again from each of its quotation marks.
"""
_SHORT: Final = 1024
"""Up to this size, searching for keys takes less time than finding out that it is not needed."""


class _DuplicateKeyError(Exception):
    """A map has a key twice."""


def decode_json(payload: Buffer, fields: Sequence[bytes] = ()) -> Any:
    """Decode JSON. NaN and Infinity, which Python's encoder writes, become floats, and so do C's nan and inf; a byte-order mark
    is skipped.

    Args:
        payload: the bytes.
        fields: keys that no map may have twice, as in JSON, with quotes.
    Raises: FrameError: it is not JSON (`bad-json`), or a key is there twice (`duplicate-field`).
    """
    data = payload if isinstance(payload, bytes) else bytes(payload)
    try:
        body = orjson.loads(data)
    except ValueError as error:
        if data.startswith(_BOM):
            return decode_json(data[len(_BOM) :], fields)
        if b"NaN" in data or b"Infinity" in data or "infinity" in str(error):
            return decode_json_exactly(data)
        if (spelled := _C_NAN.sub(_python_nan, data)) != data:
            return decode_json_exactly(spelled)
        raise FrameError(f"Not JSON: {error}", code="bad-json") from error
    if fields and (len(data) <= _SHORT or data.count(b'"') != _quotes(body)):
        maps = len(body) if body.__class__ is list else 1
        for key in fields:
            if data.count(key) > maps:
                decode_json_exactly(data)  # raises if a key is there twice: `orjson` keeps the last
                break
    return body


def _python_nan(found: re.Match[bytes]) -> bytes:
    sign, word = found[1], found[2]
    if word is None:  # a text
        return found[0]
    return b"NaN" if word[:1] in b"nN" else sign + b"Infinity"


def _quotes(body: Any) -> int:
    """Return how many quotation marks a map, or a list of maps, has at least: two for each key and each text."""
    maps = body if body.__class__ is list else [body]
    keys = sum(
        len(each) + sum(value.__class__ is str for value in each.values()) for each in maps if each.__class__ is dict
    )
    return 2 * keys


def decode_json_exactly(payload: Buffer) -> Any:
    """Decode JSON, several times slower, with whole numbers of any length, NaN and Infinity.

    Raises: FrameError: it is not JSON (`bad-json`), or a map has a key twice (`duplicate-field`).
    """
    try:
        return json.loads(str(payload, "utf-8-sig"), object_pairs_hook=_strict_map)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"Not JSON: {error}", code="bad-json") from error
    except _DuplicateKeyError as error:
        raise _twice(error) from None


def decode_msgpack(payload: Buffer) -> Any:
    """Decode MessagePack. Its timestamps become Unix seconds.

    Raises: FrameError: it is not MessagePack (`bad-msgpack`), or a map has a key twice (`duplicate-field`).
    """
    try:
        return msgpack.unpackb(payload, strict_map_key=False, timestamp=1, object_pairs_hook=_strict_map)
    except (
        ValueError,
        TypeError,
        msgpack.UnpackException,
        RecursionError,
    ) as error:  # TypeError: a list as a map's key
        raise FrameError(f"Not MessagePack: {type(error).__name__}: {error}", code="bad-msgpack") from error
    except _DuplicateKeyError as error:
        raise _twice(error) from None


def field(body: Any, name: str | int, fill: Any = None) -> Any:
    """Return a field of a document: of a map, by name or path (`data.v`); of a list of maps, the field of each.

    Args:
        body: the document.
        name: name of the field, or names of nested maps joined by dots. A field with that very name comes first.
        fill: returned for a field that is absent; None: it is an error.
    Raises:
        MissingValue: the field is absent, and there is no `fill`.
        FrameError: the document is no map, so it has no fields.
    """
    if body.__class__ is dict:
        if name in body:
            return body[name]
        head, dot, tail = str(name).partition(".")
        if dot and head in body:
            return field(body[head], tail, fill)
        if fill is not None:
            return fill
        raise MissingValue(
            f"The payload has no field {name!r}; it has {', '.join(map(str, body))[:200] or 'none'}",
            code="missing-field",
        )
    if body.__class__ is list and body and all(item.__class__ is dict for item in body):
        return [field(item, name, fill) for item in body]
    raise FrameError(
        f"The payload has no field {name!r}: it is not a map but a {type(body).__name__}",
        code="missing-field",
        remedy="Correct `field` of `parse`, or what the sensor sends; columns are numbered in CSV only.",
    )


def _strict_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: dict[Any, int] = {}
        for position, (key, _) in enumerate(pairs, 1):
            first = seen.setdefault(key, position)
            if first != position:
                raise _DuplicateKeyError(
                    f"{str(key)[:100]!r} is there twice, as entries {first} and {position} of its map"
                )
    return mapping


def _twice(error: _DuplicateKeyError) -> FrameError:
    return MissingValue(
        f"The payload is ambiguous: field {error}",
        code="duplicate-field",
        remedy="Mend the sensor: decoders disagree on which of the two counts.",
    )
