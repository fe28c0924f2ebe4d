"""Memory that a node adds to the backend and its model, and memory of an idle stream."""

from __future__ import annotations

import subprocess
import sys

import psutil  # type: ignore[import-untyped]

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena, Contender
from benchmarks.harness.cells import Cell, Options, cell
from benchmarks.harness.process import ended
from hedgerow.testing import processes

IDLE_STREAMS = 1000
_PATIENCE_S = 20.0
_OPEN = "package:silero_vad/data/silero_vad_16k_op15.onnx"
MODEL = {
    "path": _OPEN,
    "backend": "onnxruntime",  # its memory does not depend on the batch sizes used before
    "max_batch": 64,
    "streams": 2,
    "threads": 1,
    "constants": {"sr": 16_000},
    "state": {"state": "stateN"},
    "batch_axis": {"state": 1, "stateN": 1},
}
_BARE = f"""\
import sys
import numpy as np
from benchmarks.harness.raw import vad_session
session = vad_session(threads=1, model={_OPEN!r})
for batch in (1, {MODEL["max_batch"]}):
    session.run(None, {{"input": np.zeros((batch, 576), np.float32), "state": np.zeros((2, batch, 128), np.float32),
                        "sr": np.array(16_000, np.int64)}})
print("ready", flush=True)
sys.stdin.read()
"""


def run(options: Options) -> list[Cell]:
    """Voice activity. Resident memory after full load, without and with 1,000 further streams."""
    bare, busy, idle = [], [], []
    payloads_of = vad.sound()[:1]
    for _ in range(options.repeats):
        bare.append(_bare_mb())
        with Arena() as arena:
            node = arena.add_node("node", vad.PIPELINE, {"vad": MODEL})
            payloads = arena.payloads(vad.sound())
            arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW)
            busy.append(_rss(node) / 1e6)
            one = arena.payloads(payloads_of)
            _one_frame_each(arena, node, one, options, "first")  # grows the buffers for bursts, which do not count
            before = _rss(node)
            _one_frame_each(arena, node, one, options, "second")
            idle.append((_rss(node) - before) / IDLE_STREAMS / 1e3)
    added = [node_mb - bare_mb for node_mb, bare_mb in zip(busy, bare, strict=True)]
    return [
        cell("memory.bare", "process with backend and model only", bare, "MB"),
        cell("memory.node", "node, after full load", busy, "MB"),
        cell("memory.added", "added by the node (less is better)", added, "MB"),
        cell("memory.idle_stream", "idle stream, after one frame (less is better)", idle, "kB"),
    ]


def _rss(node: Contender) -> int:
    rss: int = psutil.Process(node.process.pid).memory_info().rss
    return rss


def _bare_mb() -> float:
    process = processes.start([sys.executable, "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with ended(process):
        assert process.stdout is not None
        process.stdout.readline()
        mb: float = psutil.Process(process.pid).memory_info().rss / 1e6
        return mb


def _one_frame_each(arena: Arena, node: Contender, payloads: list[str], options: Options, name: str) -> None:
    """Send one frame on each of IDLE_STREAMS new streams within a second. Raises: RuntimeError: a result is missing."""
    topics = [f"{node.name}/{name}-{stream}" for stream in range(IDLE_STREAMS)]
    spec = {"topics": topics, "rate": float(IDLE_STREAMS), "warmup_s": 0.0, "seconds": 1.2, "stalled_s": _PATIENCE_S}
    measured = arena.load(node, IDLE_STREAMS, payloads, options, **spec)
    if measured.lost:
        raise RuntimeError(f"{measured.lost} of {measured.sent} frames had no result")
