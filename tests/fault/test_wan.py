"""Failures of the WAN between site and region: no result is lost or duplicated."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Deployment

SMALL = pytest.param(1, id="short", marks=pytest.mark.timeout(300))
LARGE = pytest.param(30, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_results_of_an_outage_arrive_once_and_in_order(deployment: Deployment, times: int) -> None:
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 50)
        deployment.wan.cut()
        time.sleep(6 * times)
        during = deployment.stored()
        deployment.wan.restore()
        until(lambda: deployment.stored() > during, timeout_s=120)
    deployment.assert_everything_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_a_half_open_link_is_detected_and_replaced(deployment: Deployment, times: int) -> None:
    """Bytes are silently lost; only keepalive and missing acknowledgements reveal it."""
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 50)
        for _ in range(times):
            deployment.wan.half_open()
            time.sleep(4)  # the time it is half open
            deployment.wan.restore()
            deployment.wan.reset()
            before = deployment.stored()
            until(lambda before=before: deployment.stored() > before, timeout_s=120)  # type: ignore[misc]
    deployment.assert_everything_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_a_slow_link_that_is_reset_repeatedly_loses_nothing(deployment: Deployment, times: int) -> None:
    dice = random.Random(times)
    with load(deployment.sensors, 100):
        deployment.wan.delay(0.02)
        for _ in range(3 * times):
            time.sleep(dice.uniform(0.5, 2))
            deployment.wan.reset()
    deployment.assert_everything_stored_once()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slow_link_with_resets_has_90_percent_of_the_throughput_of_a_clean_one(tmp_path: Any) -> None:
    """40 ms round trip, a reset every hundred round trips."""

    def throughput(name: str, *, faults: bool) -> int:
        folder = tmp_path / name
        folder.mkdir()
        deployment = Deployment(folder)
        dice = random.Random(1)
        try:
            until(lambda: deployment.waiting() == 0)
            with load(deployment.sensors, 200):
                end = time.monotonic() + 60
                if faults:
                    deployment.wan.delay(0.02)
                while time.monotonic() < end:
                    time.sleep(0.04)
                    if faults and dice.random() < 0.01:
                        deployment.wan.reset()
                return deployment.stored()
        finally:
            deployment.close()

    clean = throughput("clean", faults=False)
    assert throughput("faulty", faults=True) >= 0.9 * clean
