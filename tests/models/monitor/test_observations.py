"""Observations of a version, added over processes and compared with the previous version."""

from __future__ import annotations

import msgpack

from hedgerow.models.monitor.canary_analysis import Measures
from hedgerow.models.monitor.observations import Observations, measure

FAST, SLOW = {1: (1.0,) * 16}, {1: (3.0,) * 16}


def test_observations_of_several_workers_add_up() -> None:
    one = Observations(
        frames=3, failures=1, not_finite=1, recent_s={1: (0.1,), 2: (0.3,)}, shift={"y": 0.2}, growth_bytes=5
    )
    other = Observations(frames=4, crashes=2, recent_s={1: (0.2,)}, shift={"y": 0.1, "z": 0.4}, growth_bytes=6)

    both = one + other

    assert (both.frames, both.failures, both.not_finite, both.crashes, both.growth_bytes) == (7, 1, 1, 2, 11)
    assert both.recent_s == {1: (0.1, 0.2), 2: (0.3,)}
    assert both.shift == {"y": 0.2, "z": 0.4}
    assert one + Observations() == one


def test_versions_are_compared_within_each_process() -> None:
    """The largest slowdown and the largest shift count, but not that one process is slower than another."""
    processes = [
        (Observations(frames=10, failures=1, recent_s=FAST, shift={"y": 0.5}), Observations(frames=20, recent_s=FAST)),
        (
            Observations(frames=10, crashes=1, recent_s=SLOW),
            Observations(frames=5, crashes=3, recent_s=SLOW, shift={"y": 0.3}),
        ),
    ]

    measures = measure(1.0, processes, growth_bytes=-7)

    assert (measures.frames, measures.failures_before, measures.slowdown) == (25, 0.05, 1.0)
    assert (measures.crashes, measures.crashes_before, measures.shift) == (3, 1, {"y": 0.3})
    assert measures.growth_bytes == 0
    assert measure(1.0, [(processes[0][0], processes[1][1])]).slowdown == 3.0


def test_observations_are_empty_at_first() -> None:
    assert Observations().as_dict() == {
        "frames": 0, "failures": 0, "not_finite": 0, "crashes": 0, "recent_s": {}, "shift": {}, "growth_bytes": 0,
    }  # fmt: skip
    assert measure(0.0, []) == Measures()


def test_the_previous_versions_shift_is_subtracted() -> None:
    processes = [
        (Observations(shift={"y": 0.25, "z": 0.5}), Observations(shift={"y": 0.75, "z": 0.25})),
        (Observations(shift={"y": 0.25}), Observations(shift={"y": 0.5})),
    ]

    assert measure(1.0, processes).shift == {"y": 0.5, "z": 0.0}


def test_memory_growth_is_that_of_the_node_and_its_workers() -> None:
    processes = [
        (Observations(growth_bytes=99), Observations(growth_bytes=5)),
        (Observations(), Observations(growth_bytes=6)),
    ]

    assert measure(1.0, processes, growth_bytes=100).growth_bytes == 111


def test_measures_have_the_counted_frames_and_rounded_time() -> None:
    measures = measure(1.23456, [(Observations(frames=8), Observations(frames=3, failures=1, not_finite=2))])

    assert (measures.elapsed_s, measures.frames, measures.failures, measures.not_finite) == (1.235, 3, 1, 2)
    assert (measures.failures_before, measures.slowdown) == (0.0, None)


def test_observations_can_be_sent_over_a_pipe() -> None:
    observations = Observations(frames=3, recent_s={1: (0.5,)}, shift={"y": 0.25})

    packed = msgpack.unpackb(msgpack.packb(observations.as_dict()), strict_map_key=False)

    assert Observations(**packed) + Observations() == observations
