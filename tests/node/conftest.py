"""Fixtures for a node in this process, on a real broker."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "plugins"))

from trial_site import Site

from hedgerow.testing import Mosquitto


@pytest.fixture(autouse=True)
def one_health_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health forgets the dead letters and losses of a period; none ends between what a test does and what it looks at."""
    monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 3600.0)


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
