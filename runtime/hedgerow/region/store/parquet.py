"""Writes results to a Parquet file. No other module imports Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from hedgerow.errors import CommandError
from hedgerow.region.store.queries import StoredResult
from hedgerow.wire.messages import encode_json

_ROWS: Final = 2000
"""Rows in memory at once, and in a row group."""


def write(results: Iterable[StoredResult], path: Path) -> int:
    """Write results to a file, which appears only when it is complete. Returns: how many.

    Raises: CommandError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise CommandError(
            "Writing Parquet needs pyarrow, which is not installed",
            code="pyarrow-missing",
            remedy="Run `pip install 'hedgerow[parquet]'`, or use --json.",
        ) from error
    utc = arrow.timestamp("us", tz="UTC")
    schema = arrow.schema(
        [
            ("ingest", arrow.int64()),
            ("region", arrow.string()),
            ("site", arrow.string()),
            ("node", arrow.string()),
            ("pipeline", arrow.string()),
            ("number", arrow.string()),
            ("id", arrow.string()),
            ("captured_at", utc),
            ("received_at", utc),
            ("content_type", arrow.string()),
            ("result", arrow.string()),
            ("payload", arrow.binary()),
        ]
    )
    count = 0
    partial = path.with_name(f".{path.name}.part")
    try:
        with ParquetWriter(partial, schema, compression="zstd") as writer:
            for rows in _lists(results):
                writer.write_table(arrow.Table.from_pylist([_row(row) for row in rows], schema=schema))
                count += len(rows)
        partial.replace(path)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {error}",
            code="cannot-write",
            remedy="Give a path in a folder that you may write to.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _lists(results: Iterable[StoredResult]) -> Iterator[list[StoredResult]]:
    iterator = iter(results)
    while rows := list(islice(iterator, _ROWS)):
        yield rows


def _row(result: StoredResult) -> dict[str, Any]:
    body = result.body
    value = body.get("result") if isinstance(body, dict) else body
    return {
        "ingest": result.ingest,
        "region": result.region,
        "site": result.site,
        "node": result.node,
        "pipeline": result.pipeline,
        "number": result.number,
        "id": result.id,
        "captured_at": datetime.fromtimestamp(result.captured_at, UTC),
        "received_at": datetime.fromtimestamp(result.received_at, UTC),
        "content_type": result.content_type,
        "result": None if body is None else _json(value),
        "payload": result.payload,
    }


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # bytes from MessagePack, for instance
        return encode_json(value, lossy=True).decode()
