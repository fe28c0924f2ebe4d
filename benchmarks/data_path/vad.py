"""Voice activity, 64 microphones: the backend alone, a hand-written loop, the node."""

from __future__ import annotations

import numpy as np

from benchmarks.harness.arena import Arena, Contender, costs, cpu_ratio
from benchmarks.harness.cells import Cell, Options, cell, ratio
from benchmarks.harness.process import raw
from benchmarks.harness.raw import VAD

STREAMS = 64
WINDOW = 256
BATCHES = [1, 16, 64]
MODEL = {
    "path": VAD,
    "backend": "openvino",
    "open_batch": True,
    "static_batches": True,
    "max_batch": 64,
    "streams": 2,
    "threads": 1,
    "state": {"state": "stateN"},
    "batch_axis": {"state": 1, "stateN": 1},
}
PIPELINE = {
    "content_type": "audio/pcm",
    "queue": {"policy": "fifo", "max_frames_per_stream": 64},
    "stages": [
        {"pcm16": {"rate": 16_000}},
        "vad-window",
        {"infer": {"model": "vad"}},
        {"speech": {"every_window": True}},
    ],
    "publish": {"qos": 0},
    "qos": 0,
}


def sound() -> list[bytes]:
    """Return frames of 512 samples, PCM16: an intermittent voice-like buzz over noise."""
    at = np.arange(31 * 512) / 16_000
    buzz = sum(np.sin(2 * np.pi * 140 * k * at) / k for k in range(1, 12)) * (np.sin(2 * np.pi * 3 * at) > 0)
    noise = np.random.default_rng(0).normal(0, 0.01, at.size)
    samples = ((0.2 * buzz + noise).clip(-1, 1) * 32767).astype("<i2")
    return [frame.tobytes() for frame in samples.reshape(-1, 512)]


def contenders(arena: Arena) -> tuple[Contender, Contender]:
    """Start the hand-written loop and the node."""
    return arena.add_peer("loop", "vad-paho"), arena.add_node("node", PIPELINE, {"vad": MODEL})


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0."""
    alone: list[dict[str, dict[str, float]]] = []
    with Arena() as arena:
        loop, node = contenders(arena)
        payloads = arena.payloads(sound())
        for _ in range(options.repeats):
            alone.append(raw("vad", min(options.seconds, 1.0) / 2, batches=BATCHES[-1:] if options.smoke else BATCHES))
            for contender in (loop, node):
                arena.load(contender, STREAMS, payloads, options, window=WINDOW)
    best = [max(each.values(), key=lambda case: case["rate"]) for each in alone]
    cells = [
        cell("vad.rate.raw_best", "backend alone, best batch, both cores", [each["rate"] for each in best], "frames/s"),
        cell("vad.cpu.raw_best", "backend alone: CPU time per frame", [each["cpu_us"] for each in best], "µs"),
    ]
    if "1x1" in alone[0]:
        one = [each["1x1"] for each in alone]
        cells.append(cell("vad.rate.raw_1", "backend alone, batch 1, one core", [e["rate"] for e in one], "frames/s"))
        cells.append(
            cell("vad.cpu.raw_1", "backend alone, batch 1: CPU time per frame", [e["cpu_us"] for e in one], "µs")
        )
    return [
        *cells,
        *costs("vad", loop),
        *costs("vad", node),
        ratio("vad.node_per_loop", "node ÷ loop", node.rates, loop.rates),
        ratio(
            "vad.node_per_raw",
            "node ÷ backend alone (best)",
            node.rates,
            [each["rate"] for each in best],
            "the backend alone has both cores; the node shares them with broker and load",
        ),
        cpu_ratio("vad.cpu_loop_per_node", loop, node),
    ]
