"""Stopping a node while a stage hangs, or while its pipelines are built: it ends in time, and leaves no process behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.node.node import Node
from hedgerow.pipeline.crash_journal import CrashJournal
from hedgerow.pipeline.workers.worker_pipeline import WorkerPipeline
from hedgerow.testing import processes

PLUGINS = Path(__file__).parent / "plugins"
HANGS = {"name": "trial", "timeout_s": 1000}


def start(site: Site, pipelines: dict[str, Any], **node: Any) -> subprocess.Popen[Any]:
    """Start a node in a process of its own."""
    file = site.folder / "node.yaml"
    file.write_text(site.yaml(pipelines, node=node))
    path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "hedgerow", "node", "run", file]
    return processes.start(command, env=os.environ | {"PYTHONPATH": path})


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, from any of its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
async def test_a_worker_whose_stage_hangs_ends_with_its_node(site: Site, number: signal.Signals) -> None:
    """It is in a stage, so it does not see that the node has closed its pipe."""
    node = start(site, {"p": site.pipeline(HANGS, workers=1)}, drain_s=0.1)
    try:
        await until(lambda: site.published("health"))  # its pipelines have started
        await site.frame(0)
        await site.wait_results(1)
        (worker,) = children(node.pid)
        await site.frame(1, "hang")
        while (await site.command("health"))["value"]["pipelines"]["p"]["in_flight"] == 0:
            pass

        node.send_signal(number)
        await asyncio.to_thread(node.wait)

        await until(lambda: not runs(worker))
    finally:
        processes.end(node, sig=signal.SIGKILL)


async def test_a_worker_whose_stage_hangs_ends_with_its_pipeline(site: Site) -> None:
    """The reload needs another link, so the pipeline is stopped, and its list with it."""
    gate = {"name": "gate", "config": {"path": str(site.folder / "gate")}, "timeout_s": 1000}
    async with site.node({"p": site.pipeline(gate, "trial", workers=1)}, node={"drain_s": 0.1}) as node:
        old = node.runners["p"].built
        assert isinstance(old, WorkerPipeline)
        pid = old._workers[0].pid
        await site.frame(0)
        await until(lambda: old._workers[0].running)

        site.write({"p": site.pipeline("trial", workers=1, receive_maximum=7)}, node={"drain_s": 0.1})
        await node.reload()

        await site.wait_results(1)
        await until(lambda: not runs(pid))
        await until(lambda: old.running == 0 and old.wait_closed(0))
        assert site.events("worker-crashed") == []
        assert node.health().state == "ok"


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_node_that_is_still_building_its_pipelines_stops_when_told_to(site: Site, workers: int) -> None:
    """This stop is no crash of the pipeline that is being set up."""
    gate = {"name": "setup-gate", "config": {"path": str(site.folder / "gate")}}
    file = site.folder / "node.yaml"
    file.write_text(site.yaml({"p": site.pipeline(), "q": site.pipeline(gate, workers=workers)}))
    node, others = Node(configfile.load(file), file), set(children(os.getpid()))
    running = asyncio.create_task(node.run())
    try:
        journal = site.folder / "state" / "crashes"
        await until(lambda: site.published("status"))
        await until(lambda: set(children(os.getpid())) - others if workers else list(journal.glob("q.*.lane")))

        node.stop()
        await running

        assert node.runners == {}
        assert CrashJournal(journal).found == []
    finally:
        (site.folder / "gate").touch()
        await running
    await until(lambda: site.published("status")[-1].body.get("reason") == "stopped")
