"""The rate of messages that each site may send."""

from __future__ import annotations

from hedgerow.region.collector.site_rates import BURST_S, SiteRates


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
    rates = SiteRates(10)
    admitted(rates, topic("s", "a"), 300, 0)

    assert admitted(rates, topic("s", "a"), 100, 2.0) == 10
    assert admitted(rates, topic("s", "a"), 1000, 1e6) == 300


def test_topics_that_name_no_node_share_one_rate() -> None:
    rates = SiteRates(10)

    assert sum(rates.admits(name, 0) for name in ["x", "a/b/c", *(f"t{n}" for n in range(1000))]) == 300
    assert rates.take_refused() == {"": 702}


def test_invented_nodes_take_no_memory_and_no_rate_of_another_site() -> None:
    rates = SiteRates(1000, nodes=20)

    assert sum(rates.admits(topic("thief", f"n{n}"), 0) for n in range(200_000)) == 60_000 // 2 + 20
    assert len(rates._sites["thief"].nodes) == 21
    assert admitted(rates, topic("new"), 100, 0) == 100


def test_a_site_whose_messages_take_long_to_read_has_a_share_of_the_time() -> None:
    rates = SiteRates(1000)
    admitted(rates, topic("s", "thief"), 1, 0)
    rates.charge(topic("s", "thief"), 1.5, 0)

    assert admitted(rates, topic("s", "thief"), 9, 0) == 0
    assert admitted(rates, topic("s", "honest"), 9, 0) == 9, "the other half"
    assert admitted(rates, topic("other"), 9, 0) == 9
    assert rates.take_refused() == {"s": 9}
    assert admitted(rates, topic("s", "thief"), 9, 60.0) == 9, "time came back"
    rates.charge(topic("s", "thief"), 3.0, 60.0)
    assert admitted(rates, topic("s", "honest"), 9, 60.0) == 0, "the site's is used up"
