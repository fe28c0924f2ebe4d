"""How a version behaves wherever it runs, added up and compared with the version before."""

from __future__ import annotations

import msgpack

from hedgerow.models.monitor.canary_analysis import Measures
from hedgerow.models.monitor.observations import Observations, measure

FAST, SLOW = {1: (1.0,) * 16}, {1: (3.0,) * 16}


def test_what_is_seen_in_several_workers_adds_up() -> None:
    one = Observations(
        frames=3, failures=1, not_finite=1, recent_s={1: (0.1,), 2: (0.3,)}, shift={"y": 0.2}, growth_bytes=5
    )
    other = Observations(frames=4, crashes=2, recent_s={1: (0.2,)}, shift={"y": 0.1, "z": 0.4}, growth_bytes=6)

    both = one + other

    assert (both.frames, both.failures, both.not_finite, both.crashes, both.growth_bytes) == (7, 1, 1, 2, 11)
    assert both.recent_s == {1: (0.1, 0.2), 2: (0.3,)}
    assert both.shift == {"y": 0.2, "z": 0.4}
    assert one + Observations() == one


def test_each_place_is_compared_with_itself() -> None:
    """The slowest place counts, and the output that has moved most; not that one place is slower than another."""
    places = [
        (Observations(frames=10, failures=1, recent_s=FAST, shift={"y": 0.5}), Observations(frames=20, recent_s=FAST)),
        (
            Observations(frames=10, crashes=1, recent_s=SLOW),
            Observations(frames=5, crashes=3, recent_s=SLOW, shift={"y": 0.3}),
        ),
    ]

    measures = measure(1.0, places, growth_bytes=-7)

    assert (measures.frames, measures.failures_before, measures.slowdown) == (25, 0.05, 1.0)
    assert (measures.crashes, measures.crashes_before, measures.shift) == (3, 1, {"y": 0.3})
    assert measures.growth_bytes == 0
    assert measure(1.0, [(places[0][0], places[1][1])]).slowdown == 3.0


def test_a_version_that_has_not_begun_has_done_nothing() -> None:
    assert Observations().as_dict() == {
        "frames": 0, "failures": 0, "not_finite": 0, "crashes": 0, "recent_s": {}, "shift": {}, "growth_bytes": 0,
    }  # fmt: skip
    assert measure(0.0, []) == Measures()


def test_what_the_version_before_had_moved_is_taken_off() -> None:
    places = [
        (Observations(shift={"y": 0.25, "z": 0.5}), Observations(shift={"y": 0.75, "z": 0.25})),
        (Observations(shift={"y": 0.25}), Observations(shift={"y": 0.5})),
    ]

    assert measure(1.0, places).shift == {"y": 0.5, "z": 0.0}


def test_memory_is_what_the_node_and_its_workers_have_gained() -> None:
    places = [
        (Observations(growth_bytes=99), Observations(growth_bytes=5)),
        (Observations(), Observations(growth_bytes=6)),
    ]

    assert measure(1.0, places, growth_bytes=100).growth_bytes == 111


def test_of_frames_and_of_time_it_says_what_was_counted() -> None:
    measures = measure(1.23456, [(Observations(frames=8), Observations(frames=3, failures=1, not_finite=2))])

    assert (measures.elapsed_s, measures.frames, measures.failures, measures.not_finite) == (1.235, 3, 1, 2)
    assert (measures.failures_before, measures.slowdown) == (0.0, None)


def test_it_goes_over_a_pipe() -> None:
    conduct = Observations(frames=3, recent_s={1: (0.5,)}, shift={"y": 0.25})

    packed = msgpack.unpackb(msgpack.packb(conduct.as_dict()), strict_map_key=False)

    assert Observations(**packed) + Observations() == conduct
