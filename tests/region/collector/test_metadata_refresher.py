"""The region keeps its repository fresh, and says what stands in the way; nodes notice when nobody does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.region.conftest import eventually
from tests.trust.conftest import World

from hedgerow.region.collector.collector import Collector
from hedgerow.region.collector.metadata_refresher import MetadataRefresher
from hedgerow.region.config import load
from hedgerow.testing import Mosquitto
from hedgerow.trust import errors
from hedgerow.trust.repository import online_key_of

DAY = 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def keeper_of(world: World) -> MetadataRefresher:
    return MetadataRefresher(world.repository.folder, None, lambda: world.time.wall)


def expires(keeper: MetadataRefresher) -> dict[str, float]:
    return {labels["role"]: value for name, _, labels, value in keeper.gauges() if name.endswith("expires_seconds")}


def test_a_repository_that_is_kept_stays_fresh_and_one_that_is_not_does_not(world: World) -> None:
    ref, keeper = world.publish(), keeper_of(world)

    for _ in range(10):
        world.time.passes(DAY)
        keeper.check()
        assert world.node.manifest(ref, {})
    assert keeper.problems() == []
    assert expires(keeper).keys() == {"root", "targets", "snapshot", "timestamp", "doors"}

    world.time.passes(8 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()


def test_what_an_owner_signs_elsewhere_is_taken_in(world: World) -> None:
    away = online_key_of(world.repository.folder).rename(world.folder / "region.pem")
    ref = world.publish()
    keeper = MetadataRefresher(world.repository.folder, away, lambda: world.time.wall)

    keeper.check()

    assert world.node.manifest(ref, {})


def test_without_the_online_key_it_only_says_how_long_things_count(world: World) -> None:
    world.publish()
    online_key_of(world.repository.folder).unlink()
    before = (world.repository.metadata / "timestamp.json").read_bytes()
    keeper = keeper_of(world)
    world.time.passes(2 * DAY)

    keeper.check()

    assert (world.repository.metadata / "timestamp.json").read_bytes() == before
    assert keeper.problems() == []
    world.time.passes(6 * DAY)
    keeper.check()
    assert keeper.problems() == ["timestamp of the repository: it has expired; sign it again"]


def test_what_stands_in_the_way_is_told_once_and_so_is_that_it_is_over(world: World) -> None:
    world.publish()
    keeper = keeper_of(world)
    good = world.time.wall
    with capture_logs() as said:
        for _ in range(3):
            world.time.wall = good - 2 * DAY
            keeper.check()
        assert "earlier than the last timestamp's signing time" in keeper.problems()[0]
        world.time.wall = good
        keeper.check()

    told = [line for line in said if line["event"] in ("repository-not-refreshed", "repository-recovered")]
    assert [line["event"] for line in told] == ["repository-not-refreshed", "repository-recovered"]
    assert "clock" in told[0]["remedy"]
    assert keeper.problems() == []


def test_a_folder_that_is_no_repository_holds_up_nothing(tmp_path: Path) -> None:
    keeper = MetadataRefresher(tmp_path / "nowhere", None)
    keeper.check()

    assert "is not a repository" in keeper.problems()[0]


def test_a_role_that_ends_soon_is_warned_of_once_a_day(world: World) -> None:
    world.publish()
    keeper = keeper_of(world)
    world.time.passes(340 * DAY)
    with capture_logs() as said:
        for _ in range(4):
            world.time.passes(DAY / 2)
            keeper.check()

    warned = [line["role"] for line in said if line["event"] == "signature-ending"]
    assert sorted(warned) == ["doors", "doors", "targets", "targets"]
    remedies = {line["remedy"] for line in said if line["event"] == "signature-ending"}
    assert remedies == {f"Run `hedgerow trust renew {role} --key KEY`." for role in ("doors", "targets")}


async def test_the_regions_service_keeps_the_repository_that_it_serves(world: World, mosquitto: Mosquitto) -> None:
    """As its file says; the wall clock of this machine is before that of the repository's world, so it says so."""
    world.publish()
    file = world.folder / "region.yaml"
    file.write_text(
        f"region: {{name: test}}\nbroker: {{url: '{mosquitto.url}'}}\nmodels: {{repository: repository}}\nmetrics: {{port: 0}}\n"
    )
    collector = Collector(load(file))
    running = asyncio.create_task(collector.run())
    try:
        keeper: Any = collector._refresher
        await eventually(lambda: expires(keeper) or keeper.problems(), lambda: "a look at the repository")
    finally:
        collector.stop()
        await running
