"""Overload: text detection at several times the node's capacity.

Capacity is the rate of a node without a deadline in the closed loop, measured just before in the same repeat. The age
of a result is the time from when its frame was due until the load received it. The node's deadline counts only from
when it received the frame; the report has the age by the node's clock too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson

from benchmarks.data_path import text
from benchmarks.harness.arena import Arena, Contender
from benchmarks.harness.cells import Cell, Options, cell, percentile
from benchmarks.harness.raw import TEXT

STREAMS = 8
DEADLINE_S = 0.2
_ANY_S = 30.0
"""A deadline that even a busy machine meets, so that smoke runs get results."""
TIMES = (2, 5)
NOISY_STREAMS = 64
MODEL = {"path": TEXT, "backend": text.BACKEND, "streams": 2, "threads": 1, "max_batch": 1}
PIPELINE = {
    "content_type": "image/jpeg",
    "stages": ["decode", {"detect-text": {"model": "text"}}],
    "publish": {"qos": 0},
    "qos": 0,
}


def run(options: Options) -> list[Cell]:
    """Twice and five times the capacity, with a deadline."""
    deadline_s = _ANY_S if options.smoke else DEADLINE_S
    capacity: list[float] = []
    on_time: dict[int, list[float]] = {times: [] for times in TIMES}
    ages: dict[int, list[float]] = {times: [] for times in TIMES}
    own: dict[int, list[float]] = {times: [] for times in TIMES}
    with Arena() as arena:
        free = arena.add_node("free", _with(policy="fifo", max_frames_per_stream=64), {"text": MODEL})
        timely = arena.add_node("timely", _with(deadline_s=deadline_s, max_frames_per_stream=1), {"text": MODEL})
        payloads = arena.payloads(text.pictures())
        for _ in range(options.repeats):
            capacity.append(arena.load(free, STREAMS, payloads, options, window=2 * STREAMS).rate)
            for times in TIMES:
                rate = times * capacity[-1]
                measured = arena.load(timely, STREAMS, payloads, options, rate=rate, keep=True)
                age = [_age_s(result) for result in map(orjson.loads, measured.payloads)]
                in_time = sum(each <= deadline_s * 1e3 for each in measured.latencies_ms)
                on_time[times].append(in_time / measured.seconds / capacity[-1])
                ages[times].append(percentile(measured.latencies_ms, 0.99))
                own[times].append(percentile(age, 0.99) * 1e3)
    cells = [cell("overload.capacity", "capacity: closed loop, no deadline", capacity, "frames/s")]
    for times in TIMES:
        name, at = f"{times} × capacity", f"overload.{times}x"
        cells += [
            cell(f"{at}.on_time_per_capacity", f"{name}: results on time ÷ capacity", on_time[times], "×"),
            cell(f"{at}.p99_age", f"{name}: p99 age of results", ages[times], "ms"),
            cell(f"{at}.p99_own", f"{name}: p99 age by the node's clock, from frame received", own[times], "ms"),
        ]
    return cells


def fairness(options: Options) -> list[Cell]:
    """64 streams at five times the capacity; one stream sends every second frame."""
    shares = []
    with Arena() as arena:
        free = arena.add_node("free", _with(policy="fifo", max_frames_per_stream=64), {"text": MODEL})
        fair = arena.add_node("fair", _with(max_frames_per_stream=1), {"text": MODEL})
        payloads = arena.payloads(text.pictures())
        for _ in range(options.repeats):
            capacity = arena.load(free, STREAMS, payloads, options, window=2 * STREAMS).rate
            by_stream = _results_by_stream(arena, fair, payloads, options, 5 * capacity)
            whole = sum(by_stream.values())
            others = whole - by_stream[f"{fair.name}/0"]
            shares.append(others / (whole * (NOISY_STREAMS - 1) / NOISY_STREAMS))
    return [
        cell(
            "fairness.others_per_fair_share",
            "5 × capacity, half from one of 64 streams: results of the others ÷ their fair share",
            shares,
            "×",
        ),
    ]


def _with(**queue: Any) -> dict[str, Any]:
    return {**PIPELINE, "queue": queue}


def _age_s(result: dict[str, Any]) -> float:
    age: float = result["at"] - result["frame"]["captured_at"]
    return age


def _results_by_stream(
    arena: Arena, fair: Contender, payloads: list[str], options: Options, rate: float
) -> Counter[str]:
    quiet = [f"{fair.name}/{stream}" for stream in range(1, NOISY_STREAMS)]
    topics = [topic for other in quiet for topic in (f"{fair.name}/0", other)]
    measured = arena.load(fair, NOISY_STREAMS, payloads, options, topics=topics, rate=rate, keep=True)
    return Counter(orjson.loads(result)["frame"]["stream"] for result in measured.payloads)
