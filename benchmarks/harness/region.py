"""Runs a region's service as users do: `hedgerow region run` in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from benchmarks.harness.node import wait_ready
from benchmarks.harness.process import Started, ended
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.ports import held_port


@contextmanager
def region(broker: Mosquitto, folder: Path) -> Iterator[Started]:
    """Run the service of region `bench`, which stores all results and acknowledges them to outboxes."""
    home = folder / "region"
    home.mkdir()
    with held_port() as probes, (home / "log").open("wb") as log:
        config = {
            "region": {"name": "bench"},
            "broker": {"url": broker.url},
            "store": {"url": str(home / "store.db")},
            "ping": {"every_s": None},
            "metrics": {"port": probes},
            "log": {"level": "warning", "format": "json"},
        }
        path = home / "region.yaml"
        path.write_bytes(orjson.dumps(config))  # JSON is YAML
        process = processes.start(
            [sys.executable, "-m", "hedgerow", "region", "run", str(path)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        with ended(process):
            read_log = (home / "log").read_text
            yield Started(process.pid, lambda: wait_ready(process, probes, read_log), read_log, config)
