"""Rollouts end to end: a region's process, real signatures, nodes that run real models, and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import structlog
from tests.region.conftest import REGION, CollectorProcess, eventually, sender
from typer.testing import CliRunner

from hedgerow import configfile
from hedgerow.bus import Client
from hedgerow.cli.main import app
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto, processes
from hedgerow.testing.repository import make_repository

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TWICE_AGAIN = "(float[N,3] x) => (float[N,3] y) <float two = {2.0}> { y = Mul(x, two) }"
THRICE = "(float[N,3] x) => (float[N,3] y) <float three = {3.0}> { y = Mul(x, three) }"
NAN_FOR_ZERO = "(float[N,3] x) => (float[N,3] y) { z = Mul(x, x) w = Add(z, z) y = Div(w, x) }"
"""Like TWICE, but NaN where x is 0."""
SITES = ("hall-1", "hall-2", "hall-3")
SWAP = {"probation_s": 0.3, "min_frames": 5, "max_slowdown": 1000.0, "timeout_s": 60.0}
GATE = {"min_frames": 5, "max_slowdown": None}


@pytest.fixture(autouse=True)
def _quick_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frequent health reports, and node logs apart from the output of commands."""
    monkeypatch.setattr("hedgerow.node.health.HEALTH_EVERY_S", 0.3)
    monkeypatch.setattr("hedgerow.node.health.FIRST_HEALTH_S", 0.1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


async def hedgerow(*args: object) -> tuple[int, str]:
    """Run a command; return its exit code and output."""
    done = await asyncio.to_thread(CliRunner().invoke, app, [*map(str, args)], prog_name="hedgerow")
    return done.exit_code, done.output


def publish(folder: Path, versions: list[ModelVersion]) -> Path:
    """Create a repository with these versions. Returns: the root for nodes to trust."""
    made = make_repository(folder / "repository", ["door"])
    for version in versions:
        made.repository.publish(version, made.owner)
    root = folder / "root.json"
    root.write_bytes(made.root)
    return root


async def roll_out(collector: CollectorProcess, version: str, **plan: Any) -> tuple[int, dict[str, Any]]:
    """Roll a version out. Returns: the exit code of the command, and its final progress."""
    plan_file = {
        "rollout": f"door-{version}", "models": {"door": {"version": version}}, "target": "ring=1", "waves": [1],
        "soak_s": 0.5, "gate": GATE, "swap": SWAP, **plan,
    }  # fmt: skip
    file = collector.file.with_name("rollout.yaml")
    file.write_text(json.dumps(plan_file))
    options = ("--why", "a test", "--watch", "--json", "--store", collector.store)
    code, out = await hedgerow("rollout", "start", "-f", file, *options)
    assert code in (0, 1), out
    ended = json.loads(out.splitlines()[-1])
    assert ended["ended"], out
    return code, ended


def write_config(broker: Mosquitto, site: str, root: Path, folder: Path) -> Path:
    """Write a node's file; its pipeline waits until the region assigns a version of `door`."""
    config = {
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
    file.write_text(json.dumps(config))
    return file


@contextlib.asynccontextmanager
async def gateway(broker: Mosquitto, site: str, root: Path, folder: Path) -> AsyncIterator[Node]:
    """A real node, in this process."""
    file = write_config(broker, site, root, folder)
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        node.stop()
        await running


@contextlib.asynccontextmanager
async def frames(
    broker: Mosquitto, values: Callable[[], Sequence[float]] = lambda: (0.5, 0.0, 0.25)
) -> AsyncIterator[None]:
    """Publish frames for every site; each contains a 0 unless `values` is given."""

    async def send(client: Client) -> None:
        while True:
            payload = np.array(values(), np.float32).tobytes()
            for site in SITES:
                client.publish(f"{site}/camera", payload, qos=0)
            await asyncio.sleep(0.02)

    async with sender(broker.url) as client:
        sending = asyncio.create_task(send(client))
        try:
            yield
        finally:
            sending.cancel()


SHOWN_BY_NAN = {"not-finite", "error-rate"}
"""A result with NaN is a dead letter as well, and counts as such: which of the two is over its limit first is chance."""


@pytest.mark.long
async def test_good_versions_reach_every_node_and_bad_ones_are_rolled_back_on_the_first(
    collector: CollectorProcess,
    mosquitto: Mosquitto,
    make_version: Callable[..., ModelVersion],
    tmp_path: Path,
) -> None:
    """Without an operator, whether golden cases show it or only live frames do."""
    versions = {
        "1.0.0": (TWICE, TWICE),
        "2.0.0": (TWICE_AGAIN, TWICE_AGAIN),
        "3.0.0": (THRICE, TWICE),
        "4.0.0": (NAN_FOR_ZERO, NAN_FOR_ZERO),
    }
    root = publish(tmp_path, [make_version(body, one, golden_body=golden) for one, (body, golden) in versions.items()])
    collector.configure(models={"repository": str(tmp_path / "repository")})
    collector.start()

    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(gateway(mosquitto, site, root, tmp_path)) for site in SITES]
        await stack.enter_async_context(frames(mosquitto))
        await known(collector, len(SITES))
        for version in ("1.0.0", "2.0.0"):
            code, ended = await roll_out(collector, version)
            assert (code, ended["phase"], ended["states"]) == (0, "succeeded", {"succeeded": 3}), ended
        assert running(nodes) == ["2.0.0"] * 3
        for version, why in (("3.0.0", {"golden-failed"}), ("4.0.0", SHOWN_BY_NAN)):
            code, ended = await roll_out(collector, version)
            assert (code, ended["phase"]) == (1, "failed"), ended
            assert any(each in ended["because"] for each in why), ended["because"]
            assert [wave["begun"] for wave in ended["waves"]] == [True, False]
            assert [task["back"] for task in ended["tasks"] if task["generation"]] == ["proved"]
            assert running(nodes) == ["2.0.0"] * 3
        code, listed = await hedgerow("nodes", "--model", "door@2.0.0", "--json", "--store", collector.store)
        assert [node["node"] for node in json.loads(listed)] == [f"{REGION}/{site}/gateway" for site in SITES]


def running(nodes: list[Node]) -> list[str | None]:
    """Return the versions in the nodes' own health."""
    return [node.health().models["door"].version for node in nodes]


async def known(collector: CollectorProcess, count: int) -> None:
    for _ in range(600):
        _, listed = await hedgerow("nodes", "-l", "ring=1", "--json", "--store", collector.store)
        if len(json.loads(listed)) == count:
            return
        await asyncio.sleep(0.1)  # then try again
    raise AssertionError(listed)


@pytest.mark.slow
async def test_a_version_that_drifts_after_it_was_kept_is_stopped(
    collector: CollectorProcess,
    mosquitto: Mosquitto,
    make_version: Callable[..., ModelVersion],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The author's samples and canary analysis were fine; then the light changes."""
    monkeypatch.setattr("hedgerow.models.monitor.drift.WINDOW_S", 0.1)
    monkeypatch.setattr("hedgerow.models.monitor.drift.MIN_FRAMES", 10)
    draw = np.random.default_rng(1)
    samples = {"x": draw.random((200, 3), np.float32)}
    versions = [make_version(TWICE, one, samples=samples, baseline=True) for one in ("1.0.0", "2.0.0")]
    root = publish(tmp_path, versions)
    collector.configure(models={"repository": str(tmp_path / "repository")})
    collector.start()
    light = 1.0

    async with (
        gateway(mosquitto, SITES[0], root, tmp_path) as node,
        frames(mosquitto, lambda: list(light * draw.random(3))),
    ):
        await known(collector, 1)
        assert (await roll_out(collector, "1.0.0"))[0] == 0
        gate = {**GATE, "max_drift": 3.0}
        watched = asyncio.create_task(roll_out(collector, "2.0.0", soak_s=60, gate=gate))
        await eventually(lambda: node.health().models["door"].version == "2.0.0")
        await eventually(lambda: node.swaps.serving()["door"].stage == "kept")
        assert not watched.done()
        light = 0.05
        code, ended = await watched

        assert (code, ended["phase"]) == (1, "failed"), ended
        assert "drift of door is" in ended["because"]
        assert running([node]) == ["1.0.0"]


SLOW = """(float[N,3] x) => (float[N,3] y) <int64[2] size = {400,400}, float none = {0.0}>
    { m = ReduceMean<keepdims=0>(x) a = Expand(m, size) b = MatMul(a, a) c = MatMul(b, a) d = MatMul(c, a)
      s = ReduceSum<keepdims=0>(d) nothing = Mul(s, none) twice = Add(x, x) y = Add(twice, nothing) }"""
LEAKS = """(float[N,3] x) => (float[N,3] y) <float none = {0.0}, float many = {30000000.0}, float one = {1.0}, int64[1] shape = {1}>
    { e = Equal(x, none) f = Cast<to=1>(e) c = ReduceMax<keepdims=0>(f) d = Mul(c, many) n = Add(d, one) i = Cast<to=7>(n)
      r = Reshape(i, shape) big = Expand(one, r) s = ReduceMax<keepdims=0>(big) nothing = Mul(s, none) twice = Add(x, x)
      y = Add(twice, nothing) }"""
"""Allocates and keeps 120 MB once a frame contains a 0; its author's samples contain none."""
CRASHES = """(float[N,3] x) => (float[N,3] y)
    <float[2,3] table = {0,0,0,0,0,0}, float one = {1.0}, float far = {1000000000.0}>
    { m = ReduceMean<axes=[1], keepdims=1>(x) above = Sub(m, one) over = Relu(above) s = Mul(over, far)
      i = Cast<to=7>(s) row = GatherND(table, i) twice = Add(x, x) y = Add(twice, row) }"""
"""Reads far past the end of a table for values above 1; OpenVINO does not check, so it segfaults."""


class SupervisedNode:
    """A node process, restarted whenever it ends, as by systemd."""

    def __init__(self, file: Path) -> None:
        self.exit_codes: list[int] = []
        self._file = file
        self._stop = False

    async def __aenter__(self) -> Self:
        await self._start()
        self._supervision = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._supervision

    async def _start(self) -> None:
        log = self._file.with_suffix(".log").open("ab")
        command = (sys.executable, "-m", "hedgerow", "node", "run", str(self._file))
        self._process = await processes.start_async(command, stdout=log, stderr=log)

    async def _supervise(self) -> None:
        while True:
            code = await self._process.wait()
            if self._stop:
                return
            self.exit_codes.append(code)
            await self._start()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_kind_of_bad_version_is_rolled_back_on_the_first_real_node(
    collector: CollectorProcess, mosquitto: Mosquitto, make_version: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    """Wrong numbers, NaN, slowness, a crash, a leak: with node processes and default intervals of health."""
    bad: dict[str, tuple[ModelVersion, str, dict[str, Any]]] = {
        "2.0.0": (make_version(THRICE, "2.0.0", golden_body=TWICE), "golden-failed", {}),
        "3.0.0": (make_version(NAN_FOR_ZERO, "3.0.0"), "not-finite", {}),
        "4.0.0": (make_version(SLOW, "4.0.0"), "slower", {"max_slowdown": 3.0}),
        "5.0.0": (make_version(LEAKS, "5.0.0"), "memory-growth", {"max_growth_bytes": 60 << 20}),
        "6.0.0": (make_version(CRASHES, "6.0.0", backend="openvino"), "crashed", {}),
    }
    root = publish(tmp_path, [make_version(TWICE, "1.0.0"), *(candidate for candidate, _, _ in bad.values())])
    collector.configure(models={"repository": str(tmp_path / "repository")})
    collector.start()
    async with contextlib.AsyncExitStack() as stack:
        files = [write_config(mosquitto, site, root, tmp_path) for site in SITES[:2]]
        nodes = [await stack.enter_async_context(SupervisedNode(file)) for file in files]
        await known(collector, len(nodes))
        async with frames(mosquitto):
            code, ended = await roll_out(collector, "1.0.0")
            assert code == 0, ended
        for version, (_, why, limits) in bad.items():
            swap = {"probation_s": 10.0, "min_frames": 5, "max_slowdown": 1e6, **limits}
            async with frames(mosquitto, lambda why=why: (9.0, 9.0, 9.0) if why == "crashed" else (0.5, 0.0, 0.25)):
                code, ended = await roll_out(
                    collector, version, swap=swap, gate={"min_frames": 5, "max_slowdown": None}
                )
            shown = SHOWN_BY_NAN if why == "not-finite" else {why}
            assert (code, ended["phase"]) == (1, "failed"), ended
            assert any(each in ended["because"] for each in shown), ended
            assert [wave["begun"] for wave in ended["waves"]] == [True, False]
            assert [task["back"] for task in ended["tasks"] if task["code"]] == ["proved"], ended
            code, listed = await hedgerow("nodes", "--model", "door@1.0.0", "--json", "--store", collector.store)
            assert len(json.loads(listed)) == len(nodes), listed
        assert [code for node in nodes for code in node.exit_codes] == [-signal.SIGSEGV] * len(
            nodes[0].exit_codes + nodes[1].exit_codes
        )
        assert nodes[0].exit_codes + nodes[1].exit_codes
