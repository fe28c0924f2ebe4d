"""Pytest fixtures, available wherever Hedgerow is installed.

- `mosquitto`: a broker for one test, which may stop, kill and restart it.
- `broker`: a broker shared by all tests of a process; use topics under `topic_prefix` to keep tests apart.
- `topic_prefix`: a unique topic prefix.
- `held_port`: a TCP port reserved for the test.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hedgerow.testing.mosquitto import Mosquitto


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A running broker for one test."""
    from hedgerow.testing.mosquitto import Mosquitto

    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def broker() -> Iterator[Mosquitto]:
    """A running broker shared by all tests of this process."""
    from hedgerow.testing.mosquitto import Mosquitto

    with Mosquitto() as broker:
        yield broker


@pytest.fixture
def topic_prefix() -> str:
    """A unique topic prefix, without a trailing slash."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def held_port() -> Iterator[int]:
    """A TCP port that nothing listens on and no other process gets until the test has ended."""
    from hedgerow.testing import ports

    with ports.held_port() as port:
        yield port
