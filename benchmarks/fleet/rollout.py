"""A rollout to few nodes and to many: what it costs the region a node, what crosses the WAN, how soon a command is answered.

Whole nodes (`many_nodes.py`), most of them sharing a few processes. `make bench ONLY=rollout`; it takes minutes and memory.
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
"""How the first version comes: no frame has flowed yet."""


class Size(NamedTuple):
    """How many sites, nodes at each, and nodes with a process of their own; and processes that the others share."""

    sites: int
    nodes_a_site: int
    whole: int
    processes: int


class Seen(NamedTuple):
    """What was seen of a rollout.

    Attributes:
        nodes: how many it reached.
        cpu_ms: processor time of the region's service a node.
        wan_share: bytes of chunks that went to sites ÷ size of what is new × sites.
        answered_s: seconds until the last node had answered a command.
    """

    nodes: int
    cpu_ms: float
    wan_share: float
    answered_s: float


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


async def measure(size: Size, folder: Path, *, smoke: bool) -> Seen:
    """Take two versions through a fleet. Raises: RuntimeError: the second did not reach everybody."""
    made = make_repository(folder / "repository", ["door"])
    root = folder / "root.json"
    root.write_bytes(made.root)
    bytes_ = 0
    for version in ("1.0.0", "2.0.0"):
        model(folder / f"{version}.onnx", seed=int(version[0]))
        recipe = Recipe(model=str(folder / f"{version}.onnx"), name="door", version=version, golden=1)
        built = await asyncio.to_thread(builder.build, recipe, folder / f"door-{version}", state_dir=folder / "state")
        bytes_ = made.repository.publish(built.bundle, made.owner).bytes
    quick = {"frames_every_s": 0.1, "health_every_s": 0.5} if smoke else {}
    many = ManyNodes(size.sites, size.nodes_a_site, folder, made.repository.folder, root, processes=size.processes, whole=size.whole, **quick)  # fmt: skip
    async with many:
        await many.roll_out("first", "1.0.0", **FIRST)
        cpu_s, sent = many.cpu_s(), await many.wan_bytes()
        ended = await many.roll_out("second", "2.0.0", waves=[] if smoke else ["5%", "25%"])
        nodes = len(many.addresses)
        if many.running() != {"2.0.0": nodes}:
            raise RuntimeError(f"{ended['phase']}: {ended['because']}; they serve {many.running()}")
        spent_s, gone = many.cpu_s() - cpu_s, await many.wan_bytes() - sent
        answered = [await many.ping() for _ in range(3)]
    return Seen(nodes, spent_s / nodes * 1e3, gone / bytes_ / size.sites, sorted(each[-1] for each in answered)[1])


def run(options: Options) -> list[Cell]:
    """Few nodes, then many."""
    few, many = (Size(1, 1, 0, 1), Size(2, 1, 0, 1)) if options.smoke else (Size(1, 10, 0, 1), Size(50, 20, 4, 4))
    seen: dict[Size, list[Seen]] = {few: [], many: []}
    for _ in range(options.repeats):
        for size, each in seen.items():
            with tempfile.TemporaryDirectory() as folder:
                each.append(asyncio.run(measure(size, Path(folder), smoke=options.smoke)))
    cells = []
    for key, each in zip(("few", "many"), seen.values(), strict=True):
        name = f"{each[0].nodes:,} nodes"
        cells += [
            cell(f"rollout.{key}.cpu", f"{name}: region's processor time a node", [one.cpu_ms for one in each], "ms"),
            cell(f"rollout.{key}.wan", f"{name}: bytes to sites ÷ variant × sites", [one.wan_share for one in each], "cost ×"),
            cell(f"rollout.{key}.answered", f"{name}: until all have answered a command", [one.answered_s * 1e3 for one in each], "ms"),
        ]  # fmt: skip
    ratios = ([one.cpu_ms for one in each] for each in seen.values())
    less, more = ratios
    return [
        *cells,
        ratio("rollout.cpu_many_per_few", "region's processor time a node, many ÷ few", more, less, unit="cost ×"),
    ]
