"""The rate of messages that each site may send."""

from __future__ import annotations

from hedgerow.region.collector.site_rates import BURST_S, MOST_NODES, MOST_SITES, SiteRates


def topic(site: str, node: str = "n") -> str:
    return f"hedgerow/v1/r/{site}/{node}/event/x"


def admitted(rates: SiteRates, name: str, count: int, now: float) -> int:
    return sum(rates.admits(name, now) for _ in range(count))


def test_a_node_has_half_of_its_site_and_its_neighbour_the_other_half() -> None:
    rates = SiteRates(10)
    burst = int(10 * BURST_S)

    assert admitted(rates, topic("s", "thief"), 2 * burst, 0) == burst // 2
    assert admitted(rates, topic("s", "honest"), burst, 0) == burst // 2
    assert admitted(rates, topic("other"), 10, 0) == 10
    assert rates.take_refused() == {"s": 2 * burst}
    assert rates.take_refused() == {}


def test_what_was_used_comes_back_with_time_and_no_more_than_a_burst() -> None:
    rates, half = SiteRates(10), int(10 * BURST_S) // 2
    admitted(rates, topic("s", "a"), half, 0)

    assert admitted(rates, topic("s", "a"), 100, 2.0) == 10
    assert admitted(rates, topic("s", "a"), 2 * half, 1e6) == half


def test_topics_that_name_no_node_share_one_rate() -> None:
    rates, half = SiteRates(10), int(10 * BURST_S) // 2

    assert sum(rates.admits(f"t{n}" if n % 2 else f"a/b/{n}", 0) for n in range(half + 9)) == half
    assert rates.take_refused() == {"": 9}


def test_a_site_that_invents_nodes_uses_up_nothing_of_other_sites() -> None:
    rates = SiteRates(400)
    thief = [rates.admits(topic("stolen", f"n{number}"), number / 5000) for number in range(150_000)]

    assert sum(thief) < 120_000
    assert rates.take_refused() == {"stolen": thief.count(False)}
    assert admitted(rates, topic("silent-until-now", "gateway"), 30_000, 30.0) == 30_000
    assert len(rates._sites["stolen"].nodes) <= MOST_NODES + 1


def test_names_that_no_site_can_have_share_one_rate_and_are_not_remembered() -> None:
    rates = SiteRates(1)
    assert sum(rates.admits(topic("x" * 1000 + str(number)), 0) for number in range(1000)) == 120
    assert rates.take_refused() == {"": 880}

    for number in range(MOST_SITES + 100):
        rates.admits(topic(f"s{number}"), 0)
    assert len(rates._sites) <= MOST_SITES + 1
