"""A region whose broker is ejabberd: rendered site, bridge and service, with TLS 1.3 and certificates.

ejabberd does not use a certificate's common name as user name, so bridge and service need a user name too; the region's
operator adds nothing else.
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
from tests.topology.conftest import prepare

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
def deployment() -> Iterator[Applied]:
    folder = Path(tempfile.mkdtemp(prefix="external-"))
    running = prepare(folder, TOPOLOGY, Applied)
    assert isinstance(running, Applied)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def hedgerow(deployment: Applied, *arguments: object) -> AsyncIterator[None]:
    """Run a `hedgerow` process during the body; print its log if the test fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
    log = deployment.folder / f"{arguments[0]}.log"
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


def status(deployment: Applied) -> dict[str, Any]:
    """Return the node's entry of `hedgerow region status`, or {} if there is none yet."""
    try:
        database = open_store(str(deployment.folder / "state/north/region/region.db"), None)
    except HedgerowError:
        return {}
    try:
        return next(iter(queries.status(database, time.time())["nodes"]), {})
    finally:
        database.close()


async def test_results_acknowledgements_and_pings_pass_through_another_broker(deployment: Applied) -> None:
    """In both directions, with certificates; only two lines of the rendered site are added."""
    own = deployment.folder / "pki/region/issued/broker"
    conf = deployment.out / "hall/mosquitto.conf"
    conf.write_text(
        conf.read_text().replace(
            "\nremote_clientid ", "\nremote_username hall@localhost\nremote_password x\nremote_clientid "
        )
    )
    service = deployment.out / "north/service/region.yaml"
    service.write_text(
        service.read_text().replace("  url: mqtts", "  username: service@localhost\n  password: unused\n  url: mqtts")
        + "ping: {every_s: 1}\n"
    )
    (deployment.folder / "state/north/region").mkdir(parents=True)
    (deployment.folder / "ejabberd").mkdir()
    with Ejabberd(deployment.folder / "ejabberd", deployment.port("north"), own):
        deployment.start("hall")
        async with (
            deployment.window("hall") as hall,
            hedgerow(deployment, "region", "run", service),
            hedgerow(deployment, "node", "run", deployment.out / "hall/nodes/a.yaml"),
            deployment.client("hall", "hall", "camera") as camera,
        ):
            await asyncio.to_thread(
                until, lambda: status(deployment).get("status") == "ok", lambda: deployment.log("hall")
            )
            for number in range(5):
                await camera.publish("plant/1/door", f"[{number}]", qos=1)
            await asyncio.to_thread(until, lambda: status(deployment).get("durable") == 5, lambda: status(deployment))
            await hall.until(lambda: [topic for topic, _ in hall.seen if topic == "hedgerow/v1/north/hall/a/ack"])
