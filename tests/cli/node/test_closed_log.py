"""Services whose log is no longer read: `hedgerow … | head`, a supervisor that has died, a full disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hedgerow.testing import Mosquitto, processes

PATIENCE_S = 90.0


def node_config(url: str, folder: Path) -> dict[str, Any]:
    node = {"region": "r", "site": "s", "name": "n", "state_dir": str(folder / "state")}
    return {"node": node, "broker": {"url": url}, "metrics": {"enabled": False}, "pipelines": {}}


def region_config(url: str, folder: Path) -> dict[str, Any]:
    return {
        "region": {"name": "r"},
        "broker": {"url": url},
        "store": {"url": f"{folder}/region.db"},
        "metrics": {"enabled": False},
    }


SERVICES = {"node": (node_config, "node-started"), "region": (region_config, "region-started")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_whose_log_pipe_is_closed_still_stops_at_a_signal(
    broker: Mosquitto, tmp_path: Path, service: str, number: signal.Signals
) -> None:
    configure, started = SERVICES[service]
    file = tmp_path / "service.yaml"
    file.write_text(json.dumps(configure(broker.url, tmp_path)))
    process = processes.start(
        [sys.executable, "-m", "hedgerow", service, "run", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        seen = b""
        while started.encode() not in seen:
            line = process.stdout.readline()
            assert line, seen.decode()
            seen += line
        process.stdout.close()
        process.send_signal(number)

        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_full_disk_under_the_log_does_not_end_a_service(broker: Mosquitto, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(json.dumps(node_config(broker.url, tmp_path) | {"log": {"level": "debug"}}))
    with Path("/dev/full").open("wb") as full:
        process = processes.start(
            [sys.executable, "-m", "hedgerow", "node", "run", str(file)], stdout=full, stderr=full
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _handles(process.pid, signal.SIGTERM):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)

        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def _handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
