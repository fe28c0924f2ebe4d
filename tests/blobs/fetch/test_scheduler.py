"""Real schedulers and offers on a simulated site (see `simulated`)."""

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
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""No shrinking: it takes minutes."""


def chunks(count: int, seed: int = 0) -> dict[str, int]:
    """Return chunk sizes by digest: 64 to 256 kB, as in real files."""
    random = Random(seed)
    return {f"{random.getrandbits(256):064x}": random.randrange(64 << 10, 256 << 10) for _ in range(count)}


def site_of(count: int, nodes: int, wan: Wan, seed: int, **more: Any) -> SimulatedSite:
    site = SimulatedSite(chunks(count, seed), wan, seed, **more)
    for number in range(nodes):
        site.join(SimulatedNode(f"n{number}"), 0.001 * number)
    return site


def test_twelve_nodes_that_start_together_cost_as_much_as_one() -> None:
    site = site_of(30, 12, Wan(), 1)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


def test_later_nodes_cost_nothing() -> None:
    site = site_of(60, 2, Wan(), 2)
    site.join(SimulatedNode("late"), 3.0)
    site.join(SimulatedNode("later"), 3600.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


@pytest.mark.parametrize("lan_s", [0.6, 2.0])
def test_peers_are_preferred_also_on_a_slow_site(lan_s: float) -> None:
    """Busy nodes receive late and answer late."""
    site = site_of(10, 2, Wan(), 2, lan_s=lan_s)
    site.join(SimulatedNode("late"), 600.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == sum(site.sizes.values())


def test_chunks_of_a_peer_that_died_are_requested_again() -> None:
    """The node that had the chunks dies while sending them."""
    site = site_of(60, 1, Wan(), 3)
    site.join(SimulatedNode("late"), 100.0)
    site.kill("n0", 100.6)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes < 2 * sum(site.sizes.values())


def test_an_outage_delays_a_fetch_by_little_more_than_its_length() -> None:
    """All nodes time out and announce wants at the same time; the first one still claims the chunks."""
    size, rate = sum(chunks(40, 7).values()), 1e6
    for start in range(1, 4):
        site = SimulatedSite(chunks(40, 7), Wan(bytes_per_s=rate, outages=((start, 3.0),)), start)
        for number in range(3):
            site.join(SimulatedNode(f"n{number}"), 0.001 * number)

        site.run(LONG_S)

        assert site.unfinished == []
        assert last_done(site) <= start + 3.0 + 10.0 + 2 * size / rate


def test_a_very_slow_link_does_not_cause_repeated_requests() -> None:
    """A chunk takes more than a minute, which the window learns from the first few."""
    site = site_of(60, 2, Wan(bytes_per_s=3000), 8)

    site.run(24 * LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes <= 1.1 * sum(site.sizes.values())


def test_a_damaged_chunk_is_requested_once_the_region_would_resend_it() -> None:
    """The region would ignore an earlier request as repeated, and the node would wait for its timeout."""
    site = site_of(30, 2, Wan(latency_s=0.005, bytes_per_s=4e6, corrupts=0.3), 0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert last_done(site) < 10


def test_a_peer_that_sends_damaged_chunks_is_used_once() -> None:
    site = site_of(60, 1, Wan(), 4)
    site.nodes["n0"].lies = True
    site.join(SimulatedNode("late"), 100.0)

    site.run(LONG_S)

    assert site.unfinished == []
    assert site.wan_bytes == 2 * sum(site.sizes.values()), "no honest peer had it"


def test_a_complete_site_sends_no_announcements() -> None:
    site = site_of(40, 5, Wan(corrupts=0.1), 5)
    site.run(LONG_S)
    before = site.announcements

    site.run(2 * LONG_S)

    assert site.unfinished == []
    assert site.announcements == before


def test_the_rate_limit_is_shared_by_the_site() -> None:
    """Six nodes share one limit on bytes per second."""
    site = site_of(60, 6, Wan(bytes_per_s=1e7), 6, bytes_per_s=100_000)

    site.run(LONG_S)

    assert site.unfinished == []
    assert max(node.done_at or 0 for node in site.nodes.values()) >= 0.9 * sum(site.sizes.values()) / 100_000


@dataclass(frozen=True)
class Scenario:
    """A scenario: the WAN, and what happens to the nodes."""

    seed: int
    chunks: int
    wan: Wan
    joins: tuple[float, ...]
    deaths: tuple[tuple[int, float], ...]
    disconnections: tuple[tuple[int, float, float], ...]
    lies: frozenset[int]
    mute: frozenset[int]
    sourced: frozenset[int]


moments = st.floats(0, 60)


@st.composite
def scenarios(draw: st.DrawFn, *, faults: bool) -> Scenario:
    joins = draw(st.lists(moments, min_size=1, max_size=7))
    numbers = st.integers(0, len(joins) - 1)
    wan = Wan(
        latency_s=draw(st.floats(0.001, 0.6)),
        bytes_per_s=draw(st.floats(20e3, 5e6)),
        corrupts=draw(st.sampled_from([0.0, 0.1, 0.3])) if faults else 0.0,
        outages=tuple(draw(st.lists(st.tuples(moments, st.floats(0.1, 40)), max_size=3))) if faults else (),
    )
    return Scenario(
        seed=draw(st.integers(0, 10_000)),
        chunks=draw(st.integers(1, 40)),
        wan=wan,
        joins=tuple(joins),
        deaths=tuple(draw(st.lists(st.tuples(numbers, moments), max_size=3))) if faults else (),
        disconnections=tuple(draw(st.lists(st.tuples(numbers, moments, st.floats(0.1, 40)), max_size=3)))
        if faults
        else (),
        lies=frozenset(draw(st.sets(numbers, max_size=2))) if faults else frozenset(),
        mute=frozenset(draw(st.sets(numbers, max_size=2))) if faults else frozenset(),
        sourced=frozenset(draw(st.sampled_from([set(), set(range(7)), {0, 2}]))),
    )


def run_scenario(scenario: Scenario) -> SimulatedSite:
    site = SimulatedSite(chunks(scenario.chunks, scenario.seed), scenario.wan, scenario.seed)
    for number, when in enumerate(scenario.joins):
        lies, mute, sourced = (number in kind for kind in (scenario.lies, scenario.mute, scenario.sourced))
        site.join(SimulatedNode(f"n{number}", lies=lies, mute=mute, sourced=sourced), when)
    for number, when in scenario.deaths:
        site.kill(f"n{number}", max(when, scenario.joins[number]) + 0.01)
    for number, when, seconds in scenario.disconnections:
        site.disconnect(f"n{number}", max(when, scenario.joins[number]) + 0.01, seconds)
    site.run(LONG_S)
    return site


@pytest.mark.slow
@settings(max_examples=500, phases=NO_SHRINKING)
@given(scenarios(faults=False), scenarios(faults=True))
def test_sites_pay_once_and_finish_in_a_thousand_scenarios(quiet: Scenario, faulty: Scenario) -> None:
    """The next two tests with many more examples."""
    site, faulty_site = run_scenario(quiet), run_scenario(faulty)
    assert site.unfinished == faulty_site.unfinished == []
    assert last_done(faulty_site) <= deadline_of(faulty, faulty_site)
    assert site.wan_bytes <= 1.05 * sum(site.sizes.values())


def last_done(site: SimulatedSite) -> float:
    return max((node.done_at for node in site.nodes.values() if node.done_at is not None), default=0.0)


def deadline_of(scenario: Scenario, site: SimulatedSite) -> float:
    """Return a deadline: faults end after 100 s, but every mute peer costs time."""
    return 100 + 300 + 10 * sum(site.sizes.values()) / scenario.wan.bytes_per_s


@settings(max_examples=examples(12), phases=NO_SHRINKING)
@given(scenarios(faults=False))
def test_a_site_pays_once_whatever_the_joins_and_the_link(scenario: Scenario) -> None:
    site = run_scenario(scenario)

    assert site.unfinished == []
    assert site.wan_bytes <= 1.05 * sum(site.sizes.values())


@settings(max_examples=examples(12), phases=NO_SHRINKING)
@given(scenarios(faults=True))
def test_every_surviving_node_finishes_whatever_fails(scenario: Scenario) -> None:
    """Nodes die, disconnect, lie and stay mute, chunks are damaged, the WAN is cut. Fetches finish soon afterwards."""
    site = run_scenario(scenario)

    assert site.unfinished == []
    assert last_done(site) <= deadline_of(scenario, site)
