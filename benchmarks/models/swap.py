"""Swaps under load: the pause of results, latency while a version loads, and time to roll back.

Voice activity, at full load (closed loop) and at half of the capacity (open loop). The versions are signed bundles of
one model in files that differ for backend and compile cache; the node fetches, verifies, compiles and serves them as in
a fleet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.data_path import vad
from benchmarks.fleet.versions import Region
from benchmarks.harness.arena import Arena
from benchmarks.harness.cells import Cell, Options, cell, percentile
from benchmarks.harness.load import Measured
from hedgerow.wire.fleet import ModelRef

SHARE = 0.5
"""Share of the capacity: half load."""
AROUND_S = 0.25
"""Time before and after the switch in which the longest pause is measured."""
_BEFORE_S, _BEFORE_SMOKE_S = 1.5, 0.6
_SETTLED_S = 0.5
_SMOKE_RATE, _SMOKE_WINDOW = 200.0, 8
_MORE = 2
"""Extra repeats, in place of those whose load ended before the switch on a slow machine."""
_POLICY = {"probation_s": 0.3, "min_frames": 0, "max_slowdown": 100.0}


@dataclass(frozen=True, slots=True)
class _Swap:
    """Times of a swap and a rollback, by the monotonic clock.

    Attributes:
        desired_at: the desired document was published.
        load, switch: these steps began.
        kept: the swap succeeded.
        rollback_desired_at: the previous version was desired again, during canary analysis of another one.
        rolled_back: it serves.
    """

    desired_at: float
    load: float
    switch: float
    kept: float
    rollback_desired_at: float
    rolled_back: float


def run(options: Options) -> list[Cell]:
    """Run one load per repeat and kind, during which one version is kept and another one rolled back."""
    with Arena() as arena, Region(arena) as region, ThreadPoolExecutor(1) as thread:
        model = {**vad.MODEL, "path": "bundle:vad", "static_batches": not options.smoke}  # twelve to compile
        node = arena.add_node("node", {**vad.PIPELINE, "qos": 1}, {"vad": model}, fleet=region.section())
        region.watch(node.name)
        began = time.monotonic()
        took_s = (0.5 if options.smoke else 1.5) * (region.deploy(node.name, region.publish(), _POLICY).ended - began)
        payloads = arena.payloads(vad.sound())
        rate, before_s = _SMOKE_RATE, _BEFORE_SMOKE_S if options.smoke else _BEFORE_S
        if not options.smoke:
            rate = arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW, qos=1).rate

        def during(**spec: Any) -> list[tuple[Measured, _Swap]]:
            nonlocal took_s
            runs: list[tuple[Measured, _Swap]] = []
            for _ in range(options.repeats + (0 if options.smoke else _MORE)):
                ref, other = region.publish(), region.publish()  # before the load: signing takes a core
                seconds = before_s + took_s + _SETTLED_S
                load_spec = {"qos": 1, "stalled_s": 10.0, "seconds": seconds, **spec}
                load = thread.submit(arena.load, node, vad.STREAMS, payloads, options, **load_spec)
                region.wait_for_result(node.name)
                time.sleep(options.warmup_s + before_s)
                swap = _swap_and_roll_back(region, node.name, ref, other)
                runs.append((load.result(), swap))
                took_s = swap.rolled_back - swap.desired_at
                if sum(_covers(*each) for each in runs) == options.repeats:
                    break
            return [each for each in runs if _covers(*each)] or runs[-1:]

        full = during(window=_SMOKE_WINDOW if options.smoke else vad.WINDOW, timed=True)
        half = during(rate=float(round(rate * SHARE)))
    return [*_cells("full", "full load", full), *_cells("half", "half load", half)]


def _covers(measured: Measured, swap: _Swap) -> bool:
    """Return whether the load lasted from well before the swap until well after the switch."""
    due = measured.due_s
    return bool(due) and min(due) <= swap.desired_at - 2 * AROUND_S and swap.switch + AROUND_S <= max(due)


def _swap_and_roll_back(region: Region, node: str, ref: ModelRef, other: ModelRef) -> _Swap:
    """Swap to a new version, then roll back another new version during its canary analysis."""
    desired_at = time.monotonic()
    steps = region.deploy(node, ref, _POLICY)
    region.deploy(node, other, {**_POLICY, "probation_s": 600}, until="probation")
    rollback_desired_at = time.monotonic()
    rollback = region.deploy(node, ref, _POLICY)
    return _Swap(
        desired_at, steps.started["load"], steps.started["switch"], steps.ended, rollback_desired_at, rollback.ended
    )


def _cells(kind: str, load: str, runs: Sequence[tuple[Measured, _Swap]]) -> list[Cell]:
    before: list[float] = []
    slower: list[float] = []
    gaps: list[float] = []
    usual: list[float] = []
    bounds: list[float] = []
    for measured, swap in runs:
        frames = sorted(zip(measured.due_s, measured.latencies_ms, strict=True))
        undisturbed = [latency for due, latency in frames if due < swap.desired_at] or measured.latencies_ms
        loading = [latency for due, latency in frames if swap.load <= due <= swap.switch]
        before.append(percentile(undisturbed, 0.99))
        slower.append(percentile(loading or undisturbed, 0.99) / before[-1])
        arrived = sorted(due + latency / 1e3 for due, latency in frames)
        gaps.append(_longest_pause_ms(arrived, swap.switch - AROUND_S, swap.switch + AROUND_S))
        usual.append(_longest_pause_ms(arrived, swap.desired_at - 2 * AROUND_S, swap.desired_at))
        bounds.append(percentile(undisturbed, 0.5) + vad.STREAMS / measured.rate * 1e3)
    return [
        cell(f"swap.{kind}.lost", f"{load}: frames lost", [measured.lost for measured, _ in runs], "frames"),
        cell(f"swap.{kind}.rate", f"{load}: results", [measured.rate for measured, _ in runs], "frames/s"),
        cell(f"swap.{kind}.p99_before", f"{load}: p99 before", before, "ms"),
        cell(
            f"swap.{kind}.p99_per_before",
            f"{load}: p99 while a version loads, compiles and is tested ÷ before",
            slower,
            "latency ×",
        ),
        cell(f"swap.{kind}.gap", f"{load}: longest pause within {AROUND_S:g} s of a switch", gaps, "ms"),
        cell(f"swap.{kind}.gap_before", f"{load}: longest pause in a period as long before", usual, "ms"),
        cell(
            f"swap.{kind}.gap_per_bound",
            f"{load}: longest pause around a switch ÷ (batch latency + frame period)",
            [gap / bound for gap, bound in zip(gaps, bounds, strict=True)],
            "latency ×",
            "batch latency: p50 before; frame period: between two frames of one stream",
        ),
        cell(
            f"swap.{kind}.took",
            f"{load}: from desired document to version kept, including fetch and canary analysis",
            [_ms(swap.desired_at, swap.kept) for _, swap in runs],
            "ms",
        ),
        cell(
            f"swap.{kind}.rollback",
            f"{load}: rollback during canary analysis, until the previous version serves",
            [_ms(swap.rollback_desired_at, swap.rolled_back) for _, swap in runs],
            "ms",
        ),
    ]


def _ms(start: float, end: float) -> float:
    return (end - start) * 1e3


def _longest_pause_ms(arrived: Sequence[float], start: float, end: float) -> float:
    """Return the longest time without a result; 0 if there are fewer than two results."""
    within = [at for at in arrived if start <= at <= end]
    return max((_ms(one, other) for one, other in pairwise(within)), default=0.0)
