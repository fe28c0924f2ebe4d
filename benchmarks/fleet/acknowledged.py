"""Processor time of storing a result, with and without what an acknowledgement proves: a check of id and payload for each number.

Batches of results are decoded, stored in SQLite and acknowledged as the collector does, without a broker. Without the checks, an
acknowledgement names numbers only, as those of earlier versions did.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson

from benchmarks.harness.cells import Cell, Options, cell, ratio
from hedgerow.bus import Message
from hedgerow.bus.outbox import Number
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.region.collector import decode
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.batch import Batch
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address, Channel

REGION, NODES, BATCH = "bench", 20, 200
COUNTS = (20_000, 1_000)
"""Results per run and per smoke run."""
_QOS_1 = 0b10


def run(options: Options) -> list[Cell]:
    """Return processor time per result, with and without checks, in turns."""
    count = COUNTS[options.smoke]
    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.repeats):
        for values, checked in zip(both, (True, False), strict=True):
            values.append(_measure(count, checked=checked))
    cells = [
        cell(f"acks.{key}", name, values, "µs", f"{count:,} results of {NODES} nodes")
        for key, name, values in zip(("with", "without"), ("id and hash", "numbers only"), both, strict=True)
    ]
    return [*cells, ratio("acks.with_per_without", "with id and hash ÷ numbers only", *both)]


def _measure(count: int, *, checked: bool) -> float:
    """Return microseconds of processor time per result."""
    messages = list(_results(count))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        url = str(Path(folder) / "region.db")
        config = RegionConfig.model_validate({"region": {"name": REGION}, "store": {"url": url}})
        database = open_database(url, write=True)
        stack.callback(database.close)
        store = RegionStore(database, config)
        if not checked:
            stack.enter_context(_numbers_only())
        stored, began = 0, time.process_time()
        for start in range(0, count, BATCH):
            now = time.time()
            records = [decode.decode_message(one, REGION, now, 64) for one in messages[start : start + BATCH]]
            outcome = store.apply(records)
            stored += outcome.durable
            for due in outcome.acks.values():
                due.ack.encode()
        spent = time.process_time() - began
    if stored != count:
        raise RuntimeError(f"{stored} of {count} results were stored")
    return 1e6 * spent / count


def _results(count: int) -> Iterator[Message]:
    for index in range(count):
        sequence, node = divmod(index, NODES)
        ident, now = f"f{index}", time.time()
        frame = {"id": ident, "stream": "door", "topic": "door", "sequence": sequence, "captured_at": now}
        body = {"schema": "hedgerow.result/1", "id": ident, "at": now, "frame": frame, "result": "x" * 200}
        user = [("number", str(Number(f"epoch{node}", 0, sequence + 1))), ("id", ident)]
        properties = encode_properties([(Property.USER, one) for one in user])
        topic = Address(REGION, "s0", f"n{node}").topic(Channel.RESULT, "doors")
        yield Message(topic, orjson.dumps(body), _QOS_1, 1, 0.0, properties)


@contextmanager
def _numbers_only() -> Iterator[None]:
    """Leave the checks out, and what an acknowledgement tells of them."""
    replaced: list[tuple[Any, str, Any]] = [
        (decode, "record_check", lambda *_: 0),
        (Batch, "hold", lambda *_: None),
        (Batch, "held_by", lambda *_: None),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    for where, name, value in replaced:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
