"""Fixtures for pytest, there as soon as Hedgerow is installed.

- `mosquitto`: a broker of the test's own, which it may stop, kill and restart.
- `broker`: one broker for all tests of a process; take topics under `topic_prefix` so that tests do not meet.
- `topic_prefix`: a topic prefix no other test has.
- `held_port`: a TCP port no other process is given while the test runs.
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
    """A running broker of the test's own."""
    from hedgerow.testing.mosquitto import Mosquitto

    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def broker() -> Iterator[Mosquitto]:
    """A running broker that all tests of this process share."""
    from hedgerow.testing.mosquitto import Mosquitto

    with Mosquitto() as broker:
        yield broker


@pytest.fixture
def topic_prefix() -> str:
    """A topic prefix no other test has, without a slash at its end."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def held_port() -> Iterator[int]:
    """A TCP port that is the test's own: nobody listens there, and nobody else is given it, until the test has ended."""
    from hedgerow.testing import ports

    with ports.held_port() as port:
        yield port
