"""Encodes the results of a list of frames; what they have in common is encoded once.

Gives the same bytes as encoding each `result_body`. A result that needs a closer look (NaN, keys that are not strings, too
large a number) is left to `encode_json` or `encode_msgpack`. What is done per row is done by `map` and `zip`, without a loop of
our own, which would take twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import msgpack
import orjson

from hedgerow.wire.json_limits import not_finite
from hedgerow.wire.messages import plain, plain_for_msgpack

if TYPE_CHECKING:  # not at run time: batches import numpy, which a region does not need
    from hedgerow.columns.frame_batch import FrameBatch

_NUMBERS: Final = frozenset((int, float, bool))
_NO_ENTRY: Final = 0x80
_FEW_ENTRIES: Final = 15
"""Entries of a MessagePack map whose header is one byte."""
_join: Final = b"".join


def json_results(
    batch: FrameBatch,
    results: Sequence[Any] | Mapping[str, Sequence[Any]],
    head: Mapping[str, Any],
    lineage: Mapping[str, Any],
    at: float,
    waited_ms: Sequence[float],
) -> list[bytes | None]:
    """Encode a result of each row as JSON; None: it needs a closer look.

    Args:
        batch: the rows.
        results: what each publishes; or columns by name, of Python values.
        head: fields common to all results of a pipeline.
        lineage: how the results were made; `waited_ms` is added.
        at: Unix seconds.
        waited_ms: milliseconds that each frame was queued.
    Raises: TypeError, RecursionError: so do all.
    """
    count = len(batch)
    encoded = _json_columns(results) if isinstance(results, Mapping) else [*map(_json_of, results)]
    numbers = _json_numbers([*batch.sequences, *batch.captured_at, *waited_ms])
    if numbers is None:
        raise TypeError("sequence and time have to be numbers")
    sequences, captured_at, waited = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
    quoted = [*map(orjson.dumps, batch.ids)]
    closer = [row for row in range(count) if encoded[row] is None or captured_at[row] == b"null"]
    for row in closer:
        encoded[row] = b""
    parts: tuple[Iterable[Any], ...] = (
        repeat(_json_head(**head)), quoted,
        repeat(b',"at":' + orjson.dumps(at) + b',"frame":{"id":'), quoted, map(_named, batch.streams, batch.topics), sequences,
        repeat(b',"captured_at":'), captured_at,
        repeat(b'},"result":'), encoded,
        repeat(b',"lineage":' + orjson.dumps(lineage)[:-1] + b',"waited_ms":'), waited,
        repeat(b"}}"),
    )  # fmt: skip
    bodies: list[bytes | None] = [*map(_join, zip(*parts, strict=False))]
    for row in closer:
        bodies[row] = None
    return bodies


def msgpack_results(
    batch: FrameBatch,
    results: Sequence[Any] | Mapping[str, Sequence[Any]],
    head: Mapping[str, Any],
    lineage: Mapping[str, Any],
    at: float,
    waited_ms: Sequence[float],
) -> list[bytes | None]:
    """Encode a result of each row as MessagePack, likewise."""
    if isinstance(results, Mapping):
        results = [dict(zip(results, row, strict=True)) for row in zip(*results.values(), strict=True)]
    pack = msgpack.Packer(default=plain_for_msgpack).pack
    assert len(head) + 5 <= _FEW_ENTRIES > len(lineage)  # noqa: S101 - both are ours
    before_id = bytes((_NO_ENTRY + len(head) + 5,)) + pack(dict(head))[1:] + pack("id")
    before_frame = pack("at") + pack(at) + pack("frame") + bytes((_NO_ENTRY + 5,)) + pack("id")
    before_waited = (
        pack("lineage") + bytes((_NO_ENTRY + len(lineage) + 1,)) + pack(dict(lineage))[1:] + pack("waited_ms")
    )
    keys = [pack(key) for key in ("stream", "topic", "sequence", "captured_at", "result")]
    bodies: list[bytes | None] = []
    for frame_id, stream, topic, sequence, captured, result, wait in zip(
        batch.ids, batch.streams, batch.topics, batch.sequences, batch.captured_at, results, waited_ms, strict=True
    ):
        try:
            packed = [pack(value) for value in (frame_id, stream, topic, sequence, captured, result, wait)]
        except BaseException:  # noqa: BLE001 - a plugin's result may be any object; `encode_msgpack` raises it again
            bodies.append(None)
            pack = msgpack.Packer(default=plain_for_msgpack).pack  # this one may hold half a value
            continue
        parts = [before_id, packed[0], before_frame, packed[0]]
        for key, value in zip(keys, packed[1:6], strict=True):
            parts += (key, value)
        bodies.append(_join((*parts, before_waited, packed[6])))
    return bodies


def _json_columns(columns: Mapping[str, Sequence[Any]]) -> list[bytes | None]:
    """Return each row of columns as JSON; None: it needs a closer look."""
    parts: list[Iterable[bytes]] = []
    closer: set[int] = set()
    for name, column in columns.items():
        encoded: Sequence[bytes | None] | None = _json_numbers(column)
        if encoded is None:
            encoded = [*map(_json_of, column)]
            closer.update(row for row, value in enumerate(encoded) if value is None)
        elif b"null" in encoded:
            closer.update(row for row, value in enumerate(encoded) if value == b"null")
        key = orjson.dumps(name)
        if key[:1] != b'"':
            raise TypeError("a name that is not a string")
        parts.append(repeat((b"," if parts else b"{") + key + b":"))
        parts.append([value or b"" for value in encoded])
    rows: list[bytes | None] = [*map(_join, zip(*parts, repeat(b"}"), strict=False))]
    for row in closer:
        rows[row] = None
    return rows


def _json_numbers(column: Sequence[Any]) -> list[bytes] | None:
    """Return numbers and booleans as JSON, NaN and infinity as null; None: there is something else among them."""
    if not _NUMBERS.issuperset(map(type, column)):
        return None
    try:
        return orjson.dumps(column if type(column) is list else [*column])[1:-1].split(b",")
    except TypeError:  # a number is too large
        return None


def _json_of(value: Any) -> bytes | None:
    """Return a value as JSON; None: it needs a closer look."""
    try:
        encoded = orjson.dumps(value, plain, orjson.OPT_SERIALIZE_NUMPY)
        return None if b"null" in encoded and not_finite(value) is not None else encoded  # NaN becomes null
    except BaseException:  # noqa: BLE001 - a plugin's result may be any object; `encode_json` raises it again
        return None


@lru_cache(256)
def _json_head(**head: str) -> bytes:
    return orjson.dumps(head)[:-1] + b',"id":'


@lru_cache(4096)  # streams recur with every frame
def _named(stream: str, topic: str) -> bytes:
    return b',"stream":' + orjson.dumps(stream) + b',"topic":' + orjson.dumps(topic) + b',"sequence":'
