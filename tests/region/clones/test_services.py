"""Two services of a region on copies of one store, as real processes: both say so, and no result is in neither store."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.region.clones.disks import copy_disk, store, waiting
from tests.region.conftest import REGION, CollectorProcess, Gateway, eventually

from hedgerow.testing import Mosquitto, processes
from hedgerow.topics import Address

pytestmark = pytest.mark.long


def stored(service: CollectorProcess) -> set[str]:
    with closing(sqlite3.connect(f"file:{service.store}?mode=ro", uri=True, timeout=60)) as database:
        return {json.loads(payload)["id"] for (payload,) in database.execute("SELECT payload FROM result")}


@pytest.fixture
def services(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[list[CollectorProcess]]:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(CollectorProcess(mosquitto.url, str(tmp_path / name / "region.db"), tmp_path / name))
        made[-1].configure()
    yield made
    for one in made:
        one.close()


async def test_services_on_copies_of_one_store_are_told_apart(
    services: list[CollectorProcess], mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """The machine of the region's service was copied while it ran. Both have one client id, and end each other's link."""
    one, two = services
    one.start()
    address, had = Address(REGION, "shop", "n1"), set()
    async with Gateway(mosquitto.url, address, tmp_path, file="node") as gateway:

        async def make(count: int) -> None:
            names = [f"r{len(had) + n}" for n in range(count)]
            await store(gateway.outbox.append, address, names)
            had.update(names)

        def audit() -> None:
            left = had - waiting(tmp_path / "node.outbox")
            assert left <= stored(one) | stored(two), "acknowledged and in no store"

        await make(10)
        await eventually(lambda: gateway.entries == 0)
        copy_disk(tmp_path / "one", tmp_path / "two")
        (tmp_path / "two" / "region.log").unlink()
        two.configure()
        two.start(wait=False)

        def tells(service: CollectorProcess) -> Any:
            audit()
            return "a copy of this store" in service.probe("readyz")[1] and '"another-service"' in service.log

        for service in services:
            await eventually(lambda service=service: tells(service), lambda service=service: service.log[-2000:])  # type: ignore[misc]
        await make(20)
        for service in services:
            command = [sys.executable, "-m", "hedgerow", "region", "status", "--store", service.store, "--json"]
            status = json.loads(processes.run(command, capture_output=True, check=False).stdout)
            (other,) = status["other_services"]
            assert (other["is_copy"], status["needs_help"]) == (True, True)
        await eventually(lambda: gateway.entries == 0)
        audit()
    assert stored(one) | stored(two) == had
