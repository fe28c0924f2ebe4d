"""Going over to another version of a model under load: how long results pause, what loading costs those who wait, and rollback.

Voice activity at half of its capacity, open loop. The versions are signed bundles of one model, each another file to
backend and compile cache; the node fetches, checks, compiles and serves them as in a fleet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks import vad
from benchmarks.arena import Arena
from benchmarks.cells import Cell, Options, cell, percentile
from benchmarks.load import Measured
from benchmarks.versions import Region
from hedgerow.wire.fleet import ModelRef

SHARE = 0.5
"""Of the capacity."""
AROUND_S = 0.25
"""Before and after the switch, in which the longest pause is looked for."""
_BEFORE_S = 1.5
_SETTLED_S = 0.5
_SMOKE_RATE = 200.0
_MORE = 2
"""Repeats in place of those whose load was over before the switch: the machine had more to do than was thought."""
_POLICY = {"probation_s": 0.3, "min_frames": 0, "max_slowdown": 100.0}


@dataclass(frozen=True, slots=True)
class _Swap:
    """When a node was told to go over to a version, began to load it, switched to it and had kept it; and the way back.

    In seconds of the monotonic clock.
    """

    asked: float
    load: float
    switch: float
    kept: float
    called_back: float
    back: float


def run(options: Options) -> list[Cell]:
    """A load for each repeat, within which one version is kept and another one is called back."""
    taken: list[tuple[Measured, _Swap]] = []
    with Arena() as arena, Region(arena) as region, ThreadPoolExecutor(1) as thread:
        model = {**vad.MODEL, "path": "bundle:vad", "static_batches": not options.smoke}  # twelve to compile
        node = arena.add_node("node", {**vad.PIPELINE, "qos": 1}, {"vad": model}, fleet=region.section())
        region.watch(node.name)
        began = time.monotonic()
        took_s = 1.5 * (region.want(node.name, region.publish(), _POLICY).ended - began)
        payloads = arena.payloads(vad.sound())
        rate = _SMOKE_RATE
        if not options.smoke:
            capacity = arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW, qos=1).rate
            rate = float(round(capacity * SHARE))
        for _ in range(options.repeats + (0 if options.smoke else _MORE)):
            ref, other = region.publish(), region.publish()  # signing takes a core
            seconds = _BEFORE_S + took_s + _SETTLED_S
            spec: dict[str, Any] = {"qos": 1, "rate": rate, "stalled_s": 10.0, "seconds": seconds}
            load = thread.submit(arena.load, node, vad.STREAMS, payloads, options, **spec)
            region.wait_flow(node.name)
            time.sleep(options.warmup_s + _BEFORE_S)
            swap = _there_and_back(region, node.name, ref, other)
            measured = load.result()
            taken.append((measured, swap))
            took_s = swap.back - swap.asked
            if sum(_covers(*each) for each in taken) == options.repeats:
                break
    return _cells([each for each in taken if _covers(*each)] or taken[-1:], rate)


def _covers(measured: Measured, swap: _Swap) -> bool:
    """Whether the load was there from well before the version was wanted until well after the switch."""
    due = measured.due_s
    return bool(due) and min(due) <= swap.asked - 2 * AROUND_S and swap.switch + AROUND_S <= max(due)


def _there_and_back(region: Region, node: str, ref: ModelRef, other: ModelRef) -> _Swap:
    """Have a node keep a version, and call another one back that is on probation; it has seen neither before."""
    asked = time.monotonic()
    steps = region.want(node, ref, _POLICY)
    region.want(node, other, {**_POLICY, "probation_s": 600}, until="probation")
    called_back = time.monotonic()
    back = region.want(node, ref, _POLICY)
    return _Swap(asked, steps.began["load"], steps.began["switch"], steps.ended, called_back, back.ended)


def _cells(taken: Sequence[tuple[Measured, _Swap]], rate: float) -> list[Cell]:
    before: list[float] = []
    slower: list[float] = []
    gaps: list[float] = []
    usual: list[float] = []
    bounds: list[float] = []
    period_ms = vad.STREAMS / rate * 1e3
    for measured, swap in taken:
        frames = sorted(zip(measured.due_s, measured.latencies_ms, strict=True))
        calm = [late for due, late in frames if due < swap.asked] or measured.latencies_ms
        loading = [late for due, late in frames if swap.load <= due <= swap.switch]
        before.append(percentile(calm, 0.99))
        slower.append(percentile(loading or calm, 0.99) / before[-1])
        arrived = sorted(due + late / 1e3 for due, late in frames)
        gaps.append(_longest_ms(arrived, swap.switch - AROUND_S, swap.switch + AROUND_S))
        usual.append(_longest_ms(arrived, swap.asked - 2 * AROUND_S, swap.asked))
        bounds.append(percentile(calm, 0.5) + period_ms)
    at = f"{rate:.0f} frames/s, {vad.STREAMS} streams: {period_ms:.1f} ms between two frames of one"
    return [
        cell(
            "swap.lost",
            "frames lost while versions came and went",
            [measured.lost for measured, _ in taken],
            "frames",
            at,
        ),
        cell("swap.p99_before", "latency before, p99", before, "ms"),
        cell("swap.p99_per_before", "while a version is loaded, compiled and tried ÷ before: p99", slower, "latency ×"),
        cell("swap.gap", f"longest pause between results within {AROUND_S:g} s of a switch", gaps, "ms"),
        cell("swap.gap_before", "the same for as long before", usual, "ms"),
        cell(
            "swap.gap_per_bound",
            "longest pause around a switch ÷ a batch's way and a frame period",
            [gap / bound for gap, bound in zip(gaps, bounds, strict=True)],
            "latency ×",
            "a batch's way: p50 of latency before",
        ),
        cell(
            "swap.took",
            "from when a version is wanted until it is kept, fetching and probation included",
            [_ms(swap.asked, swap.kept) for _, swap in taken],
            "ms",
        ),
        cell(
            "swap.rollback",
            "from when a version on probation is called back until the one before serves",
            [_ms(swap.called_back, swap.back) for _, swap in taken],
            "ms",
        ),
    ]


def _ms(begin: float, end: float) -> float:
    return (end - begin) * 1e3


def _longest_ms(arrived: Sequence[float], begin: float, end: float) -> float:
    """The longest time without a result; 0: nothing was measured then."""
    within = [at for at in arrived if begin <= at <= end]
    return max((_ms(one, other) for one, other in pairwise(within)), default=0.0)
