"""The load that calls a server natively, bypassing the broker, with one client per stream.

    python -m benchmarks.peers.native litserve < spec.json > measured.json

A closed loop like that of `load.py`, with the same Spec, and one frame in flight per stream: a server that keeps the
streams' state accepts no more.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness.cpu_times import CpuTimes
from benchmarks.peers.server_clients import CLIENTS


async def measure(server: str, spec: dict[str, Any], payloads: list[bytes]) -> dict[str, Any]:
    """Return the fields of a Measured that apply here."""
    cpu_times = CpuTimes(spec["pids"])
    results = 0

    async def stream(name: str, first: int) -> None:
        nonlocal results
        infer = await CLIENTS[server](spec["port"])
        for number in itertools.count(first):
            await infer(name, payloads[number % len(payloads)])
            results += 1

    async def clock() -> dict[str, Any]:
        await asyncio.sleep(spec["warmup_s"])
        cpu_s, before, began = cpu_times.seconds(), results, time.monotonic()
        await asyncio.sleep(spec["seconds"])
        seconds, answered = time.monotonic() - began, results - before
        return {
            "seconds": seconds,
            "sent": answered,
            "results": answered,
            "cpu_s": cpu_times.since(cpu_s),
        }

    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream(name, first)) for first, name in enumerate(spec["topics"])]
        measured = await tasks.create_task(clock())
        for each in streams:
            each.cancel()
    return measured


if __name__ == "__main__":
    load_spec = json.load(sys.stdin)
    contents = [Path(path).read_bytes() for path in load_spec["payloads"]]
    json.dump(uvloop.run(measure(sys.argv[1], load_spec, contents)), sys.stdout)
