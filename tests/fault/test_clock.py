"""The gateway's clock jumps, or is not set when it boots. The node's clock is simulated, by libfaketime."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Estate

pytestmark = pytest.mark.long

Set = Callable[[str], None]


@pytest.fixture
def set_clock(estate: Estate, tmp_path: Path) -> Set:
    """Sets the node's clock: a difference, or `@` and a time. The node is stopped, and starts with it."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("there is no libfaketime here: apt-get install faketime")
    said = tmp_path / "clock"

    def set_to(text: str) -> None:
        said.write_text(text + "\n")

    estate.node.kill()
    estate.node.environment = {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(said),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return set_to


def bodies(estate: Estate) -> list[dict[str, Any]]:
    return [json.loads(payload) for (payload,) in estate.rows("SELECT payload FROM result ORDER BY ingest")]


def nothing_died_or_expired(estate: Estate) -> None:
    assert estate.node.metric("hedgerow_frames_dead_total") == 0
    assert estate.node.metric("hedgerow_frames_dropped_total") == 0
    assert estate.node.metric("hedgerow_outbox_lost") == 0


@pytest.mark.timeout(300)
def test_a_clock_that_jumps_loses_nothing_and_says_so(estate: Estate, set_clock: Set) -> None:
    """An hour ahead, and an hour back, while results wait that may be an hour old at most."""
    estate.configure(publish={"durable": True, "ttl_s": 3600})
    set_clock("+0")
    estate.node.start()
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 20)
        for jump in ("+1h", "+0", "-1h"):
            estate.wan.cut()
            set_clock(jump)
            time.sleep(2.5)  # so long the WAN is cut, and results wait
            estate.wan.restore()
            before = estate.stored()
            until(lambda before=before: estate.stored() > before)  # type: ignore[misc]
    estate.everything_is_stored_once()
    nothing_died_or_expired(estate)
    jumps = [json.loads(payload)["detail"]["by_s"] for (payload,) in estate.rows("SELECT payload FROM event WHERE kind = 'clock-jumped' ORDER BY ingest")]  # fmt: skip
    assert [round(by_s, -1) for by_s in jumps] == [3600, -3600, -3600]
    doubted = [body["lineage"].get("clock") for body in bodies(estate)]
    assert doubted[0] is None
    assert doubted[-1] == "doubtful"


@pytest.mark.timeout(300)
def test_a_node_whose_clock_is_not_set_works_and_says_so(estate: Estate, set_clock: Set) -> None:
    """Sensors whose clocks are right send frames from a future of half a century."""
    set_clock("@1970-01-01 00:10:00")
    estate.node.start()
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 100)
        set_clock("+0")
        before = estate.stored()
        until(lambda: estate.stored() > before + 50)
    estate.everything_is_stored_once()
    nothing_died_or_expired(estate)
    assert bodies(estate)[0]["lineage"]["clock"] == "doubtful"
    assert bodies(estate)[0]["at"] < 1e6
