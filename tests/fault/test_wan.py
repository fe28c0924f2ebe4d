"""The way from the site to the region fails: nothing is lost, nothing comes twice."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Estate

SMALL = pytest.param(1, id="short", marks=pytest.mark.timeout(300))
LARGE = pytest.param(30, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_results_made_during_a_cut_arrive_once_and_in_order(estate: Estate, times: int) -> None:
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 50)
        estate.wan.cut()
        time.sleep(6 * times)
        during = estate.stored()
        estate.wan.restore()
        until(lambda: estate.stored() > during, patience_s=120)
    estate.everything_is_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_a_link_that_is_half_open_is_noticed_and_made_anew(estate: Estate, times: int) -> None:
    """Bytes vanish and nobody says so: only the keepalive, and our own acknowledgements, can tell."""
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 50)
        for _ in range(times):
            estate.wan.half_open()
            time.sleep(4)  # so long it is half open
            estate.wan.restore()
            estate.wan.reset()
            before = estate.stored()
            until(lambda before=before: estate.stored() > before, patience_s=120)  # type: ignore[misc]
    estate.everything_is_stored_once()


@pytest.mark.long
@pytest.mark.parametrize("times", [SMALL, LARGE])
def test_a_slow_link_that_is_reset_again_and_again_loses_nothing(estate: Estate, times: int) -> None:
    dice = random.Random(times)
    with load(estate.sensors, 100):
        estate.wan.delay(0.02)
        for _ in range(3 * times):
            time.sleep(dice.uniform(0.5, 2))
            estate.wan.reset()
    estate.everything_is_stored_once()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slow_link_with_resets_carries_nine_tenths_of_what_a_clean_one_does(tmp_path: Any) -> None:
    """40 ms there and back, one reset in a hundred round trips."""

    def carried(name: str, *, faults: bool) -> int:
        folder = tmp_path / name
        folder.mkdir()
        estate = Estate(folder)
        dice = random.Random(1)
        try:
            until(lambda: estate.waiting() == 0)
            with load(estate.sensors, 200):
                end = time.monotonic() + 60
                if faults:
                    estate.wan.delay(0.02)
                while time.monotonic() < end:
                    time.sleep(0.04)
                    if faults and dice.random() < 0.01:
                        estate.wan.reset()
                return estate.stored()
        finally:
            estate.close()

    clean = carried("clean", faults=False)
    assert carried("faulty", faults=True) >= 0.9 * clean
