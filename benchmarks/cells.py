"""What a benchmark hands back: cells, each one number with its spread, and whether it reached its target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

TARGETS: Final[dict[str, float]] = {
    "vad.node_per_loop": 3.0,
    "vad.node_per_raw": 0.5,
    "text.node_per_loop": 1.0,
    "text.node_per_raw": 0.95,
    "latency.vad.added_p50": 5.0,
    "latency.vad.added_p99": 20.0,
    "latency.vad.p99_per_loop": 1.0,
    "noop.qos0.node_per_paho": 2.5,
    "noop.qos0.node_per_aiomqtt": 6.0,
    "noop.qos1.node_per_paho": 1.0,
    "noop.qos1.node_per_aiomqtt": 2.0,
    "receive.64b_qos0.paho_per_ours": 2.0,
    "receive.64b_qos1.paho_per_ours": 2.0,
    "receive.64b_qos0.gmqtt_per_ours": 1.0,
    "receive.64b_qos1.gmqtt_per_ours": 1.0,
    "streams.cpu_many_per_few": 1.1,
    "batching.greedy_per_best": 0.95,
    "batching.low.p99_per_one": 1.05,
    "overload.2x.on_time_per_capacity": 0.95,
    "overload.2x.p99_age": 200.0,
    "overload.5x.on_time_per_capacity": 0.95,
    "overload.5x.p99_age": 200.0,
    "fairness.others_per_fair_share": 0.95,
    "memory.added": 40.0,
    "memory.idle_stream": 20.0,
    "sharing.rate_shared_per_copies": 1.0,
    "sharing.memory_shared_per_copies": 0.6,
    "workers.two_per_one": 1.7,
}
"""What the node is to reach, by cell. Times, memory and costs are to stay below, ratios to be at least this."""

OTHERS: Final = "others"
"""In the id of cells that tell how many cores were taken by work that is none of ours."""

LESS_IS_BETTER: Final = frozenset({"ms", "µs", "latency ×", "cost ×", "MB", "kB"})


@dataclass(frozen=True, slots=True)
class Options:
    """How thoroughly to measure.

    Attributes:
        repeats: of every contender, in turns.
        seconds: measured each time, after `warmup_s`.
        smoke: only see that it works.
    """

    repeats: int
    seconds: float
    warmup_s: float
    smoke: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the report.

    Attributes:
        id: benchmark, case and what is measured: `vad.node_per_loop`.
        name: in words.
        value: median over the repeats.
        unit: `frames/s`, `share`, `×` (more is better); `ms`, `µs`, `MB`, `kB`, `latency ×`, `cost ×` (less is better).
        low, high: least and most over the repeats.
        note: what to know about it.
    """

    id: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    note: str = ""

    @property
    def target(self) -> float | None:
        """What it is to reach; None: it only informs."""
        return TARGETS.get(self.id)

    @property
    def met(self) -> bool | None:
        """Whether it does."""
        if self.target is None:
            return None
        return self.value <= self.target if self.unit in LESS_IS_BETTER else self.value >= self.target

    def as_dict(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "id": self.id,
            "name": self.name,
            "value": round(self.value, 3),
            "target": self.target,
            "met": self.met,
            "unit": self.unit,
            "low": round(self.low, 3),
            "high": round(self.high, 3),
            "note": self.note,
        }


def cell(id: str, name: str, values: Iterable[float], unit: str, note: str = "") -> Cell:
    """A cell of what was measured over the repeats."""
    measured = list(values)
    return Cell(id, name, statistics.median(measured), unit, min(measured), max(measured), note)


def ratio(id: str, name: str, ours: Sequence[float], theirs: Sequence[float], note: str = "", unit: str = "×") -> Cell:
    """A cell of ratios, each of two numbers measured one right after the other."""
    return cell(id, name, [a / b for a, b in zip(ours, theirs, strict=True)], unit, note)


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest of these that a share q is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
