"""Many streams: voice activity from 16 and from 10,000 microphones, at the same total frame rate.

At these rates a stream of 10,000 pauses for seconds between its frames: each starts its stream over, as after any gap.
"""

from __future__ import annotations

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena
from benchmarks.harness.cells import Cell, Options, cell, percentile, ratio

FEW, MANY = 16, 10_000
SHARE = 0.3
"""Share of the capacity: below saturation even on a shared machine."""
RATE = 2_500.0
"""Frames per second at which latency is measured."""


def run(options: Options) -> list[Cell]:
    """Open loop, QoS 0; one node, both loads in turns, then latency."""
    cost: dict[int, list[float]] = {FEW: [], MANY: []}
    answered: dict[int, list[float]] = {FEW: [], MANY: []}
    median_ms: list[float] = []
    with Arena() as arena:
        node = arena.add_node("node", vad.PIPELINE, {"vad": vad.MODEL})
        payloads = arena.payloads(vad.sound())
        full = arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW).rate
        rate = float(round(full * SHARE))
        arena.load(node, MANY, payloads, options, window=vad.WINDOW)  # creates the state of all streams
        for repeat in range(options.repeats):
            for count in (FEW, MANY) if repeat % 2 == 0 else (MANY, FEW):
                run = arena.load(node, count, payloads, options, rate=rate)
                cost[count].append(run.cpu_s["contender"] / run.results * 1e6)
                answered[count].append(run.results / run.sent)
            latencies_ms = arena.load(node, MANY, payloads, options, rate=RATE).latencies_ms
            median_ms.append(percentile(latencies_ms, 0.5))
    at = f"at {rate:.0f} frames/s"
    return [
        *(cell(f"streams.cpu.{n}", f"{n:,} streams: CPU time per frame", cost[n], "µs", at) for n in (FEW, MANY)),
        *(cell(f"streams.answered.{n}", f"{n:,} streams: results ÷ frames", answered[n], "share") for n in (FEW, MANY)),
        ratio(
            "streams.cpu_many_per_few",
            f"CPU time per frame, {MANY:,} streams ÷ {FEW} (less is better)",
            cost[MANY],
            cost[FEW],
            at,
            unit="cost ×",
        ),
        cell("streams.p50_many", f"{MANY:,} streams: p50 at {RATE:,.0f} frames/s", median_ms, "ms"),
    ]
