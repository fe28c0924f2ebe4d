"""The load that goes past the broker and asks a server natively: as many clients as there are streams.

    python -m benchmarks.peers.native litserve < spec.json > measured.json

A closed loop like that of `load.py`, of the same Spec, with one frame of each stream under way: a server that keeps the
state of the streams can take no more.
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

from benchmarks.harness.processor import Processor
from benchmarks.peers.asking import CLIENTS


async def measure(server: str, spec: dict[str, Any], payloads: list[bytes]) -> dict[str, Any]:
    """A Measured, as a dictionary: what it leaves out is not measured here."""
    processor = Processor(spec["pids"])
    results = 0

    async def stream(name: str, first: int) -> None:
        nonlocal results
        ask = await CLIENTS[server](spec["port"])
        for number in itertools.count(first):
            await ask(name, payloads[number % len(payloads)])
            results += 1

    async def clock() -> dict[str, Any]:
        await asyncio.sleep(spec["warmup_s"])
        cpu_s, before, began = processor.seconds(), results, time.monotonic()
        await asyncio.sleep(spec["seconds"])
        seconds, answered = time.monotonic() - began, results - before
        return {
            "seconds": seconds,
            "sent": answered,
            "results": answered,
            "cpu_s": processor.since(cpu_s),
        }

    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream(name, first)) for first, name in enumerate(spec["topics"])]
        measured = await tasks.create_task(clock())
        for each in streams:
            each.cancel()
    return measured


if __name__ == "__main__":
    given = json.load(sys.stdin)
    contents = [Path(path).read_bytes() for path in given["payloads"]]
    json.dump(uvloop.run(measure(sys.argv[1], given, contents)), sys.stdout)
