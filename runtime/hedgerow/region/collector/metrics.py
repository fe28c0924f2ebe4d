"""The collector's counters, and their Prometheus metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as MetricsCollector

from hedgerow.region.store.batch import BatchOutcome
from hedgerow.region.store.liveness import Liveness, NodeStatus
from hedgerow.telemetry.metrics import gauge_families
from hedgerow.topics import Address

LAG_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 86_400.0)
"""Bucket bounds of the lag histogram. Normal lag is seconds; after an outage it is hours."""


@dataclass(slots=True)
class CollectorCounts:
    """Counters since the collector started. Written on the event loop, read by the probes' thread."""

    results: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    clashes: int = 0
    gaps: int = 0
    lost: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_up: Counter[str] = field(default_factory=Counter)
    overload: int = 0
    batches: int = 0
    write_s: float = 0.0
    acks: int = 0
    stray_replies: int = 0
    statuses: Mapping[Address, NodeStatus] = field(default_factory=dict)
    stored_bytes: int = 0
    waiting: int = 0
    connected: bool = False
    store_works: bool = False
    lags: list[int] = field(default_factory=lambda: [0] * (len(LAG_S) + 1))
    lag_total_s: float = 0.0

    def add(self, outcome: BatchOutcome) -> None:
        """Add the outcome of a batch."""
        self.results["yes"] += outcome.durable
        self.results["no"] += outcome.stored - outcome.durable
        self.duplicates += outcome.duplicates
        self.clashes += outcome.clashes
        self.gaps += outcome.gaps
        self.lost += outcome.lost
        self.rejected += outcome.rejected
        self.refused += outcome.refused
        self.bytes_up += outcome.bytes_up
        for lag_s in outcome.lags:
            self.lags[bisect_left(LAG_S, lag_s)] += 1
            self.lag_total_s += max(0.0, lag_s)


class RegionMetrics(MetricsCollector):
    """Exports the counters when Prometheus scrapes.

    Args:
        counts: the collector's counters.
        gauges: further gauges: name, help, labels, value.
    """

    def __init__(
        self,
        counts: CollectorCounts,
        gauges: Callable[[], Iterable[tuple[str, str, dict[str, str], float]]] = lambda: (),
    ) -> None:
        self._counts = counts
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics."""
        counts = self._counts
        yield _counter("results", "Results stored, by whether they are durable.", "durable", counts.results)
        yield CounterMetricFamily(
            "hedgerow_region_repeats", "Results and gaps received again; not stored twice.", value=counts.duplicates
        )
        yield CounterMetricFamily(
            "hedgerow_region_clashes",
            "Results stored beside another one of the same number: two outboxes use one epoch.",
            value=counts.clashes,
        )
        yield CounterMetricFamily("hedgerow_region_gaps", "Gaps declared by outboxes.", value=counts.gaps)
        yield CounterMetricFamily("hedgerow_region_lost", "Results lost in these gaps.", value=counts.lost)
        yield _counter("rejected", "Messages rejected.", "reason", counts.rejected)
        refused = CounterMetricFamily(
            "hedgerow_region_refused", "Messages rejected, by the site they name.", labels=["site", "reason"]
        )
        for key, count in counts.refused.copy().items():
            refused.add_metric(key, count)
        yield refused
        yield _counter("up_bytes", "Payload bytes received.", "site", counts.bytes_up)
        yield CounterMetricFamily(
            "hedgerow_region_dropped_health",
            "Health reports, and other messages of QoS 0, dropped under overload.",
            value=counts.overload,
        )
        yield CounterMetricFamily("hedgerow_region_batches", "Transactions written to the store.", value=counts.batches)
        yield CounterMetricFamily("hedgerow_region_write_seconds", "Time spent writing them.", value=counts.write_s)
        yield CounterMetricFamily(
            "hedgerow_region_acknowledgements", "Acknowledgements sent to outboxes.", value=counts.acks
        )
        yield CounterMetricFamily(
            "hedgerow_region_stray_replies", "Replies to unknown or expired pings.", value=counts.stray_replies
        )
        nodes = GaugeMetricFamily(
            "hedgerow_region_nodes",
            "Nodes by status. The label `verdict` is deprecated; use `status`.",
            labels=["status", "verdict"],
        )
        by_status = Counter(status.liveness for status in counts.statuses.values())
        for liveness in Liveness:
            nodes.add_metric([liveness.value, liveness.old_name], by_status[liveness])
        yield nodes
        yield from _node_metrics(counts.statuses)
        yield GaugeMetricFamily(
            "hedgerow_region_stored_bytes", "Approximate size of the stored results.", value=counts.stored_bytes
        )
        yield GaugeMetricFamily(
            "hedgerow_region_waiting", "Lists of messages waiting to be stored.", value=counts.waiting
        )
        yield GaugeMetricFamily(
            "hedgerow_region_connected", "1 while connected to the region's broker.", value=counts.connected
        )
        yield GaugeMetricFamily("hedgerow_region_store_works", "1 while the store works.", value=counts.store_works)
        lag = HistogramMetricFamily("hedgerow_region_lag_seconds", "Time from capture to storage.")
        edges = [*map(repr, LAG_S), "+Inf"]
        totals = map(float, accumulate(counts.lags))
        lag.add_metric([], list(zip(edges, totals, strict=True)), counts.lag_total_s)
        yield lag
        yield from gauge_families(self._gauges())


def _node_metrics(statuses: Mapping[Address, NodeStatus]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "hedgerow_region_node_status",
        "1 for the current status of each node. `needs_help` is `no` for ok and stopped.",
        labels=["site", "node", "status", "needs_help"],
    )
    crashes = CounterMetricFamily(
        "hedgerow_region_node_crashes",
        "Times a node started again without having said before that it stops.",
        labels=["site", "node"],
    )
    twins = GaugeMetricFamily(
        "hedgerow_region_node_twins",
        "1 for each node whose name another process uses too (`name`, or `turns`: one after the other), or whose state folder or "
        "key another node has (`state`, `key`).",
        labels=["site", "node", "kind"],
    )
    for address, (liveness, count, kinds) in statuses.items():
        for kind in kinds:
            twins.add_metric([address.site, address.node, kind], 1)
        status.add_metric([address.site, address.node, liveness.value, "yes" if liveness.needs_help else "no"], 1)
        crashes.add_metric([address.site, address.node], count)
    yield from (status, crashes, twins)


def _counter(name: str, text: str, label: str, counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"hedgerow_region_{name}", text, labels=[label])
    for value, count in counts.copy().items():
        family.add_metric([value], count)
    return family
