"""The online segmentation, compared with a simple offline implementation."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hedgerow_audio.segments import Segment, Segmenter, Thresholds

SIZE = 512
LIMITS = Thresholds(on=0.5, off=0.35, min_speech=4000, min_silence=1600, pad=480, max_speech=10**9, size=SIZE)


def segments(probabilities: list[float], limits: Thresholds = LIMITS) -> list[Segment]:
    segmenter = Segmenter(limits)
    return [
        segment
        for number, probability in enumerate(probabilities)
        for segment in segmenter.feed(probability, number * SIZE, 100.0 + number * SIZE / 16_000)
    ]


def offline(probabilities: list[float], limits: Thresholds) -> list[tuple[int, int]]:
    """Silero's published algorithm in two passes: find the segments, then pad them. An open segment is left out."""
    found: list[tuple[int, int]] = []
    start = quiet = None
    for number, probability in enumerate(probabilities):
        at = number * SIZE
        if probability >= limits.on:
            quiet = None
            if start is None:
                start = at
        elif start is not None and probability < limits.off:
            quiet = at if quiet is None else quiet
            if at - quiet >= limits.min_silence:
                if quiet - start >= limits.min_speech:
                    found.append((start, quiet))
                start = quiet = None
    return [(max(0, start - limits.pad), end + limits.pad) for start, end in found]


@given(st.lists(st.sampled_from([0.0, 0.2, 0.34, 0.35, 0.4, 0.49, 0.5, 0.7, 1.0]), max_size=200))
@example([0.5] * 8 + [0.0] * 4 + [0.35])
def test_segments_match_the_published_algorithm(probabilities: list[float]) -> None:
    assert [(one.start, one.end) for one in segments(probabilities)] == offline(probabilities, LIMITS)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.9]), st.integers(1, 30)), max_size=20),
    st.sampled_from([5000, 8000, 20_000]),
)
def test_segments_do_not_overlap_or_exceed_the_maximum(runs: list[tuple[float, int]], longest: int) -> None:
    limits = dataclasses.replace(LIMITS, max_speech=longest)
    found = segments([probability for probability, count in runs for _ in range(count)], limits)

    assert all(one.end <= two.start for one, two in itertools.pairwise(found))
    assert all(one.end - one.start < longest + SIZE + 2 * limits.pad for one in found)


def test_a_segment_has_times_and_probability() -> None:
    (one,) = segments([0.0] * 10 + [0.6, 0.8, 1.0, 0.8] * 3 + [0.0] * 10)

    assert (one.start, one.end) == (10 * SIZE - 480, 22 * SIZE + 480)
    assert one.at == pytest.approx(100.0 + one.start / 16_000)
    assert (one.mean, one.peak, one.complete) == (pytest.approx(0.8), 1.0, True)


def test_the_mean_includes_pauses_but_not_trailing_silence() -> None:
    (one,) = segments([0.9] * 10 + [0.1] * 2 + [0.9] * 10 + [0.1] * 10)

    assert one.mean == pytest.approx((20 * 0.9 + 2 * 0.1) / 22)


def test_a_short_burst_is_not_speech() -> None:
    assert segments([0.0] * 5 + [0.99] * 7 + [0.0] * 20) == []


def test_a_segment_ended_by_a_gap_is_incomplete() -> None:
    segmenter = Segmenter(LIMITS)
    for number in range(20):
        segmenter.feed(0.9, number * SIZE, number * 0.032)

    (one,) = segmenter.feed(0.9, 0, 60.0)

    assert (one.start, one.end, one.at, one.complete) == (0, 20 * SIZE, 0.0, False)
    assert segmenter.speaking


def test_long_speech_is_split() -> None:
    limits = dataclasses.replace(LIMITS, max_speech=16_000)
    found = segments([0.0] * 3 + [0.9] * 70 + [0.0] * 10, limits)

    assert [one.complete for one in found] == [False, False, False]
    assert [one.end for one in found[:-1]] == [one.start for one in found[1:]]
    assert found[-1].end == 73 * SIZE + LIMITS.pad


def test_parts_split_within_a_pause_do_not_overlap() -> None:
    limits = dataclasses.replace(LIMITS, max_speech=32 * SIZE)
    one, two = segments([0.9] * 31 + [0.0] + [0.9] * 20 + [0.0] * 10, limits)

    assert one.end == 31 * SIZE
    assert two.start == 32 * SIZE - LIMITS.pad
