"""What was made at a demo's sites and what of it is in the region's store: the account of the region's and the rollout's demo."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from hedgerow.cli.demo.processes import DemoProcesses, Say

_SETTLE_S: Final = 120.0


async def settled(estate: DemoProcesses, say: Say) -> None:
    """Wait until nothing is on its way any more."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        estate.check()
        await estate.ask_all()
        in_flight = sum(each["in_flight"] for site in estate.sites for each in site.pipelines())
        waiting = sum(each["waiting"] for each in account_of(estate).values())
        if not in_flight and not waiting:
            return
        await asyncio.sleep(0.3)
    say(f"After {_SETTLE_S:.0f} s there is still something on its way.")


def account_of(estate: DemoProcesses) -> dict[str, dict[str, Any]]:
    """What was made at each site, and what of it the region has."""
    stored = _stored(estate.store)
    account = {}
    for site in estate.sites:
        made, frames, size = (
            sum(each.get(key, 0) for each in site.pipelines()) for key in ("results", "received", "bytes_in")
        )
        kept = stored.get(site.name, {"stored": 0, "duplicated": 0, "bytes_up": 0, "gaps": 0, "declared_lost": 0})
        account[site.name] = {
            "frames": frames,
            "results": made,
            **kept,
            "lost": made - (kept["stored"] - kept["duplicated"]),
            "waiting": sum((health.get("outbox") or {}).get("entries", 0) for health in site.health.values()),
            "bytes_in": size,
            "bytes_in_per_byte_up": round(size / max(1, kept["bytes_up"]), 1),
        }
    return account


def _stored(store: Path) -> dict[str, dict[str, int]]:
    """What is in the region's store, by site: results, how many of them are repeats of another, gaps, lost, bytes up."""
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
            site: {"stored": stored, "duplicated": twice, "bytes_up": size, "gaps": 0, "declared_lost": 0}
            for site, stored, twice, size in database.execute(query)
        }
        for site, count, lost in database.execute(gaps):
            found[site].update(gaps=count, declared_lost=lost)
    return found
