"""Counts what a demo's sites produced and what the region's store has received."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from hedgerow.cli.demo.processes import DemoProcesses, Log

_SETTLE_S: Final = 120.0


async def wait_until_settled(processes: DemoProcesses, log: Log) -> None:
    """Wait until no frames are in flight and all outboxes are empty."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        processes.check()
        await processes.refresh_health()
        in_flight = sum(each["in_flight"] for site in processes.sites for each in site.pipelines())
        waiting = sum(each["waiting"] for each in count_by_site(processes).values())
        if not in_flight and not waiting:
            return
        await asyncio.sleep(0.3)
    log(f"Some frames or results have still not arrived after {_SETTLE_S:.0f} s.")


def count_by_site(processes: DemoProcesses) -> dict[str, dict[str, Any]]:
    """Return the frames and results of each site, and what the region has stored of them."""
    stored = _stored(processes.store)
    counts = {}
    for site in processes.sites:
        produced, frames, size = (
            sum(each.get(key, 0) for each in site.pipelines()) for key in ("results", "received", "bytes_in")
        )
        received = stored.get(site.name, {"stored": 0, "duplicated": 0, "bytes_up": 0, "gaps": 0, "declared_lost": 0})
        counts[site.name] = {
            "frames": frames,
            "results": produced,
            **received,
            "lost": produced - (received["stored"] - received["duplicated"]),
            "waiting": sum((health.get("outbox") or {}).get("entries", 0) for health in site.health.values()),
            "bytes_in": size,
            "bytes_in_per_byte_up": round(size / max(1, received["bytes_up"]), 1),
        }
    return counts


def _stored(store: Path) -> dict[str, dict[str, int]]:
    """Read the region's store: results, duplicates, gaps, lost results and bytes received, by site."""
    query = (
        "SELECT n.site, count(r.ingest), count(r.ingest) - count(DISTINCT r.pipeline || '/' || r.said_id), n.bytes_up"
        " FROM node n LEFT JOIN result r ON r.node = n.id GROUP BY n.id"
    )
    gaps = (
        "SELECT n.site, count(*), sum(g.lost) FROM gap g JOIN ledger l ON l.id = g.ledger"
        " JOIN node n ON n.id = l.node GROUP BY n.site"
    )
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=10)) as database:
        found = {
            site: {"stored": stored, "duplicated": duplicated, "bytes_up": size, "gaps": 0, "declared_lost": 0}
            for site, stored, duplicated, size in database.execute(query)
        }
        for site, count, lost in database.execute(gaps):
            found[site].update(gaps=count, declared_lost=lost)
    return found


def model_bytes(metrics_port: int) -> int:
    """Return the bytes of models that a region's service on this machine has sent to sites, from its metrics."""
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.search(r'^hedgerow_region_blob_bytes(?:_total)?\{of="chunks"\} (\S+)$', text, re.MULTILINE)
    return 0 if found is None else int(float(found[1]))
