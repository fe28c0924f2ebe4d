"""Who asks whom for what: real plans and offers, at a site that is simulated (see `simulated`)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.blobs.fetch.simulated import SimulatedNode, SimulatedSite, Wan
from tests.examples import examples

LONG_S = 4 * 3600.0
COURSE = (Phase.explicit, Phase.reuse, Phase.generate)
"""A course that fails is told as it was found: to make it smaller takes minutes."""


def chunks(count: int, seed: int = 0) -> dict[str, int]:
    """Sizes by digest, as files are cut: some 64 to 256 kB."""
    random = Random(seed)
    return {f"{random.getrandbits(256):064x}": random.randrange(64 << 10, 256 << 10) for _ in range(count)}


def site_of(count: int, nodes: int, wan: Wan, seed: int, **more: Any) -> SimulatedSite:
    site = SimulatedSite(chunks(count, seed), wan, seed, **more)
    for number in range(nodes):
        site.joins(SimulatedNode(f"n{number}"), 0.001 * number)
    return site


def test_twelve_nodes_that_start_together_cost_as_much_as_one() -> None:
    site = site_of(30, 12, Wan(), 1)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


def test_later_nodes_cost_nothing() -> None:
    site = site_of(60, 2, Wan(), 2)
    site.joins(SimulatedNode("late"), 3.0)
    site.joins(SimulatedNode("later"), 3600.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


@pytest.mark.parametrize("lan_s", [0.6, 2.0])
def test_peers_are_preferred_also_on_a_slow_site(lan_s: float) -> None:
    """Nodes that have much to do hear late, and answer late."""
    site = site_of(10, 2, Wan(), 2, lan_s=lan_s)
    site.joins(SimulatedNode("late"), 600.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


def test_chunks_of_a_peer_that_died_are_requested_again() -> None:
    """The one that had fetched dies in the midst of giving."""
    site = site_of(60, 1, Wan(), 3)
    site.joins(SimulatedNode("late"), 100.0)
    site.dies("n0", 100.6)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes < 2 * sum(site.sizes.values())


def test_an_outage_delays_a_fetch_by_little_more_than_its_length() -> None:
    """All have given up and want again at the same moment; who was first still is."""
    size, rate = sum(chunks(40, 7).values()), 1e6
    for begins in range(1, 4):
        site = SimulatedSite(chunks(40, 7), Wan(bytes_per_s=rate, outages=((begins, 3.0),)), begins)
        for number in range(3):
            site.joins(SimulatedNode(f"n{number}"), 0.001 * number)

        site.run(LONG_S)

        assert site.unfinished == []
        assert last_done(site) <= begins + 3.0 + 10.0 + 2 * size / rate


def test_a_very_slow_link_does_not_cause_repeated_requests() -> None:
    """A chunk takes a minute and more: that is learnt from the first few."""
    site = site_of(60, 2, Wan(bytes_per_s=3000), 8)

    site.run(24 * LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes <= 1.1 * sum(site.sizes.values())


def test_a_damaged_chunk_is_requested_once_the_region_would_resend_it() -> None:
    """Sooner it would take the wish for that of a second node, and whoever had it would wait until his patience ends."""
    site = site_of(30, 2, Wan(latency_s=0.005, bytes_per_s=4e6, corrupts=0.3), 0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert last_done(site) < 10


def test_a_peer_that_sends_damaged_chunks_is_used_once() -> None:
    site = site_of(60, 1, Wan(), 4)
    site.nodes["n0"].lies = True
    site.joins(SimulatedNode("late"), 100.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == 2 * sum(site.sizes.values()), "nobody honest had it"


def test_a_complete_site_sends_no_announcements() -> None:
    site = site_of(40, 5, Wan(corrupts=0.1), 5)
    site.run(LONG_S)
    said = site.notes

    site.run(2 * LONG_S)

    assert site.unfinished == []
    assert site.notes == said


def test_the_rate_limit_is_shared_by_the_site() -> None:
    """Six nodes share one allowance of bytes a second."""
    site = site_of(60, 6, Wan(bytes_per_s=1e7), 6, bytes_per_s=100_000)

    site.run(LONG_S)

    assert site.unfinished == []
    assert max(node.done_at or 0 for node in site.nodes.values()) >= 0.9 * sum(site.sizes.values()) / 100_000


@dataclass(frozen=True)
class Course:
    """How things go at a site."""

    seed: int
    chunks: int
    wan: Wan
    joins: tuple[float, ...]
    deaths: tuple[tuple[int, float], ...]
    absences: tuple[tuple[int, float, float], ...]
    lies: frozenset[int]
    mute: frozenset[int]
    sourced: frozenset[int]


moments = st.floats(0, 60)


@st.composite
def courses(draw: st.DrawFn, *, faults: bool) -> Course:
    joins = draw(st.lists(moments, min_size=1, max_size=7))
    numbers = st.integers(0, len(joins) - 1)
    wan = Wan(
        latency_s=draw(st.floats(0.001, 0.6)),
        bytes_per_s=draw(st.floats(20e3, 5e6)),
        corrupts=draw(st.sampled_from([0.0, 0.1, 0.3])) if faults else 0.0,
        outages=tuple(draw(st.lists(st.tuples(moments, st.floats(0.1, 40)), max_size=3))) if faults else (),
    )
    return Course(
        seed=draw(st.integers(0, 10_000)),
        chunks=draw(st.integers(1, 40)),
        wan=wan,
        joins=tuple(joins),
        deaths=tuple(draw(st.lists(st.tuples(numbers, moments), max_size=3))) if faults else (),
        absences=tuple(draw(st.lists(st.tuples(numbers, moments, st.floats(0.1, 40)), max_size=3))) if faults else (),
        lies=frozenset(draw(st.sets(numbers, max_size=2))) if faults else frozenset(),
        mute=frozenset(draw(st.sets(numbers, max_size=2))) if faults else frozenset(),
        sourced=frozenset(draw(st.sampled_from([set(), set(range(7)), {0, 2}]))),
    )


def course_of(course: Course) -> SimulatedSite:
    site = SimulatedSite(chunks(course.chunks, course.seed), course.wan, course.seed)
    for number, when in enumerate(course.joins):
        lies, mute, sourced = (number in kind for kind in (course.lies, course.mute, course.sourced))
        site.joins(SimulatedNode(f"n{number}", lies=lies, mute=mute, sourced=sourced), when)
    for number, when in course.deaths:
        site.dies(f"n{number}", max(when, course.joins[number]) + 0.01)
    for number, when, seconds in course.absences:
        site.is_away(f"n{number}", max(when, course.joins[number]) + 0.01, seconds)
    site.run(LONG_S)
    return site


@pytest.mark.slow
@settings(max_examples=500, phases=COURSE)
@given(courses(faults=False), courses(faults=True))
def test_sites_pay_once_and_finish_in_a_thousand_scenarios(quiet: Course, faulty: Course) -> None:
    """As the next two, many more of them."""
    site, troubled = course_of(quiet), course_of(faulty)
    assert site.unfinished == troubled.unfinished == []
    assert last_done(troubled) <= soon(faulty, troubled)
    assert site.wan_bytes <= 1.05 * sum(site.sizes.values())


def last_done(site: SimulatedSite) -> float:
    return max((node.done_at for node in site.nodes.values() if node.done_at is not None), default=0.0)


def soon(course: Course, site: SimulatedSite) -> float:
    """When all should have come: nothing is wrong any more after 100 s, but a neighbour that is mute costs time each time."""
    return 100 + 300 + 10 * sum(site.sizes.values()) / course.wan.bytes_per_s


@settings(max_examples=examples(12), phases=COURSE)
@given(courses(faults=False))
def test_a_site_pays_once_whatever_the_joins_and_the_link(course: Course) -> None:
    site = course_of(course)

    assert site.unfinished == []
    assert site.wan_bytes <= 1.05 * sum(site.sizes.values())


@settings(max_examples=examples(12), phases=COURSE)
@given(courses(faults=True))
def test_every_surviving_node_finishes_whatever_fails(course: Course) -> None:
    """Nodes die, go away, lie and keep silent; chunks come damaged; the WAN is cut. Nobody waits for long after that."""
    site = course_of(course)

    assert site.unfinished == []
    assert last_done(site) <= soon(course, site)
