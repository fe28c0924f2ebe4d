"""What is lost when things break: nothing. What comes twice says that it does."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hedgerow.testing import Mosquitto

SMALL_AND_LARGE = [
    pytest.param(1, id="short"),
    pytest.param(10, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@contextmanager
def load(sensors: Any, per_s: int = 150) -> Iterator[None]:
    """A steady load while the body runs."""
    over = threading.Event()

    def publish() -> None:
        while not over.wait(1 / 50):
            sensors.send(per_s // 50)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def every_frame_has_a_result(sensors: Any, collector: Any, until: Callable[..., None]) -> None:
    sensors.settle()

    def missing() -> set[int]:
        return set(range(sensors.count)) - collector.ids().keys()

    until(lambda: not missing(), lambda: f"{len(missing())} of {sensors.count} missing: {sorted(missing())[:10]}")


def duplicates_say_so(sensors: Any, collector: Any) -> None:
    """Results of one frame have one id, and those of two never the same."""
    ids = collector.ids()
    owners: dict[str, int] = {}
    for n, found in ids.items():
        # A sensor that sends a frame twice and gives it no id has sent two frames, as far as anyone can tell.
        assert len(set(found)) == 1 or (n in sensors.resent and n % 2 == 0), (n, found)
        assert n % 2 == 0 or set(found) == {f"frame-{n}"}
        for frame_id in set(found):
            assert owners.setdefault(frame_id, n) == n


@pytest.mark.long
@pytest.mark.parametrize("times", SMALL_AND_LARGE)
def test_a_node_that_is_killed_again_and_again_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], times: int
) -> None:
    """kill -9 under load: the broker keeps what was not acknowledged, and duplicates carry the same frame id."""
    dice = random.Random(times)
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        for _ in range(5 * times):
            time.sleep(dice.uniform(0.05, 0.6))
            node.kill()
            node.start()
    every_frame_has_a_result(sensors, collector, until)
    duplicates_say_so(sensors, collector)
    assert collector.said["dead/p"] == []


@pytest.mark.long
@pytest.mark.parametrize("times", SMALL_AND_LARGE)
def test_a_broker_that_is_restarted_again_and_again_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto, times: int
) -> None:
    """The broker saves its sessions when it is stopped; node, sensors and collector come back by themselves."""
    dice = random.Random(times)
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        for _ in range(4 * times):
            time.sleep(dice.uniform(0.1, 0.8))
            mosquitto.restart()
            until(lambda: node.probe("readyz")[0] == 200)
    every_frame_has_a_result(sensors, collector, until)
    duplicates_say_so(sensors, collector)
    assert collector.said["dead/p"] == []


@pytest.mark.long
def test_a_broker_that_is_frozen_does_not_keep_a_node_from_stopping(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto
) -> None:
    """Its connections stand and nothing is answered. The node leaves what it cannot finish to the next one."""
    node.configure({"trial": {"sleep_s": 0.001}}, drain_s=1)
    node.start()
    with load(sensors):
        until(collector.ids)
        assert mosquitto.pid is not None
        os.kill(mosquitto.pid, signal.SIGSTOP)
        try:
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
        finally:
            os.kill(mosquitto.pid, signal.SIGCONT)
    assert "node-stopped" in node.log
    node.start()
    every_frame_has_a_result(sensors, collector, until)
    duplicates_say_so(sensors, collector)


def test_a_node_that_is_killed_while_the_broker_restarts_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto
) -> None:
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        until(collector.ids)
        mosquitto.stop()
        time.sleep(0.1)  # time to notice and to try again
        node.kill()
        mosquitto.start()
        node.start()
    every_frame_has_a_result(sensors, collector, until)
    duplicates_say_so(sensors, collector)
