"""Notifications to systemd, over a real datagram socket."""

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
    """Value of `NOTIFY_SOCKET`."""
    return str(tmp_path / "notify") if request.param == "path" else f"@hedgerow-{uuid.uuid4().hex}"


@pytest.fixture
def notify_socket(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listening


def receive(notify_socket: socket.socket) -> list[str]:
    return notify_socket.recv(4096).decode().split("\n")


def wait_for(notify_socket: socket.socket, expected: str) -> list[str]:
    """Return messages up to and including the expected one."""
    deadline, messages = time.monotonic() + PATIENCE_S, []
    while time.monotonic() < deadline:
        message = receive(notify_socket)[0]
        messages.append(message)
        if message == expected:
            return messages
    raise AssertionError(f"{expected} was not received, but {messages[-20:]}")


@pytest.mark.parametrize(
    ("notify", "message"),
    [(systemd.ready, "READY=1"), (systemd.stopping, "STOPPING=1"), (systemd.reloading, "RELOADING=1")],
)
def test_each_notification_is_one_datagram(
    notify_socket: socket.socket, notify: Callable[[], None], message: str
) -> None:
    notify()

    assert receive(notify_socket)[0] == message


def test_a_reload_notification_has_its_start_time(notify_socket: socket.socket) -> None:
    systemd.reloading()

    key, _, since = receive(notify_socket)[1].partition("=")
    assert key == "MONOTONIC_USEC"
    assert 0 < int(since) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_the_watchdog_is_fed_only_if_it_watches_this_process(
    notify_socket: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.alive()
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    systemd.alive()
    systemd.ready()
    assert receive(notify_socket) == ["READY=1"]

    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    systemd.alive()
    assert receive(notify_socket) == ["WATCHDOG=1"]


def test_a_missing_or_closed_socket_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "missing"))
    systemd.ready()


def test_a_node_notifies_ready_watchdog_reload_and_stop(
    notify_socket: socket.socket, broker: Mosquitto, tmp_path: Path
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
        wait_for(notify_socket, "READY=1")
        wait_for(notify_socket, "WATCHDOG=1")
        node.send_signal(signal.SIGHUP)
        wait_for(notify_socket, "RELOADING=1")
        wait_for(notify_socket, "READY=1")
        node.terminate()
        wait_for(notify_socket, "STOPPING=1")
        assert node.wait(PATIENCE_S) == 0
    finally:
        node.kill()
        node.wait()
