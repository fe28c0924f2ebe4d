"""The node's clock jumps, or is not set at boot; simulated by libfaketime."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Deployment

pytestmark = pytest.mark.long

SetClock = Callable[[str], None]


@pytest.fixture
def set_clock(deployment: Deployment, tmp_path: Path) -> SetClock:
    """Return a function that sets the node's clock to an offset, or to `@` and a time; the node is stopped."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    clock_file = tmp_path / "clock"

    def set_to(text: str) -> None:
        clock_file.write_text(text + "\n")

    deployment.node.kill()
    deployment.node.environment = {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock_file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return set_to


def bodies(deployment: Deployment) -> list[dict[str, Any]]:
    return [json.loads(payload) for (payload,) in deployment.rows("SELECT payload FROM result ORDER BY ingest")]


def assert_nothing_failed_or_expired(deployment: Deployment) -> None:
    assert deployment.node.metric("hedgerow_frames_dead_total") == 0
    assert deployment.node.metric("hedgerow_frames_dropped_total") == 0
    assert deployment.node.metric("hedgerow_outbox_lost") == 0


@pytest.mark.timeout(300)
def test_a_clock_that_jumps_loses_nothing_and_is_reported(deployment: Deployment, set_clock: SetClock) -> None:
    """An hour ahead and an hour back, while results with a TTL of one hour wait."""
    deployment.configure(publish={"durable": True, "ttl_s": 3600})
    set_clock("+0")
    deployment.node.start()
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 20)
        for jump in ("+1h", "+0", "-1h"):
            deployment.wan.cut()
            set_clock(jump)
            time.sleep(2.5)  # results wait while the WAN is cut
            deployment.wan.restore()
            before = deployment.stored()
            until(lambda before=before: deployment.stored() > before)  # type: ignore[misc]
    deployment.assert_everything_stored_once()
    assert_nothing_failed_or_expired(deployment)
    jumps = [json.loads(payload)["detail"]["by_s"] for (payload,) in deployment.rows("SELECT payload FROM event WHERE kind = 'clock-jumped' ORDER BY ingest")]  # fmt: skip
    assert [round(by_s, -1) for by_s in jumps] == [3600, -3600, -3600]
    clock_states = [body["lineage"].get("clock") for body in bodies(deployment)]
    assert clock_states[0] is None
    assert clock_states[-1] == "doubtful"


@pytest.mark.timeout(300)
def test_a_node_whose_clock_is_not_set_works_and_reports_it(deployment: Deployment, set_clock: SetClock) -> None:
    """Frames of sensors with correct clocks are then half a century in the future."""
    set_clock("@1970-01-01 00:10:00")
    deployment.node.start()
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 100)
        set_clock("+0")
        before = deployment.stored()
        until(lambda: deployment.stored() > before + 50)
    deployment.assert_everything_stored_once()
    assert_nothing_failed_or_expired(deployment)
    assert bodies(deployment)[0]["lineage"]["clock"] == "doubtful"
    assert bodies(deployment)[0]["at"] < 1e6
