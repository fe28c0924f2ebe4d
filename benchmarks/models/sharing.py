"""Two pipelines that share a model in one node, beside two nodes with one copy each: reading a line of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import simplejpeg
from PIL import Image

from benchmarks.harness.arena import Arena
from benchmarks.harness.cells import Cell, Options, cell, ratio
from benchmarks.harness.load import Measured, Spec
from benchmarks.harness.node import node
from benchmarks.harness.process import Started, measure

MODEL = "package:rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
STREAMS = 4
WINDOW = 16


def lines() -> list[bytes]:
    """Return lines of a scanned page, as JPEG."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / "page.png") as page:
        cuts = [page.convert("RGB").crop((0, top, 320, top + 48)) for top in (0, 40, 80, 120)]
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(cut), quality=85) for cut in cuts]


def run(options: Options) -> list[Cell]:
    """Saturating load on both pipelines, QoS 0."""
    rates: dict[str, list[float]] = {"shared": [], "copies": []}
    memory: dict[str, list[float]] = {"shared": [], "copies": []}
    with Arena() as arena:
        port, broker, folder = arena.broker.port, arena.broker, arena.folder
        both = {side: _pipeline(f"shared/{side}/#") for side in ("left", "right")}
        with (
            node("shared", broker, folder, both, _models(streams=2)) as shared,
            node("left", broker, folder, {"left": _pipeline("copies/left/#")}, _models(streams=1)) as left,
            node("right", broker, folder, {"right": _pipeline("copies/right/#")}, _models(streams=1)) as right,
        ):
            payloads = arena.payloads(lines())
            processes = {"shared": [shared], "copies": [left, right]}
            for each in (shared, left, right):
                each.wait()
            for _ in range(options.repeats):
                for name, started in processes.items():
                    rates[name].append(_load(port, name, payloads, options, started[0].read_log).rate)
                    memory[name].append(_resident_mb(started))
    return [
        *(cell(f"sharing.rate.{name}", _NAMES[name], rates[name], "frames/s") for name in rates),
        *(cell(f"sharing.memory.{name}", f"{_NAMES[name]}: resident", memory[name], "MB") for name in memory),
        ratio("sharing.rate_shared_per_copies", "one node ÷ two nodes: rate", rates["shared"], rates["copies"]),
        ratio(
            "sharing.memory_shared_per_copies",
            "one node ÷ two nodes: resident memory (less is better)",
            memory["shared"],
            memory["copies"],
            unit="cost ×",
        ),
    ]


_NAMES = {"shared": "one node, two pipelines, one model", "copies": "two nodes, one copy each"}


# As suggested by `hedgerow tune`, so that neither side is at a disadvantage.
def _models(streams: int) -> dict[str, dict[str, object]]:
    return {"reader": {"path": MODEL, "backend": "openvino", "streams": streams, "threads": 1, "max_batch": 2}}


def _pipeline(frames: str) -> dict[str, object]:
    return {
        "subscribe": frames,
        "content_type": "image/jpeg",
        "queue": {"policy": "fifo", "max_frames_per_stream": 64},
        "stages": ["decode", {"read-text": {"model": "reader", "min_score": 0.0}}],
        "publish": {"qos": 0},
        "qos": 0,
    }


def _load(port: int, name: str, payloads: list[str], options: Options, read_log: Callable[[], str]) -> Measured:
    return measure(
        Spec(
            port=port,
            topics=[f"{name}/{side}/{stream}" for stream in range(STREAMS) for side in ("left", "right")],
            payloads=payloads,
            results="hedgerow/v1/bench/site/+/result/#",  # the other nodes are idle
            window=WINDOW,
            warmup_s=options.warmup_s,
            seconds=options.seconds,
        ),
        read_log,
    )


def _resident_mb(processes: Sequence[Started]) -> float:
    """Return resident memory; pages shared by the processes count once."""
    infos = [psutil.Process(each.pid).memory_full_info() for each in processes]
    mb: float = (infos[0].rss + sum(info.uss for info in infos[1:])) / 1e6
    return mb
