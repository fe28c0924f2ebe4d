"""Cells: the numbers of a benchmark, each with its spread and target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple


class Target(NamedTuple):
    """Target of a cell.

    Attributes:
        row: number in the table of targets, for `make bench ONLY=`; 0: without a number.
        value: upper limit of times, memory and costs; lower limit of ratios.
        title: of its bar in the picture.
    """

    row: int
    value: float
    title: str


TARGETS: Final[dict[str, Target]] = {
    "vad.node_per_loop": Target(1, 5.5, "Voice activity, 64 streams: rate ÷ hand-written loop"),
    "streams.cpu_many_per_few": Target(2, 1.15, "10,000 streams ÷ 16: CPU time per frame"),
    "streams.p50_many": Target(2, 3.0, "10,000 streams, 2,500 frames/s: p50"),
    "text.node_per_bound": Target(3, 0.93, "Text detection: rate ÷ bound by backend, broker, load"),
    "latency.vad.added_p50": Target(4, 0.28, "Latency added at half load: p50"),
    "latency.vad.p99_per_loop": Target(4, 1.0, "Latency at half load, p99: node ÷ hand-written loop"),
    "noop.received.node_per_paho": Target(5, 4.0, "64 bytes received, QoS 0: rate ÷ paho"),
    "noop.received.node_per_aiomqtt": Target(5, 6.0, "64 bytes received, QoS 0: rate ÷ aiomqtt"),
    "noop.qos1.node_per_paho": Target(6, 3.0, "64 bytes, QoS 1: rate ÷ paho"),
    "large.node_per_sub": Target(7, 0.8, "1 MB: rate ÷ mosquitto_sub"),
    "large.copies": Target(7, 1.0, "1 MB: copies after receive"),
    "batching.greedy_per_best": Target(8, 0.95, "Greedy batching ÷ best fixed size: rate"),
    "batching.low.p99_per_one": Target(8, 1.05, "Low load, with batching ÷ without: p99"),
    "overload.2x.on_time_per_capacity": Target(9, 0.95, "2 × overload: results on time ÷ capacity"),
    "overload.2x.p99_age": Target(9, 200.0, "2 × overload: age of results, p99"),
    "overload.5x.on_time_per_capacity": Target(9, 0.95, "5 × overload: results on time ÷ capacity"),
    "overload.5x.p99_age": Target(9, 200.0, "5 × overload: age of results, p99"),
    "fairness.others_per_fair_share": Target(10, 0.95, "One noisy stream in 64: share of the others"),
    "memory.added": Target(11, 40.0, "Memory above the backend's own"),
    "memory.idle_stream": Target(11, 20.0, "Memory of an idle stream"),
    "sharing.rate_shared_per_copies": Target(12, 1.0, "A shared model ÷ two copies: rate"),
    "sharing.memory_shared_per_copies": Target(12, 0.7, "A shared model ÷ two copies: memory"),
    "workers.two_per_one": Target(13, 1.7, "Two workers ÷ one: rate"),
    "fleet.together.many_per_few": Target(0, 1.2, "1,000 nodes ÷ 10, same total rate: cost per result"),
    "fleet.each.many_per_few": Target(0, 1.2, "1,000 nodes ÷ 10, same rate per node: cost per result"),
    "telemetry.node_per_loop": Target(14, 2.5, "JSON telemetry, 100 topics: rate ÷ hand-written loop with orjson"),
    "durable.durable_per_accepted": Target(0, 0.6, "Durable ÷ accepted by the broker, QoS 1"),
    "reload.lost": Target(0, 0.0, "Reloads under load: frames lost"),
    "rollout.cpu_many_per_few": Target(0, 1.2, "Rollout, 1,004 nodes ÷ 10: region's CPU time per node"),
    "rollout.many.wan": Target(0, 1.05, "Rollout: bytes sent to sites ÷ (variant × sites)"),
    "rollout.many.answered": Target(0, 2000.0, "1,004 nodes: until all have replied to a command"),
    "swap.full.lost": Target(0, 0.0, "Swaps at full load: frames lost"),
    "swap.half.lost": Target(0, 0.0, "Swaps at half load: frames lost"),
    "swap.full.gap_per_bound": Target(0, 1.0, "Switch: longest pause ÷ (batch latency + frame period)"),
    "swap.full.p99_per_before": Target(0, 1.5, "While a version loads and compiles ÷ before: p99"),
}
"""Targets of the node, by cell. All other cells are informative."""

LESS_IS_BETTER: Final = frozenset({"ms", "µs", "latency ×", "cost ×", "MB", "kB", "copies", "frames", "messages"})


@dataclass(frozen=True, slots=True)
class Options:
    """Length of a run.

    Attributes:
        repeats: per contender, in turns.
        seconds: measured in each repeat, after `warmup_s`.
        smoke: only check that it works.
    """

    repeats: int
    seconds: float
    warmup_s: float
    smoke: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the report.

    Attributes:
        id: benchmark, case and quantity: `vad.node_per_loop`.
        name: for the report.
        value: median over the repeats.
        unit: `frames/s`, `MB/s`, `share`, `×` (more is better), or one of `LESS_IS_BETTER`.
        low, high: minimum and maximum over the repeats.
        note: remark for the report.
    """

    id: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    note: str = ""

    def rounded(self) -> Cell:
        """Return the cell rounded for storage."""
        return replace(self, value=round(self.value, 3), low=round(self.low, 3), high=round(self.high, 3))

    @property
    def target(self) -> float | None:
        """Its target; None: informative only."""
        return TARGETS[self.id].value if self.id in TARGETS else None

    @property
    def met(self) -> bool | None:
        """Whether it meets its target; None: it has none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.less_is_better else self.value >= self.target

    @property
    def less_is_better(self) -> bool:
        """Whether its target is an upper limit."""
        return self.unit in LESS_IS_BETTER


def cell(id: str, name: str, values: Iterable[float], unit: str, note: str = "") -> Cell:
    """Make a cell from the values of the repeats."""
    measured = list(values)
    return Cell(id, name, statistics.median(measured), unit, min(measured), max(measured), note)


def ratio(id: str, name: str, ours: Sequence[float], theirs: Sequence[float], note: str = "", unit: str = "×") -> Cell:
    """Make a cell of ratios, each of two numbers from the same repeat."""
    return cell(id, name, [a / b for a, b in zip(ours, theirs, strict=True)], unit, note)


def percentile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile of values, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
