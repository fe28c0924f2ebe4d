"""Runs a node as users do: `hedgerow node run` in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from benchmarks.harness.process import Started, ended
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.ports import held_port

_READY_S = 120.0
_ROOT = Path(__file__).parents[2]
RESULTS = "hedgerow/v1/bench/site/{node}/result/{pipeline}"
COMMAND = "hedgerow/v1/bench/site/{node}/{part}/{name}"


@contextmanager
def node(
    name: str,
    broker: Mosquitto,
    folder: Path,
    pipelines: Mapping[str, Any],
    models: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Iterator[Started]:
    """Run a node in its own process.

    Args:
        name: of the node, and of its folder inside `folder`.
        pipelines, models, sections: as in a configuration.
    """
    home = folder / name
    home.mkdir()
    _register_stages(home)
    with held_port() as probes, (home / "log").open("wb") as log:
        config = {
            "node": {"region": "bench", "site": "site", "name": name, "state_dir": str(home / "state"), "drain_s": 1},
            "broker": {"url": broker.url},
            "models": dict(models or {}),
            "pipelines": dict(pipelines),
            "metrics": {"port": probes},
            "log": {"level": "warning", "format": "json"},
            **sections,
        }
        path = home / "node.yaml"
        path.write_bytes(orjson.dumps(config))  # JSON is YAML
        process = processes.start(
            [sys.executable, "-m", "hedgerow", "node", "run", str(path)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=_environment(home),
        )
        with ended(process):
            read_log = (home / "log").read_text
            yield Started(process.pid, lambda: _wait_ready(process, probes, read_log), read_log, config)


def _register_stages(home: Path) -> None:
    """Register the benchmarks' stages as an installed package would."""
    info = home / "hedgerow_benchmarks-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hedgerow-benchmarks\nVersion: 0\n")
    stages = (
        f"{name.lower()} = benchmarks.stages.{name.lower()}:{name}"
        for name in ("Count", "Noop", "Spin", "Threshold", "Weigh")
    )
    (info / "entry_points.txt").write_text("\n".join(["[hedgerow.stages]", *stages, ""]))


def _environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(home), str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}


def _wait_ready(process: subprocess.Popen[bytes], probes: int, read_log: Callable[[], str]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{probes}/readyz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"The node did not become ready:\n{read_log()[-3000:]}")
