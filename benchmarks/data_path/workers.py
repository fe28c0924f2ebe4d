"""A CPU-bound Python stage, one millisecond per frame, in one and in two worker processes."""

from __future__ import annotations

from benchmarks.harness.arena import Arena, costs
from benchmarks.harness.cells import Cell, Options, ratio

STREAMS = 64
WINDOW = 256


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0."""
    with Arena() as arena:
        one, two = (
            arena.add_node(
                f"workers-{workers}",
                {
                    "stages": ["spin"],
                    "qos": 0,
                    "publish": {"qos": 0},
                    "workers": workers,
                    "queue": {"policy": "fifo", "max_frames_per_stream": WINDOW},
                },
            )
            for workers in (1, 2)
        )
        payloads = arena.payloads([bytes(64)])
        for _ in range(options.repeats):
            for contender in (one, two):
                arena.load(contender, STREAMS, payloads, options, window=WINDOW)
    note = "broker, load and the node's loop share the cores with the workers"
    return [
        *costs("workers", one),
        *costs("workers", two),
        ratio("workers.two_per_one", "two workers ÷ one", two.rates, one.rates, note),
    ]
