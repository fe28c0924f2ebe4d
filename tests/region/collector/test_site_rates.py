"""The rate of messages that each site may send."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from hedgerow.region.collector.site_rates import BURST_S, USUAL_S, WORK_SHARE, SiteRates
from hedgerow.topics import Address


def topic(site: str, node: str = "n") -> str:
    return f"hedgerow/v1/r/{site}/{node}/event/x"


def knowing(per_s: float, *names: str, nodes: int = 1000) -> SiteRates:
    rates = SiteRates(per_s, nodes)
    rates.know([Address("r", *name.split("/")) for name in names], 0.0)
    return rates


def admitted(rates: SiteRates, name: str, count: int, now: float) -> int:
    return sum(rates.admits(name, now) for _ in range(count))


def test_a_node_has_half_of_a_burst_and_its_neighbour_the_other_half() -> None:
    rates = knowing(10, "s/thief", "s/honest", "other/n")
    burst = int(10 * BURST_S)

    assert admitted(rates, topic("s", "thief"), 2 * burst, 0) == burst // 2
    assert admitted(rates, topic("s", "honest"), burst, 0) == burst // 2
    assert admitted(rates, topic("other"), 10, 0) == 10
    assert rates.take_refused() == {"s": 2 * burst}
    assert rates.take_refused() == {}


def test_a_lone_busy_node_has_the_whole_rate_of_its_site() -> None:
    rates = knowing(10, "s/busy", "s/quiet")
    admitted(rates, topic("s", "busy"), int(10 * BURST_S), 0)
    rates.take_refused()

    assert sum(admitted(rates, topic("s", "busy"), 10, float(second)) for second in range(1, 1001)) == 10_000
    assert rates.take_refused() == {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=some.lists(
        some.tuples(some.floats(0.0, 30.0), some.integers(0, 400), some.floats(0.0, 0.99)), min_size=1, max_size=40
    )
)
def test_whatever_a_node_sends_half_of_the_rate_is_left_to_the_others(steps: list[tuple[float, int, float]]) -> None:
    """The others, together, never send more than half of what the site may; none of it is refused, at any time."""
    per_s, now, total = 4.0, 0.0, 0
    rates = knowing(per_s, "s/thief", "s/a", "s/b")
    earned = BURST_S * per_s / 2
    for number, (passed_s, flood, share) in enumerate(steps):
        now += passed_s
        earned = min(BURST_S * per_s / 2, earned + passed_s * per_s / 2)
        total += admitted(rates, topic("s", "thief"), flood, now)
        due = int(earned * share)
        honest = admitted(rates, topic("s", "ab"[number % 2]), due, now)
        total, earned = total + honest, earned - due
        assert honest == due
        assert total <= (BURST_S + now) * per_s + 1, "a site is within its own rate"


def test_what_was_used_comes_back_with_time_and_no_more_than_a_burst() -> None:
    rates, half = knowing(10, "s/a"), int(10 * BURST_S) // 2
    admitted(rates, topic("s", "a"), half, 0)

    assert admitted(rates, topic("s", "a"), 100, 2.0) == 20
    assert admitted(rates, topic("s", "a"), 2 * half, 1e6) == half


def test_topics_that_name_no_node_share_one_rate() -> None:
    rates, half = SiteRates(10), int(10 * BURST_S) // 2
    names = ["t{}", "a/b/{}", "hedgerow/v1/r/no site {}/n/event/x", "hedgerow/v1/r/\x1b[2J{}/n/event/x"]

    assert sum(rates.admits(names[n % 4].format(n), 0) for n in range(half + 9)) == half
    assert rates.take_refused() == {"": 9}
    assert list(rates._sites) == [""]


def test_invented_nodes_take_no_memory_and_no_rate_of_a_known_node_or_another_site() -> None:
    rates, half = knowing(100, "s/known", nodes=20), int(100 * BURST_S) // 2

    assert sum(rates.admits(topic("s", f"n{n}"), 0) for n in range(2 * half)) == half
    assert list(rates._sites["s"].nodes) == ["known"]
    assert admitted(rates, topic("s", "known"), half, 0) == half
    assert admitted(rates, topic("new"), 100, 0) == 100


def test_no_more_nodes_are_known_than_a_site_may_have() -> None:
    rates = knowing(10, *(f"s/n{n}" for n in range(30)), nodes=20)

    assert len(rates._sites["s"].nodes) == 20


def test_invented_sites_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.region.collector.site_rates._MOST_SITES", 3)
    rates = knowing(0.1, "s/n")
    for n in range(200):
        admitted(rates, topic(f"invented-{n}"), 20, 0)

    assert len(rates._sites) <= 4
    assert set(rates.take_refused()) <= set(rates._sites)
    assert admitted(rates, topic("s"), 10, 0) == 10


def test_a_site_whose_messages_take_long_to_read_has_a_share_of_the_time() -> None:
    rates = knowing(1000, "s/thief", "s/honest")
    admitted(rates, topic("s", "thief"), 1, 0)
    rates.charge(topic("s", "thief"), 1.5, 0)

    assert admitted(rates, topic("s", "thief"), 9, 0) == 0
    assert admitted(rates, topic("s", "honest"), 9, 0) == 9, "the other half"
    assert admitted(rates, topic("other"), 9, 0) == 9
    assert rates.take_refused() == {"s": 9}
    assert admitted(rates, topic("s", "thief"), 9, 60.0) == 9, "time came back"
    rates.charge(topic("s", "thief"), 3.0, 60.0)
    assert admitted(rates, topic("s", "honest"), 9, 60.0) == 0, "the site's is used up"


def test_a_lone_node_whose_messages_take_long_has_the_whole_time_of_its_site() -> None:
    rates, took_s = knowing(1000, "s/busy", "s/quiet"), 0.01
    for _ in range(200):
        if rates.admits(topic("s", "busy"), 0):
            rates.charge(topic("s", "busy"), took_s, 0)
    rates.take_refused()
    for tick in range(1, 1001):  # just within the site's share of the time
        assert rates.admits(topic("s", "busy"), tick * took_s / WORK_SHARE)
        rates.charge(topic("s", "busy"), took_s, tick * took_s / WORK_SHARE)

    assert admitted(rates, topic("s", "quiet"), 9, 1000 * took_s / WORK_SHARE) == 9


def test_what_waited_during_an_outage_is_not_charged_for_its_time() -> None:
    rates = SiteRates(1000)
    for _ in range(100_000):
        assert rates.admits(topic("s"), 0)
        rates.charge(topic("s"), USUAL_S, 0)
