"""The rate of messages that each site may send."""

from __future__ import annotations

from hedgerow.region.collector.site_rates import BURST_S, USUAL_S, SiteRates


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


def test_invented_nodes_take_no_memory_and_no_rate_of_another_site() -> None:
    rates, half = SiteRates(100, nodes=20), int(100 * BURST_S) // 2

    assert sum(rates.admits(topic("thief", f"n{n}"), 0) for n in range(2 * half)) == half + 20
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


def test_what_waited_during_an_outage_is_not_charged_for_its_time() -> None:
    rates = SiteRates(1000)
    for _ in range(100_000):
        assert rates.admits(topic("s"), 0)
        rates.charge(topic("s"), USUAL_S, 0)
