"""`broker/local.sh` starts and stops the broker for development, and never takes another broker for its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hedgerow.testing import Mosquitto, processes
from hedgerow.testing.ports import held_port

ROOT = Path(__file__).parents[2]


class LocalBroker:
    """A copy of the script and its configuration, on another port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        shutil.copytree(ROOT / "broker", folder / "broker")
        config = folder / "broker" / "local.conf"
        config.write_text(re.sub(r"\b1883\b", str(port), config.read_text("utf-8")), "utf-8")

    def run(self, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        return processes.run(
            ["broker/local.sh", *words],
            cwd=self.folder,
            env=os.environ | ({"PATH": path} if path else {}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def pid(self) -> int:
        return int((self.folder / ".broker" / "mosquitto.pid").read_text())


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalBroker]:
    with held_port() as port:
        broker = LocalBroker(tmp_path, port)
        yield broker
        with suppress(OSError, ValueError):
            os.kill(broker.pid, signal.SIGKILL)


def test_the_broker_starts_and_stops(local: LocalBroker) -> None:
    started = local.run("start", path="/usr/bin:/bin")  # without /usr/sbin, as a user of Debian has it

    assert (started.returncode, started.stdout) == (0, f"The broker accepts connections on 127.0.0.1:{local.port}.\n")
    assert "running already" in local.run("start").stdout
    assert local.run("stop").returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", local.port)) != 0
    assert local.run("stop").stdout == "The broker is not running.\n"


def test_a_broker_that_was_killed_is_started_again(local: LocalBroker) -> None:
    local.run("start")
    os.kill(local.pid, signal.SIGKILL)

    assert "accepts connections" in local.run("start").stdout


def test_another_broker_on_the_port_is_an_error(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Debian's own; the tour would stop ours, find the other running, and prove nothing."""
    ended = LocalBroker(tmp_path, mosquitto.port).run("start")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: Another program listens on 127.0.0.1:{mosquitto.port}")
    assert "sudo systemctl stop mosquitto" in ended.stderr


def test_a_broker_that_cannot_start_is_an_error_with_its_message(local: LocalBroker) -> None:
    config = local.folder / "broker" / "local.conf"
    config.write_text(f"{config.read_text()}\nmax_quued_bytes 1\n")

    ended = local.run("start")

    assert ended.returncode == 1
    assert "max_quued_bytes" in ended.stderr


def test_without_a_command_its_usage_is_shown(local: LocalBroker) -> None:
    ended = local.run()

    assert (ended.returncode, ended.stderr.splitlines()[0]) == (1, "error: Usage: broker/local.sh start|stop")
