"""Machines copied while they run, memory included: both go on in one epoch under one run. Nothing is lost, and both results are named."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.region.clones.brokers import Brokers
from tests.region.clones.estate import Estate, Machine, shown
from tests.region.conftest import REGION, eventually

from hedgerow.bus.outbox import epochs
from hedgerow.topics import Address

ADDRESS = Address(REGION, "shop", "vm")
RUN = "f" * 32


@pytest.fixture
def estate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Estate]:
    """The first two epochs that are drawn are one: that of the memory which both machines have."""
    drawn, new_epoch = itertools.count(), epochs.new_epoch
    monkeypatch.setattr("hedgerow.bus.outbox.store.new_epoch", lambda: "0123456789abcdef" if next(drawn) < 2 else new_epoch())  # fmt: skip
    brokers = Brokers()
    yield Estate(brokers, tmp_path)
    brokers.close()


async def two_of_one(estate: Estate, nodes: AsyncExitStack) -> tuple[Machine, Machine]:
    """Run a machine, and some health periods later its copy at another site."""
    one = estate.machine("one", "hall", ADDRESS)
    one.memory = RUN
    await nodes.enter_async_context(one.run())
    two = estate.clone(one, "two", "far")
    two.memory = RUN
    await estate.periods(8, one)
    await nodes.enter_async_context(two.run())
    return one, two


def assert_clash(estate: Estate, one: str, two: str) -> None:
    (event,) = estate.events("outbox-clash")
    assert {result["id"] for result in event["results"]} == {one, two}
    assert "a copy of this node runs too" in event["remedy"]
    assert f"{ADDRESS} runs, or ran, twice with one outbox" in shown(estate, "region", "status")


async def assert_copy_is_named(estate: Estate, one: Machine, two: Machine) -> None:
    """Its reports come under one run, so the hosts are those of its memory: equal in life."""
    (event,) = estate.events("name-in-use")
    assert "a copy of its running process uses this name too" in event["error"]
    assert "a copy of its running process uses this name too" in shown(estate, "region", "status")
    for machine in (one, two):
        await machine.has_reason(f"another node runs as {ADDRESS}")


async def test_both_results_of_a_number_are_stored_and_named(estate: Estate) -> None:
    async with estate.service(), AsyncExitStack() as nodes:
        one, two = await two_of_one(estate, nodes)
        made = await one.make(5) | await two.make(7)
        await estate.periods(2, one, two)
        await assert_copy_is_named(estate, one, two)
        made |= await one.make(5) | await two.make(5)
        await estate.settled(one, two)
        (event,) = estate.events("outbox-clash")
        numbers = [result["id"].partition("-")[2] for result in event["results"]]
        assert numbers == [numbers[0]] * 2, "two results of one number"
        assert_clash(estate, f"one-{numbers[0]}", f"two-{numbers[0]}")
        assert estate.missing(ADDRESS) == 0

    assert estate.stored() == dict.fromkeys(made, 1)


@pytest.mark.long
async def test_a_copy_that_runs_on_after_the_retention_loses_nothing_and_is_named(estate: Estate) -> None:
    """What the first one sent has been deleted, so nothing tells whether the copy's result of that number is a repeat: it is kept."""
    async with estate.service(retention={"days": 1}), AsyncExitStack() as nodes:
        one, two = await two_of_one(estate, nodes)
        await one.make(5)
        await estate.settled(one)
        await estate.age(days=2)
        made = await two.make(5)
        await estate.settled(two)
        assert estate.stored() == dict.fromkeys(made, 1)
        await estate.periods(2, one, two)
        await assert_copy_is_named(estate, one, two)
        assert estate.events("outbox-clash") == []

        (first,), (second,) = await one.make(1), await two.make(1)
        await estate.settled(one, two)
        await eventually(lambda: estate.events("outbox-clash"))
        assert_clash(estate, first, second)
        await estate.age(days=2)
        assert "a copy of its running process uses this name too" in shown(estate, "region", "status")
        made = await one.make(5) | await two.make(5)
        await estate.settled(one, two)
        assert estate.missing(ADDRESS) == 0
        assert estate.events("outbox-clash") == []

    assert estate.stored() == dict.fromkeys(made, 1)
