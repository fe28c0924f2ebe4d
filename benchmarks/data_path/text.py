"""Text detection in pictures, four cameras: the backend alone, a hand-written loop, the node."""

from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.harness.arena import Arena, costs, cpu_ratio
from benchmarks.harness.cells import Cell, Options, cell, ratio
from benchmarks.harness.process import raw
from benchmarks.harness.raw import SIDE, TEXT
from hedgerow.backends.cores import cores

_SETTINGS = [
    f"{backend}, {callers} on {cores() // callers} threads, batch {batch}{static}"
    for backend, static in (("openvino", ", static"), ("openvino", ""), ("onnxruntime", ""))
    for callers in sorted({1, cores()})
    for batch in (1, 4)
]
"""Settings of the backend alone; the best is the bound for the node. Static: compiled for this size of picture only, as
the node does for sizes that recur."""
_UNTIL_COMPILED_S = 6.0
STREAMS = 4
WINDOW = 8
BACKEND = "openvino"
"""For all contenders, in float32. Fixed, because a trial run picks at random on a busy machine."""


def pictures() -> list[bytes]:
    """Return four crops of a scanned page, as JPEG."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / "page.png") as page:
        whole = page.convert("RGB").resize((2 * SIDE, SIDE), Image.Resampling.LANCZOS)
    cuts = [whole.crop((left, 0, left + SIDE, SIDE)) for left in (0, 100, 200, 300)]
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(cut), quality=85) for cut in cuts]


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0."""
    seconds = min(options.seconds, 2.0) / 2
    sweep = raw("text", seconds, cases=_SETTINGS[:1] if options.smoke else _SETTINGS)
    best = max(sweep, key=lambda case: float(sweep[case]["rate"]))
    alone = []
    model = {"path": TEXT, "backend": BACKEND, "streams": 2, "threads": 1, "max_batch": 1}
    pipeline = {
        "content_type": "image/jpeg",
        # With `latest`, replaced frames have no result, and the closed loop would have fewer in flight.
        "queue": {"policy": "fifo", "max_frames_per_stream": WINDOW},
        "stages": ["decode", {"detect-text": {"model": "text"}}],
        "publish": {"qos": 0},
        "qos": 0,
    }
    with Arena() as arena:
        loop = arena.add_peer("loop", "text-paho", backend=BACKEND, threads=2)
        node = arena.add_node("node", pipeline, {"text": model})
        payloads = arena.payloads(pictures())
        if not options.smoke:  # until it has compiled the model for this size, and has tried it
            arena.load(node, STREAMS, payloads, options, window=WINDOW, seconds=_UNTIL_COMPILED_S)
            node.runs.clear()
        for _ in range(options.repeats):
            alone.append(raw("text", seconds, cases=[best])[best])
            for contender in (loop, node):
                arena.load(contender, STREAMS, payloads, options, window=WINDOW)
    rates = [each["rate"] for each in alone]
    around, decoding = node.cpu_us("broker", "load"), _decoding_us(pictures())
    bound = [cores() / (each["cpu_us"] + decoding + other) * 1e6 for each, other in zip(alone, around, strict=True)]
    return [
        cell(
            "text.rate.raw_best",
            "backend alone, both cores",
            rates,
            "frames/s",
            f"best of the sweep, in float32: {best}",
        ),
        cell("text.cpu.raw_best", "backend alone: CPU time per frame", [e["cpu_us"] for e in alone], "µs"),
        *costs("text", loop),
        *costs("text", node),
        ratio(
            "text.node_per_loop",
            "node ÷ loop",
            node.rates,
            loop.rates,
            "loop: same backend, one call on two threads",
        ),
        cpu_ratio("text.cpu_loop_per_node", loop, node),
        cell("text.cpu.decoding", "decoding a picture: CPU time", [decoding], "µs"),
        cell("text.bound", "bound by backend, decoding, broker and load", bound, "frames/s"),
        ratio("text.node_per_bound", "node ÷ bound by backend, decoding, broker and load", node.rates, bound),
        ratio("text.node_per_raw", "node ÷ backend alone", node.rates, rates, unit="share"),
    ]


def _decoding_us(contents: list[bytes]) -> float:
    """Return the CPU time of decoding a picture, in µs: the median of many."""
    durations = []
    for content in contents * 50:
        began = time.thread_time_ns()
        simplejpeg.decode_jpeg(content)
        durations.append(time.thread_time_ns() - began)
    return statistics.median(durations) / 1e3
