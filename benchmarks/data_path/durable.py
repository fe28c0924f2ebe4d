"""Durable results: cost of the outbox, beside results accepted by the broker only, and beside one commit per row."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path

from benchmarks.data_path.noop import STREAMS, WINDOW
from benchmarks.harness.arena import Arena, costs
from benchmarks.harness.cells import Cell, Options, cell, ratio

_QUEUE = {"policy": "fifo", "max_frames_per_stream": 64}
_ROW = b"x" * 600
"""About the size of a small result with its properties."""


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 1, 64 bytes through the `noop` stage, one result per frame.

    A region's service on the same two cores stores the results of both contenders, and acknowledges the durable ones.
    """
    pipeline = {"stages": ["noop"], "receive_maximum": 1000, "queue": _QUEUE}
    commits: list[float] = []
    with Arena() as arena:
        arena.add_region()
        accepted = arena.add_node("accepted", pipeline)
        durable = arena.add_node("durable", {**pipeline, "publish": {"durable": True}})
        payloads = arena.payloads([bytes(64)])
        for _ in range(options.repeats):
            for contender in (accepted, durable):
                arena.load(contender, STREAMS, payloads, options, window=WINDOW, qos=1)
            commits.append(_commits(min(options.seconds, 1.0), arena.folder))
    return [
        *costs("durable", accepted),
        *costs("durable", durable),
        cell("durable.commits", "SQLite alone: one commit with fsync per row", commits, "rows/s"),
        ratio("durable.durable_per_accepted", "durable ÷ accepted by the broker", durable.rates, accepted.rates),
        ratio("durable.durable_per_commit", "durable ÷ one commit per row", durable.rates, commits),
    ]


def _commits(seconds: float, folder: Path) -> float:
    """Return rows per second with one commit per row."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        database = sqlite3.connect(Path(scratch) / "rows.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE result (id INTEGER PRIMARY KEY, payload BLOB)")
        rows, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            database.execute("INSERT INTO result (payload) VALUES (?)", (_ROW,))
            rows += 1
        database.close()
    return rows / seconds
