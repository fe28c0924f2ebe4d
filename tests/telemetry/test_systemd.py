"""What systemd is told: over a real datagram socket, as systemd opens it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hedgerow.telemetry import systemd
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto

PATIENCE_S = 60.0


@pytest.fixture(params=["path", "abstract"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `NOTIFY_SOCKET` says."""
    return str(tmp_path / "notify") if request.param == "path" else f"@hedgerow-{uuid.uuid4().hex}"


@pytest.fixture
def told(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listening


def heard(told: socket.socket) -> list[str]:
    return told.recv(4096).decode().split("\n")


def wait_for(told: socket.socket, wanted: str) -> list[str]:
    """What comes up to and with the first message that says it."""
    deadline, messages = time.monotonic() + PATIENCE_S, []
    while time.monotonic() < deadline:
        first = heard(told)[0]
        messages.append(first)
        if first == wanted:
            return messages
    raise AssertionError(f"{wanted} did not come, but {messages[-20:]}")


@pytest.mark.parametrize(
    ("tell", "message"),
    [(systemd.ready, "READY=1"), (systemd.stopping, "STOPPING=1"), (systemd.reloading, "RELOADING=1")],
)
def test_each_change_of_state_is_one_datagram(told: socket.socket, tell: Callable[[], None], message: str) -> None:
    tell()

    assert heard(told)[0] == message


def test_a_reload_says_when_it_began(told: socket.socket) -> None:
    systemd.reloading()

    key, _, since = heard(told)[1].partition("=")
    assert key == "MONOTONIC_USEC"
    assert 0 < int(since) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_the_watchdog_is_fed_only_where_it_waits_for_this_process(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.alive()
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    systemd.alive()
    systemd.ready()
    assert heard(told) == ["READY=1"]

    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    systemd.alive()
    assert heard(told) == ["WATCHDOG=1"]


def test_without_a_socket_or_with_nobody_at_it_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.ready()


def test_a_node_tells_that_it_started_lives_reloads_and_stops(
    told: socket.socket, broker: Mosquitto, tmp_path: Path
) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(
        f"node: {{site: s, name: n{uuid.uuid4().hex[:8]}}}\nbroker: {{url: '{broker.url}'}}\n"
        "metrics: {enabled: false}\n"
    )
    node = processes.start(
        [sys.executable, "-m", "hedgerow", "node", "run", str(config)],
        env={**os.environ, "WATCHDOG_USEC": "60000000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(told, "READY=1")
        wait_for(told, "WATCHDOG=1")
        node.send_signal(signal.SIGHUP)
        wait_for(told, "RELOADING=1")
        wait_for(told, "READY=1")
        node.terminate()
        wait_for(told, "STOPPING=1")
        assert node.wait(PATIENCE_S) == 0
    finally:
        node.kill()
        node.wait()
