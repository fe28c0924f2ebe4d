"""The whole way of a model: a region's process, real signatures, nodes that run real models, and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from hedgerow import configfile
from hedgerow.bus import Client
from hedgerow.cli.main import app
from hedgerow.models.candidate import Candidate
from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto

from .conftest import REGION, CollectorProcess, sender

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TWICE_AGAIN = "(float[N,3] x) => (float[N,3] y) <float two = {2.0}> { y = Mul(x, two) }"
THRICE = "(float[N,3] x) => (float[N,3] y) <float three = {3.0}> { y = Mul(x, three) }"
NO_NUMBER_FOR_NOTHING = "(float[N,3] x) => (float[N,3] y) { z = Mul(x, x) w = Add(z, z) y = Div(w, x) }"
"""What TWICE gives, but where x is 0: there it is no number."""
SITES = ("hall-1", "hall-2", "hall-3")
SWAP = {"probation_s": 0.3, "min_frames": 5, "max_slowdown": 1000.0, "timeout_s": 60.0}
GATE = {"min_frames": 5, "max_slowdown": None}


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes that tell their health often, and whose logs do not get among what commands print."""
    monkeypatch.setattr("hedgerow.node.announce.HEALTH_EVERY_S", 0.3)
    monkeypatch.setattr("hedgerow.node.announce.FIRST_HEALTH_S", 0.1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


async def hedgerow(*args: object) -> tuple[int, str]:
    """Run a command: its exit code, and what it says."""
    done = await asyncio.to_thread(CliRunner().invoke, app, [*map(str, args)], prog_name="hedgerow")
    return done.exit_code, done.output


@contextlib.asynccontextmanager
async def gateway(broker: Mosquitto, site: str, root: Path, folder: Path) -> AsyncIterator[Node]:
    """A real node, whose pipeline waits until the region has given it a version of `door`."""
    said = {
        "node": {"region": REGION, "site": site, "name": "gateway", "state_dir": str(folder / site), "labels": {"ring": "1"}},
        "broker": {"url": broker.url},
        "metrics": {"enabled": False},
        "models": {"door": {"path": "bundle:door"}},
        "fleet": {"root_file": str(root)},
        "pipelines": {
            "doors": {"subscribe": f"{site}/+", "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}]}
        },
    }  # fmt: skip
    file = folder / f"{site}.yaml"
    file.write_text(json.dumps(said))
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        node.stop()
        await running


@contextlib.asynccontextmanager
async def frames(broker: Mosquitto) -> AsyncIterator[None]:
    """Frames for every site, all the while; each has a 0 in it."""

    async def send(client: Client) -> None:
        payload = np.array([0.5, 0.0, 0.25], np.float32).tobytes()
        while True:
            for site in SITES:
                client.publish(f"{site}/camera", payload, qos=0)
            await asyncio.sleep(0.02)

    async with sender(broker.url) as client:
        sending = asyncio.create_task(send(client))
        try:
            yield
        finally:
            sending.cancel()


async def test_good_versions_reach_everybody_and_bad_ones_come_back_from_the_first_node(
    collector: CollectorProcess,
    mosquitto: Mosquitto,
    signed_models: Any,
    make_candidate: Callable[..., Candidate],
    tmp_path: Path,
) -> None:
    """Nobody has to do anything for it: not where golden inputs show it, and not where only live frames do."""
    versions = {
        "1.0.0": (TWICE, TWICE),
        "2.0.0": (TWICE_AGAIN, TWICE_AGAIN),
        "3.0.0": (THRICE, TWICE),
        "4.0.0": (NO_NUMBER_FOR_NOTHING, NO_NUMBER_FOR_NOTHING),
    }
    for version, (body, golden) in versions.items():
        signed_models.publish(make_candidate(body, version, golden_body=golden))
    collector.configure(models={"repository": str(signed_models.repository.folder)})
    collector.start()

    async def roll_out(version: str) -> tuple[int, dict[str, Any]]:
        plan = {
            "rollout": f"door-{version}", "models": {"door": {"version": version}}, "target": "ring=1", "waves": [1],
            "soak_s": 0.5, "gate": GATE, "swap": SWAP,
        }  # fmt: skip
        file = tmp_path / "rollout.yaml"
        file.write_text(json.dumps(plan))
        code, said = await hedgerow("rollout", "start", "-f", file, "--why", "a test", "--store", collector.store)
        assert code == 0, said
        code, said = await hedgerow("rollout", "status", "--watch", "--nodes", "--json", "--store", collector.store)
        return code, json.loads(said.splitlines()[-1])

    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(gateway(mosquitto, site, signed_models.root, tmp_path)) for site in SITES
        ]
        await stack.enter_async_context(frames(mosquitto))
        await known(collector, len(SITES))
        for version in ("1.0.0", "2.0.0"):
            code, ended = await roll_out(version)
            assert (code, ended["phase"], ended["states"]) == (0, "succeeded", {"succeeded": 3}), ended
        assert running(nodes) == ["2.0.0"] * 3
        for version, why in (("3.0.0", "golden-failed"), ("4.0.0", "not-finite")):
            code, ended = await roll_out(version)
            assert (code, ended["phase"]) == (1, "failed"), ended
            assert why in ended["because"]
            assert [wave["begun"] for wave in ended["waves"]] == [True, False]
            assert [task["back"] for task in ended["tasks"] if task["generation"]] == ["proved"]
            assert running(nodes) == ["2.0.0"] * 3
        code, listed = await hedgerow("nodes", "--model", "door@2.0.0", "--json", "--store", collector.store)
        assert [node["node"] for node in json.loads(listed)] == [f"{REGION}/{site}/gateway" for site in SITES]


def running(nodes: list[Node]) -> list[str | None]:
    """The versions that nodes' own health says they run."""
    return [node.health().models["door"].version for node in nodes]


async def known(collector: CollectorProcess, count: int) -> None:
    for _ in range(600):
        _, said = await hedgerow("nodes", "-l", "ring=1", "--json", "--store", collector.store)
        if len(json.loads(said)) == count:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(said)
