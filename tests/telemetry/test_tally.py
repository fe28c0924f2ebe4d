"""Counters and latencies."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.telemetry.tally import BUCKETS_S, LatencyHistogram, Tally


def test_the_conservation_law_detects_a_lost_frame() -> None:
    tally = Tally()
    tally.received = 4
    tally.out = 1
    tally.dropped["expired"] += 1
    tally.dead["bad-frame"] += 1
    assert not tally.balanced

    tally.held.add(object())
    assert tally.balanced
    assert (tally.settled, tally.in_flight) == (3, 1)


def test_a_copy_does_not_change() -> None:
    tally = Tally()
    tally.received = 1
    tally.held.add("frame")
    copied = tally.copy()
    tally.held.clear()
    tally.out += 1
    tally.dead["bad-frame"] += 1
    tally.latency.add(0.5)

    assert copied.balanced
    assert (copied.out, copied.in_flight, copied.dead.total(), copied.latency.count) == (0, 1, 0, 0)


def test_a_new_tally_is_zero() -> None:
    tally = Tally()

    assert (tally.received, tally.bytes_in, tally.out, tally.results, tally.in_flight, tally.settled) == (0,) * 6
    assert (tally.dropped.total(), tally.dead.total(), tally.latency.count, tally.latency.total_s) == (0, 0, 0, 0)
    assert (tally.last_frame_at, tally.last_result_at) == (None, None)
    assert tally.balanced


def test_settled_frames_are_out_dropped_or_dead() -> None:
    tally = Tally()
    tally.out, tally.dropped["late"], tally.dead["bad"] = 1, 2, 4

    assert tally.settled == 7


def test_a_latency_on_the_edge_counts_in_that_bucket_and_the_sum_is_exact() -> None:
    histogram = LatencyHistogram()
    for seconds in (1.0, 1.5, 2.0, 60.0, 61.0):
        histogram.add(seconds)

    assert (histogram.count, histogram.total_s) == (5, 125.5)
    assert histogram.counts[BUCKETS_S.index(1.0)] == 1
    assert histogram.counts[BUCKETS_S.index(2.0)] == 2
    assert histogram.counts[-2:] == [1, 1], "the last bucket has no upper edge"


def test_without_latencies_there_is_no_quantile() -> None:
    assert LatencyHistogram().quantile(0.5) is None


@given(st.lists(st.floats(0, 59), min_size=1), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_no_less_than_the_true_one_and_at_most_a_bucket_more(seconds: list[float], q: float) -> None:
    histogram = LatencyHistogram()
    for value in seconds:
        histogram.add(value)
    true = sorted(seconds)[max(0, math.ceil(q * len(seconds)) - 1)]
    found = histogram.quantile(q)

    assert found in BUCKETS_S
    assert found is not None
    below = [edge for edge in BUCKETS_S if edge < found]
    assert true <= found
    assert not below or true > below[-1]


def test_a_quantile_since_earlier_counts_ignores_them() -> None:
    histogram = LatencyHistogram()
    for _ in range(100):
        histogram.add(9.0)
    earlier = list(histogram.counts)
    assert histogram.quantile(0.5, earlier) is None
    histogram.add(0.001)

    assert histogram.quantile(0.99, earlier) == 0.001
    assert histogram.quantile(0.5) == 10.0


def test_a_quantile_beyond_the_last_bucket_is_the_last_edge() -> None:
    histogram = LatencyHistogram()
    histogram.add(1000.0)

    assert histogram.quantile(0.5) == BUCKETS_S[-1]
    assert histogram.count == 1


def test_bucket_edges_are_round_numbers() -> None:
    assert all(len(repr(edge)) <= 7 for edge in BUCKETS_S)
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    assert BUCKETS_S == (
        0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007,
        0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    )  # fmt: skip
