"""The broker for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from hedgerow.errors import HedgerowError
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto, end_in_order, find_mosquitto


def _can_connect(port: int) -> bool:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    try:
        client.connect("127.0.0.1", port)
    except OSError:
        return False
    client.disconnect()
    return True


def test_it_accepts_connections_while_it_runs() -> None:
    with Mosquitto() as broker:
        assert _can_connect(broker.port)
        folder = broker.folder

    assert not broker.running
    assert not _can_connect(broker.port)
    assert not folder.exists()


def test_several_brokers_can_run_side_by_side() -> None:
    with Mosquitto() as one, Mosquitto() as two:
        assert one.port != two.port


def test_it_keeps_its_port_over_restarts(mosquitto: Mosquitto) -> None:
    url, pid = mosquitto.url, mosquitto.pid
    mosquitto.restart()

    assert mosquitto.url == url
    assert mosquitto.pid != pid


def test_a_broker_that_forgets_a_signal_is_stopped_in_order_by_the_next(tmp_path: Path) -> None:
    """As Mosquitto does between its log line and its loop: killed, it would lose its sessions."""
    forgets = "trap 'trap \"exit 7\" TERM' TERM; echo ready; while :; do sleep 0.01; done"
    process = processes.start(["sh", "-c", forgets], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        end_in_order(process)

    assert process.returncode == 7


@pytest.mark.parametrize(("method", "survives"), [("stop", True), ("kill", False)])
def test_a_retained_message_survives_a_stop_and_not_a_kill(mosquitto: Mosquitto, method: str, survives: bool) -> None:
    command = ["mosquitto_pub", "-p", str(mosquitto.port), "-t", "a", "-m", "retained", "-r", "-q", "1"]
    subprocess.run(command, check=True)
    getattr(mosquitto, method)()
    mosquitto.start()
    patience_s = 60 if survives else 1
    subscribe = ["mosquitto_sub", "-p", str(mosquitto.port), "-t", "a", "-C", "1", "-W", str(patience_s)]
    received = subprocess.run(subscribe, capture_output=True, check=False).stdout

    assert received == (b"retained\n" if survives else b"")


def test_a_refused_configuration_is_reported_with_the_log() -> None:
    with pytest.raises(HedgerowError, match="nonsense") as caught, Mosquitto(config=["nonsense 1"]):
        pass

    assert "mosquitto.conf" in caught.value.remedy


def test_a_port_in_use_is_named(mosquitto: Mosquitto) -> None:
    with pytest.raises(HedgerowError, match=f"port {mosquitto.port}"), Mosquitto(port=mosquitto.port):
        pass


def test_without_mosquitto_the_remedy_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("hedgerow.testing.mosquitto._FOLDERS", ())

    with pytest.raises(HedgerowError) as caught:
        find_mosquitto()
    assert "apt-get install mosquitto" in caught.value.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child when its parent dies")
def test_ctrl_c_in_a_terminal_is_not_for_the_broker(mosquitto: Mosquitto) -> None:
    """It would end it before its clients, which then report an outage in place of their results."""
    assert mosquitto._process is not None
    assert os.getpgid(mosquitto._process.pid) != os.getpgid(0)


def test_it_dies_with_a_parent_that_is_killed() -> None:
    script = (
        "import os, signal; from hedgerow.testing.mosquitto import Mosquitto; m = Mosquitto(); m.start();"
        "print(m.port, m.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = processes.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    port, folder = parent.stdout.split()

    for path in Path(folder).iterdir():
        path.unlink()
    Path(folder).rmdir()
    deadline = time.monotonic() + 60
    while _can_connect(int(port)):
        assert time.monotonic() < deadline, "the broker outlived its parent"


def test_the_fixtures_provide_a_shared_broker_and_a_prefix(broker: Mosquitto, topic_prefix: str) -> None:
    assert broker.running
    assert "/" not in topic_prefix
