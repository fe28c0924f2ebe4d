"""Fixtures for a node in this process, on a real broker."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "plugins"))

from trial_site import Site
from trial_stages import Trial, TrialColumns

from hedgerow.testing import Mosquitto


@pytest.fixture(autouse=True)
def one_health_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health forgets the dead letters and losses of a period; none ends between what a test does and what it looks at."""
    monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 3600.0)


EVERY_DAY_AS_COLUMNS = {
    "test_every_frame_has_one_outcome_and_the_tally_balances_at_every_moment",
    "test_a_qos_1_frame_is_acknowledged_only_after_its_result_is_accepted",
}
"""Tests that run as columns in `make test` too; the others of their modules, in `make test-long`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of delivery, order and floods again with a stage that takes columns."""
    if metafunc.module.__name__.rpartition(".")[2] in ("test_delivery", "test_durable", "test_floods"):
        marks = () if metafunc.function.__name__ in EVERY_DAY_AS_COLUMNS else pytest.mark.long
        ways = ["frames", pytest.param("columns", marks=marks)]
        metafunc.fixturenames.append("way")
        metafunc.parametrize("way", ways, indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Whether the stage `trial` processes frames, or columns too; a counter proves that columns ran."""
    rows = TrialColumns.rows
    if request.param == "columns":
        monkeypatch.setattr(Trial, "process_batch", TrialColumns.process_batch)
        monkeypatch.setattr("hedgerow.pipeline.local_pipeline.FEWEST_ROWS", 1)
    yield request.param
    if request.param == "columns" and request.function.__name__ in EVERY_DAY_AS_COLUMNS:
        assert TrialColumns.rows > rows


@pytest.fixture
async def site(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Site]:
    """A site for this test, on the shared broker."""
    async with Site(broker.port, tmp_path) as site:
        yield site


@pytest.fixture
async def own_site(mosquitto: Mosquitto, tmp_path: Path) -> AsyncIterator[Site]:
    """A site for this test, on its own broker."""
    async with Site(mosquitto.port, tmp_path) as site:
        yield site
