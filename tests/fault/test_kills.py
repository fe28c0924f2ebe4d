"""kill -9 of random processes under load."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Deployment, Subscriber

SMALL = pytest.param(6, id="short", marks=pytest.mark.timeout(300))
LARGE = pytest.param(100, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


SEVERAL_AT_ONCE = [pytest.param(2, id="short", marks=pytest.mark.timeout(300)), LARGE]


def kill(deployment: Deployment, name: str) -> None:
    process = getattr(deployment, name)
    process.kill()
    process.start()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_nothing_is_lost_if_node_region_broker_or_collector_are_killed(deployment: Deployment, times: int) -> None:
    """Every frame that the site's broker accepted is in the store exactly once."""
    dice = random.Random(times)
    parts = ["node", "region_broker", "collector"]
    with load(deployment.sensors, 100):
        for round_ in range(times):
            time.sleep(dice.uniform(0.1, 1.5))
            kill(deployment, parts[round_ % 3] if round_ < 3 else dice.choice(parts))
    deployment.assert_everything_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_with_the_site_broker_killed_too_no_stored_result_is_lost_or_duplicated(
    deployment: Deployment, times: int
) -> None:
    """A killed broker loses its queued frames, but not what the node has acknowledged."""
    dice = random.Random(times)
    with load(deployment.sensors, 100):
        for round_ in range(times):
            time.sleep(dice.uniform(0.1, 1.5))
            kill(
                deployment,
                "site_broker" if round_ % 2 else dice.choice(["node", "region_broker", "collector", "site_broker"]),
            )
    deployment.sensors.settle()
    until(lambda: deployment.waiting() == 0, lambda: f"{deployment.waiting()} waiting", timeout_s=120)
    until(lambda: deployment.waiting() == 0, lambda: f"{deployment.waiting()} waiting", timeout_s=120)
    numbers = deployment.numbers()
    deployment.assert_no_number_missing()
    with_id = [n for n in numbers if n % 2]  # frames without an id are new frames when sent again
    assert {n: times for n, times in Counter(with_id).items() if times > 1} == {}
    assert len(set(numbers)) > 0.5 * deployment.sensors.count


@pytest.mark.parametrize("times", SEVERAL_AT_ONCE)
def test_if_several_parts_die_at_once_no_acknowledged_result_is_lost(deployment: Deployment, times: int) -> None:
    """A power cut hits a site, or site and region; they restart in any order, and some die again while starting.

    A result that a subscriber at the site has received was stored in the outbox before. It is in the region's store
    exactly once, and no number is missing. In every other round they have time to resume work.
    """
    dice = random.Random(times)
    parts = ["node", "site_broker", "region_broker", "collector"]
    subscriber = Subscriber(deployment.site_broker.port, f"{deployment.node.topic_filter[:-2]}/+/result/#")
    with load(deployment.sensors, 100):
        for round_ in range(times):
            if round_ % 2 == 0:
                seen = len(subscriber.seen)
                until(lambda seen=seen: len(subscriber.seen) > seen, lambda: deployment.node.log[-2000:])  # type: ignore[misc]
            time.sleep(dice.uniform(0, 2))
            killed = dice.sample(parts, dice.randint(2, 4)) if round_ else ["node", "site_broker", "collector"]
            for part in killed:
                getattr(deployment, part).kill()
            for part in dice.sample(killed, len(killed)):
                getattr(deployment, part).start(**({} if part in ("site_broker", "region_broker") else {"wait": False}))
    deployment.sensors.settle()
    until(lambda: deployment.node.probe("readyz")[0] == 200, lambda: deployment.node.log[-2000:])
    until(
        lambda: deployment.waiting() == 0,
        lambda: f"{deployment.waiting()} waiting\n{deployment.collector.log[-2000:]}",
        120,
    )
    subscriber.close()
    numbers = Counter(deployment.numbers())
    deployment.assert_no_number_missing()
    assert len(subscriber.seen) >= times / 2
    assert subscriber.seen <= numbers.keys()
    assert {n: count for n, count in numbers.items() if count > 1 and n % 2} == {}
