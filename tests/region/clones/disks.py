"""What is on the disks of nodes: results that tests store, copies of disks, and what waits in an outbox, read with SQLite alone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tests.region.conftest import PATIENCE_S

from hedgerow.bus.outbox.records import Record
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.topics import Address, Channel

FILE = "outbox.db"


async def store(append: Callable[..., None], address: Address, ids: list[str]) -> None:
    """Store results in an outbox, and wait until they are on its disk."""
    topic = address.topic(Channel.RESULT, "p")
    records = []
    for name in ids:
        frame = {"id": name, "stream": "s", "topic": "s", "sequence": 1, "captured_at": time.time()}
        body = {"schema": "hedgerow.result/1", "pipeline": "p", "id": name, "at": time.time(), "frame": frame}
        properties = encode_properties([(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("id", name))])
        payload = json.dumps({**body, "result": {}, "lineage": {}}).encode()
        records.append(Record("p", topic, payload, properties, 0, time.time()))
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(error: Exception | None) -> None:
        done.set_exception(error) if error is not None else done.set_result(None)

    append(records, [], finish)
    async with asyncio.timeout(PATIENCE_S):
        await done


def copy_disk(source: Path, target: Path) -> None:
    """Copy a state folder as a snapshot of the disk does: all files as of one moment, although a node may write them."""
    before = None
    while (now := {path: path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()}) != before:
        before = now
    for path, content in now.items():
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        copy.chmod(0o600)


def waiting(file: Path) -> set[str]:
    """Return the ids of the results in an outbox, which a node may be writing; from a snapshot, so that nothing disturbs it."""
    with tempfile.TemporaryDirectory(prefix="snapshot-") as folder:
        before = None
        while (now := [_read(path) for path in (file, Path(f"{file}-wal"))]) != before:
            before = now
        copy = Path(folder) / FILE
        for end, content in zip(("", "-wal"), now, strict=True):
            if content is not None:
                Path(f"{copy}{end}").write_bytes(content)
        with closing(sqlite3.connect(copy)) as database:
            query = "SELECT payload FROM entry WHERE topic <> ''"
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'kept'").fetchall():  # acknowledged, and kept
                query += " AND NOT EXISTS (SELECT 1 FROM kept WHERE entry.key BETWEEN kept.first AND kept.last)"
            rows = database.execute(query).fetchall()
    return {json.loads(payload)["id"] for (payload,) in rows}


def _read(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None
