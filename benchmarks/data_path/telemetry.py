"""JSON telemetry: three fields of 100 sensors, compared with thresholds; the node beside a hand-written loop."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson

from benchmarks.harness.arena import Arena, costs, cpu_ratio
from benchmarks.harness.cells import Cell, Options, ratio

TOPICS: Final = 100
WINDOW: Final = 512
LIMITS: Final = {"temperature": 60.0, "humidity": 80.0, "vibration": 4.5}
PIPELINE: Final[dict[str, Any]] = {
    "content_type": "application/json",
    "queue": {"policy": "fifo", "max_frames_per_stream": 64},
    "stages": [
        {"parse": {"field": list(LIMITS), "dtype": "float64"}},
        {"threshold": {"limits": list(LIMITS.values())}},
    ],
    "publish": {"qos": 0},
    "qos": 0,
}


def messages() -> list[bytes]:
    """Return messages of about 100 bytes, one in ten of which is above a limit."""
    rng = np.random.default_rng(0)
    readings = zip(
        rng.normal(40, 15, 200).round(2), rng.normal(50, 15, 200).round(1), rng.gamma(2, 0.8, 200).round(3), strict=True
    )
    return [
        orjson.dumps(
            {"device": f"press-{number % 7}", **dict(zip(LIMITS, map(float, values), strict=True)), "ok": True}
        )
        for number, values in enumerate(readings)
    ]


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0."""
    with Arena() as arena:
        loop = arena.add_peer("loop", "telemetry-paho", limits=LIMITS)
        node = arena.add_node("node", PIPELINE)
        payloads = arena.payloads(messages())
        for _ in range(options.repeats):
            for contender in (loop, node):
                arena.load(contender, TOPICS, payloads, options, window=WINDOW)
    return [
        *costs("telemetry", loop),
        *costs("telemetry", node),
        ratio("telemetry.node_per_loop", "node ÷ loop", node.rates, loop.rates),
        cpu_ratio("telemetry.cpu_loop_per_node", loop, node),
    ]
