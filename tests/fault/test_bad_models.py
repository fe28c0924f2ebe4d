"""Rollouts of bad model versions to a fleet of real nodes: each is stopped at the canaries and rolled back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks.fleet.many_nodes import ManyNodes
from benchmarks.fleet.rollout import FIRST

from hedgerow.models.bundle.version import ModelVersion
from hedgerow.testing.repository import make_repository

pytestmark = pytest.mark.long

X = "(float[N,256] x) => (float[N,256] y)"
GOOD = f"{X} {{ y = Add(x, x) }}"
ALSO_GOOD = f"{X} <float two = {{2.0}}> {{ y = Mul(x, two) }}"
TRIPLE = f"{X} <float three = {{3.0}}> {{ y = Mul(x, three) }}"
NAN_FOR_ZERO = f"{X} {{ z = Mul(x, x) w = Add(z, z) y = Div(w, x) }}"
"""2x, but NaN where x is 0, as in all live frames."""
SLOW = f"{X} {{ s0 = Sin(x) {' '.join(f's{n + 1} = Sin(s{n})' for n in range(2000))} y = Add(x, x) z = Sub(y, y) }}"
GREEDY = f"""{X} <float zero = {{0.0}}, int64 many = {{50000}}, int64[1] one = {{1}}, int64[1] width = {{256}}> {{
    size = Abs(x)  sum = ReduceSum <keepdims = 0> (size)  silent = Equal(sum, zero)  flag = Cast <to = 7> (silent)
    scaled = Mul(flag, many)  rows = Add(scaled, one)  shape = Concat <axis = 0> (rows, width)
    first = ReduceMean <axes = [0], keepdims = 1> (x)  large = Expand(first, shape)  changed = Sin(large)
    mean = ReduceMean <axes = [0], keepdims = 1> (changed)  none = Sub(mean, mean)  twice = Add(x, x)  y = Add(twice, none)
}}"""
"""Allocates 50 MB and more for frames of zeros, as all live frames are."""

BAD = {
    "golden-failed": (TRIPLE, GOOD),
    "not-finite": (NAN_FOR_ZERO, None),
    "slower": (SLOW, None),
    "memory-growth": (GREEDY, None),
}
"""Expected reason → the version, and the model of its golden outputs if another."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("sites", "nodes_a_site", "whole", "processes", "reasons"),
    [
        pytest.param(2, 1, 0, 1, ["slower"], id="short"),
        pytest.param(50, 20, 4, 4, list(BAD), id="long", marks=pytest.mark.slow),
    ],
)
async def test_each_bad_version_is_stopped_at_the_canaries_and_rolled_back(
    make_version: Callable[..., ModelVersion],
    tmp_path: Path,
    sites: int,
    nodes_a_site: int,
    whole: int,
    processes: int,
    reasons: list[str],
) -> None:
    """Without any operator command; other nodes are never asked to run it."""
    models, root = make_repository(tmp_path / "repository", ["door"]), tmp_path / "root.json"
    root.write_bytes(models.root)
    noise = {"x": np.random.default_rng(0).random((4, 256), np.float32)}
    models.repository.publish(make_version(GOOD, "1.0.0", samples=noise), models.owner)
    models.repository.publish(make_version(ALSO_GOOD, "2.0.0", samples=noise), models.owner)
    for number, reason in enumerate(reasons, 3):
        body, golden = BAD[reason]
        models.repository.publish(make_version(body, f"{number}.0.0", samples=noise, golden_body=golden), models.owner)
    many = ManyNodes(
        sites,
        nodes_a_site,
        tmp_path,
        models.repository.folder,
        root,
        processes=processes,
        whole=whole,
        frames_every_s=0.1 if sites < 10 else 2.0,
        health_every_s=0.5 if sites < 10 else 10.0,
    )
    async with many:
        count = len(many.addresses)
        await many.roll_out("first", "1.0.0", **FIRST)
        good = await many.roll_out("good", "2.0.0", waves=["5%", "25%"])
        assert good["phase"] == "succeeded", good["because"]
        for number, reason in enumerate(reasons, 3):
            swap = {
                "probation_s": 10 if sites > 10 else 2,
                "min_frames": 20,  # fewer are too few to compare durations
                "max_slowdown": 20,
                # Dozens of canaries share a process, and its growth counts for each of them.
                "max_growth_bytes": 40_000_000 if reason == "memory-growth" else 4_000_000_000,
            }
            gate = {"min_frames": 1, "max_slowdown": None, "max_growth_bytes": None}
            rollout = await many.roll_out(f"bad-{number}", f"{number}.0.0", waves=["5%"], swap=swap, gate=gate)

            assert rollout["phase"] == "failed", rollout["because"]
            assert reason in rollout["because"]
            canaries = [task for task in rollout["tasks"] if task["wave"] == 0]
            assert 0 < len(canaries) <= max(1, count * 0.06)
            assert [wave["begun"] for wave in rollout["waves"]] == [True, False]
            await many.until(lambda: many.running() == {"2.0.0": count}, lambda: f"running: {many.running()}")
