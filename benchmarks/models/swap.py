"""Going over to another version of a model under load: how long results pause, what loading costs those who wait, and rollback.

Voice activity, once with as much load as the node takes (closed loop), once at half of its capacity (open loop). The
versions are signed bundles of one model, each another file to backend and compile cache; the node fetches, checks, compiles
and serves them as in a fleet.
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
"""Of what the node takes: half load."""
AROUND_S = 0.25
"""Before and after the switch, in which the longest pause is looked for."""
_BEFORE_S, _BEFORE_SMOKE_S = 1.5, 0.6
_SETTLED_S = 0.5
_SMOKE_RATE, _SMOKE_WINDOW = 200.0, 8
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
    """A load for each repeat of both kinds, within which one version is kept and another one is called back."""
    with Arena() as arena, Region(arena) as region, ThreadPoolExecutor(1) as thread:
        model = {**vad.MODEL, "path": "bundle:vad", "static_batches": not options.smoke}  # twelve to compile
        node = arena.add_node("node", {**vad.PIPELINE, "qos": 1}, {"vad": model}, fleet=region.section())
        region.watch(node.name)
        began = time.monotonic()
        took_s = (0.5 if options.smoke else 1.5) * (region.want(node.name, region.publish(), _POLICY).ended - began)
        payloads = arena.payloads(vad.sound())
        rate, before_s = _SMOKE_RATE, _BEFORE_SMOKE_S if options.smoke else _BEFORE_S
        if not options.smoke:
            rate = arena.load(node, vad.STREAMS, payloads, options, window=vad.WINDOW, qos=1).rate

        def during(**spec: Any) -> list[tuple[Measured, _Swap]]:
            nonlocal took_s
            taken: list[tuple[Measured, _Swap]] = []
            for _ in range(options.repeats + (0 if options.smoke else _MORE)):
                ref, other = region.publish(), region.publish()  # signing takes a core
                seconds = before_s + took_s + _SETTLED_S
                given = {"qos": 1, "stalled_s": 10.0, "seconds": seconds, **spec}
                load = thread.submit(arena.load, node, vad.STREAMS, payloads, options, **given)
                region.wait_flow(node.name)
                time.sleep(options.warmup_s + before_s)
                swap = _there_and_back(region, node.name, ref, other)
                taken.append((load.result(), swap))
                took_s = swap.back - swap.asked
                if sum(_covers(*each) for each in taken) == options.repeats:
                    break
            return [each for each in taken if _covers(*each)] or taken[-1:]

        full = during(window=_SMOKE_WINDOW if options.smoke else vad.WINDOW, timed=True)
        half = during(rate=float(round(rate * SHARE)))
    return [*_cells("full", "full load", full), *_cells("half", "half load", half)]


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


def _cells(kind: str, load: str, taken: Sequence[tuple[Measured, _Swap]]) -> list[Cell]:
    before: list[float] = []
    slower: list[float] = []
    gaps: list[float] = []
    usual: list[float] = []
    bounds: list[float] = []
    for measured, swap in taken:
        frames = sorted(zip(measured.due_s, measured.latencies_ms, strict=True))
        calm = [late for due, late in frames if due < swap.asked] or measured.latencies_ms
        loading = [late for due, late in frames if swap.load <= due <= swap.switch]
        before.append(percentile(calm, 0.99))
        slower.append(percentile(loading or calm, 0.99) / before[-1])
        arrived = sorted(due + late / 1e3 for due, late in frames)
        gaps.append(_longest_ms(arrived, swap.switch - AROUND_S, swap.switch + AROUND_S))
        usual.append(_longest_ms(arrived, swap.asked - 2 * AROUND_S, swap.asked))
        bounds.append(percentile(calm, 0.5) + vad.STREAMS / measured.rate * 1e3)
    return [
        cell(f"swap.{kind}.lost", f"{load}: frames lost", [measured.lost for measured, _ in taken], "frames"),
        cell(f"swap.{kind}.rate", f"{load}: results", [measured.rate for measured, _ in taken], "frames/s"),
        cell(f"swap.{kind}.p99_before", f"{load}: latency before, p99", before, "ms"),
        cell(
            f"swap.{kind}.p99_per_before",
            f"{load}: p99 while a version is loaded, compiled and tried ÷ before",
            slower,
            "latency ×",
        ),
        cell(f"swap.{kind}.gap", f"{load}: longest pause within {AROUND_S:g} s of a switch", gaps, "ms"),
        cell(f"swap.{kind}.gap_before", f"{load}: the same for as long before", usual, "ms"),
        cell(
            f"swap.{kind}.gap_per_bound",
            f"{load}: longest pause around a switch ÷ a batch's way and a frame period",
            [gap / bound for gap, bound in zip(gaps, bounds, strict=True)],
            "latency ×",
            "a batch's way: p50 of latency before; a period: between two frames of one stream",
        ),
        cell(
            f"swap.{kind}.took",
            f"{load}: from when a version is wanted until it is kept, fetching and probation included",
            [_ms(swap.asked, swap.kept) for _, swap in taken],
            "ms",
        ),
        cell(
            f"swap.{kind}.rollback",
            f"{load}: from when a version on probation is called back until the one before serves",
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
