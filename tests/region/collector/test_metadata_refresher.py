"""Metadata refresher: keeps the repository fresh, and reports problems."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.region.conftest import eventually
from tests.trust.conftest import World

from hedgerow.region.collector.metadata_refresher import MetadataRefresher
from hedgerow.region.collector.service import RegionService
from hedgerow.region.config import load
from hedgerow.testing import Mosquitto
from hedgerow.trust import errors
from hedgerow.trust.repository import online_key_of

DAY = 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def refresher_of(world: World) -> MetadataRefresher:
    return MetadataRefresher(world.repository.folder, None, lambda: world.time.wall)


def expires(refresher: MetadataRefresher) -> dict[str, float]:
    return {labels["role"]: value for name, _, labels, value in refresher.gauges() if name.endswith("expires_seconds")}


def test_a_repository_stays_fresh_only_while_it_is_refreshed(world: World) -> None:
    ref, refresher = world.publish(), refresher_of(world)

    for _ in range(10):
        world.time.advance(DAY)
        refresher.check()
        assert world.node.manifest(ref, {})
    assert refresher.problems() == []
    assert expires(refresher).keys() == {"root", "targets", "snapshot", "timestamp", "doors"}

    world.time.advance(8 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()


def test_metadata_that_an_owner_signs_elsewhere_is_added(world: World) -> None:
    key_elsewhere = online_key_of(world.repository.folder).rename(world.folder / "region.pem")
    ref = world.publish()
    refresher = MetadataRefresher(world.repository.folder, key_elsewhere, lambda: world.time.wall)

    refresher.check()

    assert world.node.manifest(ref, {})


def test_without_the_online_key_it_only_reports_expiry(world: World) -> None:
    world.publish()
    online_key_of(world.repository.folder).unlink()
    before = (world.repository.metadata / "timestamp.json").read_bytes()
    refresher = refresher_of(world)
    world.time.advance(2 * DAY)

    refresher.check()

    assert (world.repository.metadata / "timestamp.json").read_bytes() == before
    assert refresher.problems() == []
    world.time.advance(6 * DAY)
    refresher.check()
    assert refresher.problems() == ["timestamp of the repository: it has expired; sign it again"]


def test_a_problem_and_its_end_are_logged_once(world: World) -> None:
    world.publish()
    refresher = refresher_of(world)
    good = world.time.wall
    with capture_logs() as log_lines:
        for _ in range(3):
            world.time.wall = good - 2 * DAY
            refresher.check()
        assert "behind the time at which the last timestamp was signed" in refresher.problems()[0]
        world.time.wall = good
        refresher.check()

    logged = [line for line in log_lines if line["event"] in ("repository-not-refreshed", "repository-recovered")]
    assert [line["event"] for line in logged] == ["repository-not-refreshed", "repository-recovered"]
    assert "clock" in logged[0]["remedy"]
    assert refresher.problems() == []


def test_a_folder_without_a_repository_is_reported(tmp_path: Path) -> None:
    refresher = MetadataRefresher(tmp_path / "nowhere", None)
    refresher.check()

    assert "is not a repository" in refresher.problems()[0]


def test_a_role_that_expires_soon_is_warned_of_once_a_day(world: World) -> None:
    world.publish()
    refresher = refresher_of(world)
    world.time.advance(340 * DAY)
    with capture_logs() as log_lines:
        for _ in range(4):
            world.time.advance(DAY / 2)
            refresher.check()

    warned = [line["role"] for line in log_lines if line["event"] == "signature-ending"]
    assert sorted(warned) == ["doors", "doors", "targets", "targets"]
    remedies = {line["remedy"] for line in log_lines if line["event"] == "signature-ending"}
    assert remedies == {f"Run `hedgerow trust renew {role} --key KEY`." for role in ("doors", "targets")}


async def test_the_regions_service_refreshes_the_repository_it_serves(world: World, mosquitto: Mosquitto) -> None:
    """This machine's clock is behind that of the test's repository, so either metadata or a problem appears."""
    world.publish()
    file = world.folder / "region.yaml"
    file.write_text(
        f"region: {{name: test}}\nbroker: {{url: '{mosquitto.url}'}}\nmodels: {{repository: repository}}\nmetrics: {{port: 0}}\n"
    )
    service = RegionService(load(file))
    running = asyncio.create_task(service.run())
    try:
        await eventually(lambda: service.collector is not None)
        refresher: Any = service.collector and service.collector._refresher
        await eventually(
            lambda: expires(refresher) or refresher.problems(), lambda: "the first check of the repository"
        )
    finally:
        service.stop()
        await running
