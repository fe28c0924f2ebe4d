"""Live reloads under load: batch limits and queue are changed and changed back while frames flow. None may be lost.

Voice activity, QoS 0, open loop below capacity: the broker does not repeat a lost frame.
"""

from __future__ import annotations

import select
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena, Contender
from benchmarks.harness.cells import Cell, Options, cell
from benchmarks.harness.load import PATIENCE_S, Connection
from benchmarks.harness.node import COMMAND
from hedgerow.bus.packets import PUBLISH, encode_publish_head

SHARE = 0.3
"""Share of the capacity."""
CHANGES: tuple[tuple[str, str, Any], ...] = (
    ("model", "max_batch", 16),
    ("pipeline", "batch", 16),
    ("queue", "max_frames_per_stream", 256),
    ("queue", "max_rate_per_stream", 10_000.0),
)
"""Section, setting and value."""
_PAUSE_S = 0.3


def run(options: Options) -> list[Cell]:
    """Run one load per repeat, during which all changes are made and reverted."""
    lost: list[float] = []
    took: list[float] = []
    tails: list[float] = []
    with Arena() as arena, ThreadPoolExecutor(1) as thread:
        node = arena.add_node("node", vad.PIPELINE, {"vad": vad.MODEL})
        payloads = arena.payloads(vad.sound())
        capacity = arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW).rate
        rate = float(round(capacity * SHARE))
        for _ in range(options.repeats):
            load = thread.submit(arena.load, node, vad.STREAMS, payloads, options, rate=rate, stalled_s=10.0)
            while not load.done():
                for where, what, value in CHANGES:
                    for config in (_changed(node, where, what, value), node.process.config):
                        took.append(_reload(arena, node, config))
                        time.sleep(_PAUSE_S)
            measured = load.result()
            lost.append(measured.lost)
            tails.append(max(measured.latencies_ms))
    at = f"{len(took)} reloads, {rate:.0f} frames/s"
    return [
        cell("reload.lost", "frames lost while batch limits and queue were changed", lost, "frames", at),
        cell("reload.latency", "maximum latency during reloads", tails, "ms"),
        cell("reload.took", "reload, from command to reply", took, "ms"),
    ]


def _changed(node: Contender, where: str, what: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = orjson.loads(orjson.dumps(node.process.config))
    pipeline, model = config["pipelines"]["main"], config["models"]["vad"]
    {"model": model, "pipeline": pipeline, "queue": pipeline["queue"]}[where][what] = value
    return config


def _reload(arena: Arena, node: Contender, config: dict[str, Any]) -> float:
    """Write the node's file and have it reload. Returns: ms. Raises: RuntimeError: it refuses, or does not reply."""
    (Path(config["node"]["state_dir"]).parent / "node.yaml").write_bytes(orjson.dumps(config))
    link = Connection(arena.broker.port, COMMAND.format(node=node.name, part="reply", name="reload"), "operator")
    began = time.monotonic()
    topic = COMMAND.format(node=node.name, part="command", name="reload")
    link.socket.sendall(encode_publish_head(topic, 0))
    reply = b""
    while not reply:
        if not select.select([link.socket], [], [], PATIENCE_S)[0]:
            raise RuntimeError(f"The node does not reply:\n{node.process.read_log()[-3000:]}")
        link.receive()
        reply = b"".join(link.body(*span) for first, *span in link.packets() if first & 0xF0 == PUBLISH)
    ms = (time.monotonic() - began) * 1e3
    link.socket.close()
    if b'"ok":true' not in reply:
        raise RuntimeError(f"The node refused to reload: {reply!r}")
    return ms
