"""Memory: what a node adds to the backend and its model, and what a stream costs that has fallen silent."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil  # type: ignore[import-untyped]

from benchmarks import vad
from benchmarks.arena import Arena, Contender
from benchmarks.audience import Audience
from benchmarks.cells import Cell, Options, cell
from benchmarks.load import Spec
from benchmarks.process import ended, measure

IDLE_STREAMS = 1000
_PATIENCE_S = 20.0
_BARE = f"""\
import sys
import numpy as np
from benchmarks.raw import vad_session
session = vad_session(threads=1)
for batch in (1, {vad.MODEL["max_batch"]}):
    session.run(None, {{"input": np.zeros((batch, 576), np.float32), "state": np.zeros((2, batch, 128), np.float32),
                        "sr": np.array(16_000, np.int64)}})
print("ready", flush=True)
sys.stdin.read()
"""


def run(options: Options) -> list[Cell]:
    """Voice activity. Resident memory after a run under full load, without and with 1,000 streams more."""
    bare, busy, idle = [], [], []
    payloads_of = vad.sound()[:1]
    for _ in range(options.repeats):
        bare.append(_bare_mb())
        with Arena() as arena:
            node = arena.add_node("node", vad.PIPELINE, {"vad": vad.MODEL})
            payloads = arena.payloads(vad.sound())
            arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW)
            busy.append(_rss(node) / 1e6)
            one = arena.payloads(payloads_of)
            _one_frame_each(arena, node, one, "first")  # the load's own bursts grow buffers; these count no more
            before = _rss(node)
            _one_frame_each(arena, node, one, "second")
            idle.append((_rss(node) - before) / IDLE_STREAMS / 1e3)
    added = [node_mb - bare_mb for node_mb, bare_mb in zip(busy, bare, strict=True)]
    return [
        cell("memory.bare", "a process with the backend and the model alone", bare, "MB"),
        cell("memory.node", "the node, after full load", busy, "MB"),
        cell("memory.added", "what the node adds (less is better)", added, "MB"),
        cell("memory.idle_stream", "a stream that sent a frame and fell silent (less is better)", idle, "kB"),
    ]


def _rss(node: Contender) -> int:
    rss: int = psutil.Process(node.process.pid).memory_info().rss
    return rss


def _bare_mb() -> float:
    process = subprocess.Popen([sys.executable, "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with ended(process):
        assert process.stdout is not None
        process.stdout.readline()
        mb: float = psutil.Process(process.pid).memory_info().rss / 1e6
        return mb


def _one_frame_each(arena: Arena, node: Contender, payloads: list[str], name: str) -> None:
    """A frame from each of as many new streams, within a second; returns when all have a result."""
    with Audience(arena.broker.port, node.results) as heard:
        measure(
            Spec(
                port=arena.broker.port,
                topics=[f"{node.name}/{name}-{stream}" for stream in range(IDLE_STREAMS)],
                payloads=payloads,
                results=node.results,
                rate=float(IDLE_STREAMS),
                warmup_s=0.0,
                seconds=1.2,
            )
        )
        deadline = time.monotonic() + _PATIENCE_S
        while len(heard) < IDLE_STREAMS and time.monotonic() < deadline:
            time.sleep(0.05)
    if len(heard) < IDLE_STREAMS:
        raise RuntimeError(f"Only {len(heard)} of {IDLE_STREAMS} streams had a result")
