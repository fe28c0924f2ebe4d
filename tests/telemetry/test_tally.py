"""Counts and latencies."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.telemetry.tally import BUCKETS_S, LatencyHistogram, Tally


def test_the_law_of_conservation_notices_a_frame_that_vanished() -> None:
    tally = Tally()
    tally.received = 4
    tally.out = 1
    tally.dropped["expired"] += 1
    tally.dead["bad-frame"] += 1
    assert not tally.balanced

    tally.held.add(object())
    assert tally.balanced
    assert (tally.settled, tally.in_flight) == (3, 1)


def test_a_copy_stays_as_it_is() -> None:
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


def test_at_first_nothing_was_counted() -> None:
    tally = Tally()

    assert (tally.received, tally.bytes_in, tally.out, tally.results, tally.in_flight, tally.settled) == (0,) * 6
    assert (tally.dropped.total(), tally.dead.total(), tally.latency.count, tally.latency.total_s) == (0, 0, 0, 0)
    assert (tally.last_frame_at, tally.last_result_at) == (None, None)
    assert tally.balanced


def test_what_is_settled_is_out_dropped_or_dead() -> None:
    tally = Tally()
    tally.out, tally.dropped["late"], tally.dead["bad"] = 1, 2, 4

    assert tally.settled == 7


def test_latencies_are_counted_up_to_the_edge_of_their_bucket_and_added_up() -> None:
    histogram = LatencyHistogram()
    for seconds in (1.0, 1.5, 2.0, 60.0, 61.0):
        histogram.add(seconds)

    assert (histogram.count, histogram.total_s) == (5, 125.5)
    assert histogram.counts[BUCKETS_S.index(1.0)] == 1
    assert histogram.counts[BUCKETS_S.index(2.0)] == 2
    assert histogram.counts[-2:] == [1, 1], "the last is for what is longer than all"


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


def test_a_quantile_since_then_looks_only_at_what_came_after() -> None:
    histogram = LatencyHistogram()
    for _ in range(100):
        histogram.add(9.0)
    then = list(histogram.counts)
    assert histogram.quantile(0.5, then) is None
    histogram.add(0.001)

    assert histogram.quantile(0.99, then) == 0.001
    assert histogram.quantile(0.5) == 10.0


def test_longer_than_the_last_bucket_is_said_to_be_the_last() -> None:
    histogram = LatencyHistogram()
    histogram.add(1000.0)

    assert histogram.quantile(0.5) == BUCKETS_S[-1]
    assert histogram.count == 1


def test_buckets_are_numbers_a_person_would_write() -> None:
    assert all(len(repr(edge)) <= 7 for edge in BUCKETS_S)
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    assert BUCKETS_S == (
        0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007,
        0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    )  # fmt: skip
