"""Real outboxes from copied files at one address, over a real broker, with a real region's service."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import CollectorProcess, Gateway, eventually

from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results
from hedgerow.topics import Address

ADDRESS = Address("test", "s1", "n1")


def stored(url: str) -> Counter[tuple[str, int]]:
    """Return how often each result is stored, by who made it and its number there."""
    database = open_database(url, write=False)
    try:
        found = [one.body["result"] for one in results(database, ResultQuery())]
        return Counter((one["maker"], one["n"]) for one in found)
    finally:
        database.close()


def copied(source: Path, folder: Path) -> Path:
    """Copy an outbox's files, as a snapshot of the disk does."""
    folder.mkdir()
    for path in source.glob("s1-n1.outbox*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    "running", [pytest.param(False, id="stopped", marks=pytest.mark.long), pytest.param(True, id="running")]
)
async def test_results_of_a_node_and_of_its_copy_are_all_stored_once(
    collector: CollectorProcess, mosquitto: Any, tmp_path: Path, running: bool
) -> None:
    """A card is cloned, or a snapshot taken; then both run, at once, and each gets the other's acknowledgements."""
    collector.start()
    source = tmp_path / "original"
    source.mkdir()
    first = Gateway(mosquitto.url, ADDRESS, source, client_id="first")
    async with first:
        first.send(5, result={"maker": "first", "n": 0})
        await eventually(lambda: first.count == 5 and first.entries == 0)
        if running:
            folder = copied(source, tmp_path / "copy")
    if not running:
        folder = copied(source, tmp_path / "copy")
    first = Gateway(mosquitto.url, ADDRESS, source, client_id="first")
    second = Gateway(mosquitto.url, ADDRESS, folder, client_id="second")
    async with first, second:
        for n in range(1, 101):
            first.send(result={"maker": "first", "n": n})
            second.send(result={"maker": "second", "n": n})
        await eventually(lambda: first.entries == second.entries == 0, lambda: (first.entries, second.entries))

    every = {(maker, n): 1 for maker in ("first", "second") for n in range(1, 101)}
    assert stored(collector.store) == {**every, ("first", 0): 5}


async def test_an_outbox_file_of_the_version_before_goes_on(
    collector: CollectorProcess, gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    """What waits keeps its epoch and numbers; what is new begins an epoch."""
    _write_format_1(tmp_path / "s1-n1.outbox")
    collector.start()
    async with gateway() as node:
        node.send(3, result={"maker": "new", "n": 1})
        await eventually(lambda: node.count == 3 and node.entries == 0, lambda: node.outbox.status)

    assert stored(collector.store) == {("old", 7): 1, ("old", 8): 1, ("new", 1): 3}
    database = open_database(collector.store, write=False)
    shown = {one.number for one in results(database, ResultQuery())}
    database.close()
    assert {"00112233aabbccdd/0/7", "00112233aabbccdd/0/8"} < shown
    assert sum(number.endswith(("/0/1", "/0/2", "/0/3")) for number in shown if number is not None) == 3


def _write_format_1(path: Path) -> None:
    """Write an outbox file as the version before did: two results wait, of an epoch that had six others."""
    import zlib

    database = sqlite3.connect(path)
    database.executescript(
        """CREATE TABLE entry (
             key INTEGER PRIMARY KEY, last INTEGER NOT NULL, topic TEXT NOT NULL, pipeline TEXT NOT NULL,
             created_at REAL NOT NULL, expires_at REAL, crc INTEGER NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL);
           CREATE TABLE recent (turn INTEGER PRIMARY KEY, origin INTEGER NOT NULL);
           CREATE INDEX expiry ON entry (expires_at) WHERE expires_at IS NOT NULL;
           CREATE TABLE state (
             one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, numbers TEXT NOT NULL,
             age_s REAL NOT NULL, boot TEXT NOT NULL, boot_s REAL NOT NULL, clean INTEGER NOT NULL);
           PRAGMA user_version = 1;
           INSERT INTO state VALUES (1, '00112233aabbccdd', '[9, 1, 1, 1, 1, 1, 1, 1, 1, 1]', 10.0, 'boot', 10.0, 1);"""
    )
    topic = "hedgerow/v1/test/s1/n1/result/p"
    for n in (7, 8):
        payload = b'{"id": "o%d", "at": 1e9, "result": {"maker": "old", "n": %d}}' % (n, n)
        crc = zlib.crc32(payload, zlib.crc32(b"", zlib.crc32(topic.encode())))
        database.execute("INSERT INTO entry VALUES (?, ?, ?, 'p', 1e9, NULL, ?, x'', ?)", (n, n, topic, crc, payload))
    database.commit()
    database.close()
