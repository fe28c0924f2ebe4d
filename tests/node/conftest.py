"""A node in this process, on a real broker, with stages that do what a test asks for."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "plugins"))

from trial_site import Site

from hedgerow.testing import Mosquitto


@pytest.fixture
async def site(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Site]:
    """A site of the test's own on the shared broker."""
    async with Site(broker.port, tmp_path) as made:
        yield made


@pytest.fixture
async def own_site(mosquitto: Mosquitto, tmp_path: Path) -> AsyncIterator[Site]:
    """A site on a broker of the test's own."""
    async with Site(mosquitto.port, tmp_path) as made:
        yield made
