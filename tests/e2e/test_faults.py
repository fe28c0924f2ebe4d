"""Delivery under failures: no frame is lost, and duplicates have the same id."""

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
    """Send a steady load while the body runs."""
    stopped = threading.Event()

    def publish() -> None:
        while not stopped.wait(1 / 50):
            sensors.send(per_s // 50)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def assert_every_frame_has_a_result(sensors: Any, collector: Any, until: Callable[..., None]) -> None:
    sensors.settle()

    def missing() -> set[int]:
        return set(range(sensors.count)) - collector.ids().keys()

    until(lambda: not missing(), lambda: f"{len(missing())} of {sensors.count} missing: {sorted(missing())[:10]}")


def assert_duplicates_share_their_id(sensors: Any, collector: Any) -> None:
    """Check that duplicate results of a frame have the same id, and different frames different ids."""
    ids = collector.ids()
    owners: dict[str, int] = {}
    for n, found in ids.items():
        # A frame without an id that a sensor sends twice cannot be recognised as one.
        assert len(set(found)) == 1 or (n in sensors.resent and n % 2 == 0), (n, found)
        assert n % 2 == 0 or set(found) == {f"frame-{n}"}
        for frame_id in set(found):
            assert owners.setdefault(frame_id, n) == n


@pytest.mark.long
@pytest.mark.parametrize("times", SMALL_AND_LARGE)
def test_a_node_killed_repeatedly_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], times: int
) -> None:
    """kill -9 under load: the broker keeps unacknowledged frames, and duplicates have the same frame id."""
    dice = random.Random(times)
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        for _ in range(5 * times):
            time.sleep(dice.uniform(0.05, 0.6))
            node.kill()
            node.start()
    assert_every_frame_has_a_result(sensors, collector, until)
    assert_duplicates_share_their_id(sensors, collector)
    assert collector.messages["dead/p"] == []


@pytest.mark.long
@pytest.mark.parametrize("times", SMALL_AND_LARGE)
def test_a_broker_restarted_repeatedly_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto, times: int
) -> None:
    """The broker saves its sessions when stopped; node, sensors and collector reconnect."""
    dice = random.Random(times)
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        for _ in range(4 * times):
            time.sleep(dice.uniform(0.1, 0.8))
            mosquitto.restart()
            until(lambda: node.probe("readyz")[0] == 200)
    assert_every_frame_has_a_result(sensors, collector, until)
    assert_duplicates_share_their_id(sensors, collector)
    assert collector.messages["dead/p"] == []


@pytest.mark.long
def test_a_frozen_broker_does_not_prevent_a_node_from_stopping(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto
) -> None:
    """Its connections stay open but nothing is acknowledged. The next run finishes the remaining frames."""
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
    assert_every_frame_has_a_result(sensors, collector, until)
    assert_duplicates_share_their_id(sensors, collector)


def test_a_node_killed_while_the_broker_restarts_loses_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], mosquitto: Mosquitto
) -> None:
    node.configure({"trial": {"sleep_s": 0.001}})
    node.start()
    with load(sensors):
        until(collector.ids)
        mosquitto.stop()
        time.sleep(0.1)  # time for the node to notice and to reconnect
        node.kill()
        mosquitto.start()
        node.start()
    assert_every_frame_has_a_result(sensors, collector, until)
    assert_duplicates_share_their_id(sensors, collector)
