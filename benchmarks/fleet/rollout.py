"""A rollout to few and to many nodes: the region's CPU time per node, bytes over the WAN, time to reply to a command.

Uses complete nodes (`many_nodes.py`), most of which share a few processes. Run it with `make bench ONLY=rollout`; it
needs minutes and much memory.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks.fleet.many_nodes import ManyNodes
from benchmarks.harness.cells import Cell, Options, cell, ratio
from hedgerow.models.build import builder
from hedgerow.models.build.recipe import Recipe
from hedgerow.testing.repository import make_repository

FIRST: Final = {"waves": [], "gate": {"min_frames": 0, "max_slowdown": None}, "swap": {"probation_s": 0, "min_frames": 0}}  # fmt: skip
"""Plan of the first version, before any frame has flowed."""


class Size(NamedTuple):
    """Number of sites, nodes per site, nodes in their own processes, and processes shared by the others."""

    sites: int
    nodes_a_site: int
    whole: int
    processes: int


class RolloutCost(NamedTuple):
    """Measurements of a rollout.

    Attributes:
        nodes: number of nodes.
        cpu_ms: CPU time of the region's service per node.
        wan_share: bytes of chunks sent to sites ÷ (bytes of the new version × sites).
        replied_s: seconds until the last node replied to a command.
    """

    nodes: int
    cpu_ms: float
    wan_share: float
    replied_s: float


def model(path: Path, seed: int) -> None:
    """Write a model of a quarter of a megabyte: x (N, 256) → y (N, 1), float32."""
    weights = np.random.default_rng(seed).standard_normal((256, 256)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["y"], axes=[1], keepdims=1),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])] for name, size in (("x", 256), ("y", 1))
    )
    graph = helper.make_graph(nodes, "door", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


async def measure(size: Size, folder: Path, *, smoke: bool) -> RolloutCost:
    """Roll two versions out to a fleet. Raises: RuntimeError: the second did not reach all nodes."""
    source = make_repository(folder / "repository", ["door"])
    root = folder / "root.json"
    root.write_bytes(source.root)
    bytes_ = 0
    for version in ("1.0.0", "2.0.0"):
        model(folder / f"{version}.onnx", seed=int(version[0]))
        recipe = Recipe(model=str(folder / f"{version}.onnx"), name="door", version=version, golden=1)
        built = await asyncio.to_thread(builder.build, recipe, folder / f"door-{version}", state_dir=folder / "state")
        bytes_ = source.repository.publish(built.bundle, source.owner).bytes
    quick = {"frames_every_s": 0.1, "health_every_s": 0.5} if smoke else {}
    many = ManyNodes(size.sites, size.nodes_a_site, folder, source.repository.folder, root, processes=size.processes, whole=size.whole, **quick)  # fmt: skip
    async with many:
        await many.roll_out("first", "1.0.0", **FIRST)
        cpu_s, sent = many.cpu_s(), await many.wan_bytes()
        ended = await many.roll_out("second", "2.0.0", waves=[] if smoke else ["5%", "25%"])
        nodes = len(many.addresses)
        if many.running() != {"2.0.0": nodes}:
            raise RuntimeError(f"{ended['phase']}: {ended['because']}; nodes by version: {many.running()}")
        used_s, transferred = many.cpu_s() - cpu_s, await many.wan_bytes() - sent
        replies = [await many.ping() for _ in range(3)]
    wan_share = transferred / bytes_ / size.sites
    return RolloutCost(nodes, used_s / nodes * 1e3, wan_share, sorted(each[-1] for each in replies)[1])


def run(options: Options) -> list[Cell]:
    """Few nodes, then many."""
    few, many = (Size(1, 1, 0, 1), Size(2, 1, 0, 1)) if options.smoke else (Size(1, 10, 0, 1), Size(50, 20, 4, 4))
    costs: dict[Size, list[RolloutCost]] = {few: [], many: []}
    for _ in range(options.repeats):
        for size, each in costs.items():
            with tempfile.TemporaryDirectory() as folder:
                each.append(asyncio.run(measure(size, Path(folder), smoke=options.smoke)))
    cells = []
    for key, each in zip(("few", "many"), costs.values(), strict=True):
        name = f"{each[0].nodes:,} nodes"
        cells += [
            cell(f"rollout.{key}.cpu", f"{name}: region's CPU time per node", [one.cpu_ms for one in each], "ms"),
            cell(f"rollout.{key}.wan", f"{name}: bytes sent to sites ÷ (variant × sites)", [one.wan_share for one in each], "cost ×"),
            cell(f"rollout.{key}.answered", f"{name}: until all have replied to a command", [one.replied_s * 1e3 for one in each], "ms"),
        ]  # fmt: skip
    few_ms, many_ms = ([one.cpu_ms for one in each] for each in costs.values())
    return [
        *cells,
        ratio("rollout.cpu_many_per_few", "region's CPU time per node, many ÷ few", many_ms, few_ms, unit="cost ×"),
    ]
