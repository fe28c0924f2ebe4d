"""A region whose broker is not Mosquitto: rendered site, bridge and service on ejabberd, with TLS 1.3 and certificates.

ejabberd does not take the common name of a certificate for the user, so here bridge and service say a user too; that is
what the region's operator adds, and all they add.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import until
from tests.fault.ejabberd import Ejabberd, needs_ejabberd
from tests.fault.test_three_levels import Applied
from tests.topology.conftest import begin

from hedgerow.cli.region.options import open_store
from hedgerow.errors import HedgerowError
from hedgerow.region.store import queries
from hedgerow.testing import processes

pytestmark = [needs_ejabberd, pytest.mark.slow, pytest.mark.timeout(180)]

TOPOLOGY = """\
region: {name: north, broker: 'mqtts://localhost:PORT', external: true}
pipelines: base.yaml
sensors: {camera: plant/1/door}
up: {doors: true}
sites: {hall: {broker: 'mqtts://localhost:PORT', nodes: [a]}}
"""


@pytest.fixture
def estate() -> Iterator[Applied]:
    folder = Path(tempfile.mkdtemp(prefix="external-"))
    running = begin(folder, TOPOLOGY, Applied)
    assert isinstance(running, Applied)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def hedgerow(estate: Applied, *arguments: object) -> AsyncIterator[None]:
    """A process of ours, for as long as this lasts; its log is printed if the test fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
    log = estate.folder / f"{arguments[0]}.log"
    with log.open("wb") as out:
        process = await processes.start_async(
            [sys.executable, "-m", "hedgerow", *map(str, arguments)], stdout=out, stderr=out, env=environment
        )
    try:
        yield
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.terminate()
        await process.wait()


def status(estate: Applied) -> dict[str, Any]:
    """What `hedgerow region status` says of the node; nothing as long as it says nothing."""
    try:
        database = open_store(str(estate.folder / "state/north/region/region.db"), None)
    except HedgerowError:
        return {}
    try:
        return next(iter(queries.status(database, time.time())["nodes"]), {})
    finally:
        database.close()


async def test_results_are_stored_and_acknowledged_and_pings_answered_through_another_broker(estate: Applied) -> None:
    """Up, down, and by certificate on each way; the site is as rendered but for two lines."""
    own = estate.folder / "pki/region/issued/broker"
    conf = estate.out / "hall/mosquitto.conf"
    conf.write_text(
        conf.read_text().replace(
            "\nremote_clientid ", "\nremote_username hall@localhost\nremote_password x\nremote_clientid "
        )
    )
    service = estate.out / "north/service/region.yaml"
    service.write_text(
        service.read_text().replace("  url: mqtts", "  username: service@localhost\n  password: x\n  url: mqtts")
        + "ping: {every_s: 1}\n"
    )
    (estate.folder / "state/north/region").mkdir(parents=True)
    (estate.folder / "ejabberd").mkdir()
    with Ejabberd(estate.folder / "ejabberd", estate.port("north"), own):
        estate.start("hall")
        async with (
            estate.window("hall") as hall,
            hedgerow(estate, "region", "run", service),
            hedgerow(estate, "node", "run", estate.out / "hall/nodes/a.yaml"),
            estate.client("hall", "hall", "camera") as camera,
        ):
            await asyncio.to_thread(until, lambda: status(estate).get("status") == "ok", lambda: estate.log("hall"))
            for number in range(5):
                await camera.publish("plant/1/door", f"[{number}]", qos=1)
            await asyncio.to_thread(until, lambda: status(estate).get("durable") == 5, lambda: status(estate))
            await hall.until(lambda: [topic for topic, _ in hall.seen if topic == "hedgerow/v1/north/hall/a/ack"])
