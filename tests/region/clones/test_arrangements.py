"""Nodes cloned, restored and moved, on real brokers with real bridges: nothing is lost, and each clash is named in two health periods."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.region.clones.brokers import Brokers
from tests.region.clones.estate import Estate, Machine, shown
from tests.region.conftest import REGION

from hedgerow.topics import Address


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    running = Brokers()
    yield running
    running.close()


@pytest.fixture
def estate(brokers: Brokers, tmp_path: Path) -> Estate:
    return Estate(brokers, tmp_path)


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Address:
    """A name that no other test uses."""
    return Address(REGION, "shop", "".join(one if one.isalnum() else "-" for one in request.node.name)[-60:].strip("-"))


async def assert_named(estate: Estate, one: Machine, two: Machine, address: Address) -> None:
    """Both machines are named, with what to do: in the region's events and status, and in the health of both nodes."""
    (event,) = estate.events("name-in-use")
    status = shown(estate, "region", "status")
    for machine in (one, two):
        assert f"host {machine.host}, address 127.0.0.1" in event["error"]
        assert f"host {machine.host}, address 127.0.0.1" in status
    assert "hedgerow node new-identity" in event["remedy"]
    assert f"{address} is degraded" in status
    assert "hedgerow node new-identity" in status
    for machine, other in ((one, two), (two, one)):
        place = f"another node runs as {address}: host {other.host}, address "
        if one.broker is not two.broker:  # else they may end each other's link, and a will has no address
            place += "127.0.0.1"
        await machine.has_reason(place)
        report = machine.running.health()
        assert report.instance is not None
        assert (report.state, report.instance.host) == ("degraded", machine.host)
        (reason,) = [one for one in report.reasons if "another node runs as" in one]
        assert "hedgerow node new-identity" in reason


PLACES = {
    "one-broker": ("hall", "hall"),
    "two-sites": ("hall", "yard"),
    "site-below-an-area": ("hall", "far"),
    "one-broker-below-an-area": ("far", "far"),
}
QUICK = {("one-broker", "cp"), ("two-sites", "snapshot"), ("site-below-an-area", "stopped")}


@pytest.mark.parametrize(
    ("place", "how"),
    [
        pytest.param(place, how, marks=[] if (place, how) in QUICK else pytest.mark.long)
        for place in PLACES
        for how in ("stopped", "snapshot", "cp")
    ],
)
async def test_clones_lose_nothing_and_are_named(estate: Estate, address: Address, place: str, how: str) -> None:
    """The disk of a node is copied, while it is stopped or runs; results wait in it. Then both run."""
    here, there = PLACES[place]
    one = estate.machine("one", here, address)
    async with estate.service(), AsyncExitStack() as nodes:
        async with one.run():
            first = await one.make(3)
            estate.brokers.wans[here].cut()
            first |= await one.make(3)
            if how == "cp":  # file by file, while the node writes them
                writing = asyncio.create_task(one.make(100))
                two = await asyncio.to_thread(estate.clone, one, "two", there, copy=shutil.copytree)
                first |= await writing
            elif how == "snapshot":
                two = estate.clone(one, "two", there)
                first |= await one.make(2)
        if how == "stopped":
            two = estate.clone(one, "two", there)
        estate.brokers.wans[here].restore()
        await nodes.enter_async_context(one.run())
        await estate.periods(3, one)
        await nodes.enter_async_context(two.run())
        made = await one.make(20) | await two.make(20)
        await estate.periods(2, one, two)
        await assert_named(estate, one, two, address)
        made |= await one.make(20) | await two.make(20)
        await estate.settled(one, two)
        assert estate.events("outbox-clash") == []
        assert estate.missing(address) == 0

    assert estate.stored() == dict.fromkeys(first | made, 1)


@pytest.mark.parametrize(
    ("count", "waits"),
    [
        pytest.param(
            count, waits, id=f"{count}-{'waiting' if waits else 'sent'}", marks=[] if waits and count == 10 else pytest.mark.long
        )
        for count in (1, 10, 100, 1000)
        for waits in (False, True)
    ],
)  # fmt: skip
async def test_a_disk_restored_after_more_results_loses_none(
    estate: Estate, address: Address, count: int, waits: bool
) -> None:
    """What waited in the copy, and has arrived since, is recognised; what is made after the restore is new. It is no clash."""
    one = estate.machine("one", "hall", address)
    async with estate.service():
        async with one.run():
            made = await one.make(3)
            await estate.settled(one)
            if waits:
                estate.brokers.wans["hall"].cut()
                made |= await one.make(3)
            backup = one.copied_to("backup", estate.folder / "backup")
            estate.brokers.wans["hall"].restore()
            made |= await one.make(count)
            await estate.settled(one)
            await estate.periods(2, one)
        one.restore(backup)
        async with one.run():
            made |= await one.make(20)
            await estate.periods(4, one)
            await estate.settled(one)
            assert one.running.health().reasons == []
        assert estate.told(address) == []
        assert estate.missing(address) == 0
        assert f"{address} is" not in shown(estate, "region", "status")

    assert estate.stored() == dict.fromkeys(made, 1)


async def test_a_volume_that_moves_to_another_host_is_a_notice_and_no_clash(estate: Estate, address: Address) -> None:
    one = estate.machine("one", "hall", address)
    async with estate.service():
        async with one.run():
            estate.brokers.wans["hall"].cut()
            made = await one.make(5)
            await asyncio.to_thread(estate.brokers.wans["hall"].restore)
            await estate.periods(2, one)
        one.host, one.machine = "elsewhere", "another machine"
        async with one.run():
            made |= await one.make(5)
            await estate.periods(4, one)
            await estate.settled(one)
            report = one.running.health()
            assert report.outbox is not None
            assert (report.state, report.outbox.moved) == ("ok", ["machine"])
        (event,) = estate.events("outbox-moved", of_nodes=True)
        assert event["changed"] == ["machine"]
        assert "Nothing to do" in event["remedy"]
        assert estate.told(address) == ["outbox-moved"]
        assert estate.missing(address) == 0
        assert f"{address} is" not in shown(estate, "region", "status")

    assert estate.stored() == dict.fromkeys(made, 1)
