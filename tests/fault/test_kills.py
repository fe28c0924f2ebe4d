"""kill -9 of anything, at random, under load."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Estate, Witness

SMALL = pytest.param(6, id="short", marks=pytest.mark.timeout(300))
LARGE = pytest.param(100, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


SEVERAL = [pytest.param(2, id="short", marks=pytest.mark.timeout(300)), LARGE]


def kill(estate: Estate, what: str) -> None:
    part = getattr(estate, what)
    part.kill()
    part.start()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_a_node_and_everything_above_its_broker_may_be_killed_at_any_time(estate: Estate, times: int) -> None:
    """Whatever the site's broker accepted is in the store, once."""
    dice = random.Random(times)
    parts = ["node", "upper", "collector"]
    with load(estate.sensors, 100):
        for turn in range(times):
            time.sleep(dice.uniform(0.1, 1.5))
            kill(estate, parts[turn % 3] if turn < 3 else dice.choice(parts))
    estate.everything_is_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_with_the_sites_broker_killed_too_no_result_that_was_stored_is_lost_or_doubled(
    estate: Estate, times: int
) -> None:
    """A broker that is killed forgets frames that wait in it. What the node has acknowledged is safe all the same."""
    dice = random.Random(times)
    with load(estate.sensors, 100):
        for turn in range(times):
            time.sleep(dice.uniform(0.1, 1.5))
            kill(estate, "lower" if turn % 2 else dice.choice(["node", "upper", "collector", "lower"]))
    estate.sensors.settle()
    until(lambda: estate.waiting() == 0, lambda: f"{estate.waiting()} wait", patience_s=120)
    until(lambda: estate.waiting() == 0, lambda: f"{estate.waiting()} wait", patience_s=120)
    numbers = estate.numbers()
    estate.no_number_is_missing()
    named = [n for n in numbers if n % 2]  # the others, without an id, are other frames when they are sent again
    assert {n: times for n, times in Counter(named).items() if times > 1} == {}
    assert len(set(numbers)) > 0.5 * estate.sensors.count


@pytest.mark.parametrize("times", SEVERAL)
def test_of_several_parts_that_die_at_once_nothing_that_was_called_safe_is_lost(estate: Estate, times: int) -> None:
    """A power cut takes a whole site, or site and region. They come back in any order, and some die again on their way.

    A result that somebody saw at the site was safe by then. It is in the store, once; and so is every number. Each other time
    they are given the time to be at work again.
    """
    dice = random.Random(times)
    parts = ["node", "lower", "upper", "collector"]
    witness = Witness(estate.lower.port, f"{estate.node.said[:-2]}/+/result/#")
    with load(estate.sensors, 100):
        for turn in range(times):
            if turn % 2 == 0:
                seen = len(witness.seen)
                until(lambda seen=seen: len(witness.seen) > seen, lambda: estate.node.log[-2000:])  # type: ignore[misc]
            time.sleep(dice.uniform(0, 2))
            dying = dice.sample(parts, dice.randint(2, 4)) if turn else ["node", "lower", "collector"]
            for part in dying:
                getattr(estate, part).kill()
            for part in dice.sample(dying, len(dying)):
                getattr(estate, part).start(**({} if part in ("lower", "upper") else {"wait": False}))
    estate.sensors.settle()
    until(lambda: estate.node.probe("readyz")[0] == 200, lambda: estate.node.log[-2000:])
    until(lambda: estate.waiting() == 0, lambda: f"{estate.waiting()} wait\n{estate.collector.log[-2000:]}", 120)
    witness.close()
    numbers = Counter(estate.numbers())
    estate.no_number_is_missing()
    assert len(witness.seen) >= times / 2
    assert witness.seen <= numbers.keys()
    assert {n: count for n, count in numbers.items() if count > 1 and n % 2} == {}
