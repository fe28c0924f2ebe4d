"""What is asked of a region's store: results in order of capture, and how sites and nodes are. Only reads.

Results are read a page at a time, each in a query of its own: so memory is bounded, and nobody who reads for long keeps
the collector from tidying up.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from hedgerow.errors import FrameError
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.ledgers import ledger_of
from hedgerow.region.store.liveness import Liveness, judge
from hedgerow.region.store.nodes import signs_of
from hedgerow.wire.messages import JSON, MSGPACK, decode_payload

_PAGE: Final = 500
LATE_S: Final = 10.0
"""The collector writes down that it is there every two seconds; after this time it is not."""


@dataclass(frozen=True, slots=True)
class ResultQuery:
    """Which results. Times are Unix seconds of capture; `until` itself is not among them."""

    site: str | None = None
    node: str | None = None
    pipeline: str | None = None
    since: float | None = None
    until: float | None = None
    newest: int | None = None


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result as it is stored."""

    ingest: int
    region: str
    site: str
    node: str
    pipeline: str
    number: str | None
    id: str | None
    captured_at: float
    received_at: float
    content_type: str
    properties: str | None
    payload: bytes

    @property
    def body(self) -> Any:
        """What the payload says; None if it is a picture, sound or the like."""
        if self.content_type not in (JSON, MSGPACK, ""):
            return None
        try:
            return decode_payload(self.payload, self.content_type)
        except FrameError:
            return None

    def record(self) -> dict[str, Any]:
        """As a line of JSON."""
        record: dict[str, Any] = {
            "ingest": self.ingest,
            "node": f"{self.region}/{self.site}/{self.node}",
            "pipeline": self.pipeline,
            "number": self.number,
            "durable": self.number is not None,
            "id": self.id,
            "captured_at": iso(self.captured_at),
            "received_at": iso(self.received_at),
            "content_type": self.content_type,
        }
        if (body := self.body) is not None:
            return record | {"payload": body}
        if self.properties is not None:
            record["properties"] = orjson.loads(self.properties)
        return record | {"payload_base64": base64.b64encode(self.payload).decode()}


_RESULTS: Final = """
SELECT r.ingest, n.region, n.site, n.name, r.pipeline, l.epoch, r.priority, r.sequence, r.said_id, r.captured_at,
       r.received_at, r.content_type, r.properties, r.payload
FROM result r JOIN node n ON n.id = r.node LEFT JOIN ledger l ON l.id = r.ledger
"""
_FROM: Final = " FROM result r JOIN node n ON n.id = r.node"


def results(database: Database, wanted: ResultQuery) -> Iterator[StoredResult]:
    """Results, in order of capture."""
    conditions, values = _conditions(wanted)
    after: tuple[float, int] | None = None
    if wanted.newest is not None:
        start = database.rows(
            f"SELECT r.captured_at, r.ingest{_FROM}{_where(conditions)} "
            "ORDER BY r.captured_at DESC, r.ingest DESC LIMIT 1 OFFSET ?",
            [*values, wanted.newest - 1],
        )
        if start:
            after = start[0][0], start[0][1] - 1
    left = wanted.newest
    while left is None or left > 0:
        here, given = list(conditions), list(values)
        if after is not None:
            here.append("(r.captured_at, r.ingest) > (?, ?)")
            given += after
        page = _PAGE if left is None else min(_PAGE, left)
        rows = database.rows(
            f"{_RESULTS}{_where(here)} ORDER BY r.captured_at, r.ingest LIMIT {page}", given
        )  # fmt: skip
        for row in rows:
            yield _stored(row)
        if len(rows) < page:
            return
        after = rows[-1][9], rows[-1][0]
        left = None if left is None else left - len(rows)


def _conditions(wanted: ResultQuery) -> tuple[list[str], list[Any]]:
    given = {
        "n.site = ?": wanted.site,
        "n.name = ?": wanted.node,
        "r.pipeline = ?": wanted.pipeline,
        "r.captured_at >= ?": wanted.since,
        "r.captured_at < ?": wanted.until,
    }
    there = {condition: value for condition, value in given.items() if value is not None}
    return list(there), list(there.values())


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _stored(row: Sequence[Any]) -> StoredResult:
    ingest, region, site, node, pipeline, epoch, priority, sequence = row[:8]
    said_id, captured_at, received_at, content_type, properties, payload = row[8:]
    number = None if epoch is None else f"{epoch}/{priority}/{sequence}"
    return StoredResult(
        ingest, region, site, node, pipeline, number, said_id, captured_at, received_at, content_type, properties, bytes(payload)
    )  # fmt: skip


def iso(at: float) -> str:
    """Unix seconds as UTC in ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status(database: Database, now: float) -> dict[str, Any]:
    """How the region is: collector, sites, nodes.

    Args:
        now: Unix seconds.
    """
    collectors = database.rows(
        "SELECT region, started_at, beat_at, connected, version, silent_after_s, stored_bytes FROM collector"
    )
    if not collectors:
        return {"region": None, "at": iso(now), "collector": None, "sites": [], "nodes": [], "rejected": {}}
    ((region, started_at, beat_at, connected, version, silent_after_s, stored_bytes),) = collectors
    runs = now - beat_at <= LATE_S
    # Where the collector is away nobody can be heard: nodes are shown as they were when it last was there.
    as_of = now if runs and connected else beat_at
    nodes = _nodes(database, as_of, silent_after_s)
    rejected: dict[str, int] = dict(database.rows("SELECT reason, count FROM rejections ORDER BY reason"))
    return {
        "region": region,
        "at": iso(now),
        "collector": {
            "running": runs,
            "connected": bool(connected) and runs,
            "started_at": iso(started_at),
            "last_seen_at": iso(beat_at),
            "last_seen_s": round(max(0.0, now - beat_at), 1),
            "version": version,
        },
        "stored_bytes": stored_bytes,
        "rejected": rejected,
        "sites": _sites(nodes),
        "nodes": nodes,
    }


def _nodes(database: Database, as_of: float, silent_after_s: float) -> list[dict[str, Any]]:
    gaps = {
        node: (count, int(lost))
        for node, count, lost in database.rows(
            "SELECT l.node, count(*), sum(g.lost) FROM gap g JOIN ledger l ON l.id = g.ledger GROUP BY l.node"
        )
    }
    awaited: dict[int, int] = {}
    for node, epoch, state in database.rows("SELECT node, epoch, state FROM ledger"):
        awaited[node] = awaited.get(node, 0) + _holes(epoch, state)
    rows = database.rows(
        "SELECT id, region, site, name, heard_at, online, health_state, health_reasons, messages_up, bytes_up, results, "
        "durable, repeats, captured_at, stored_at, answered_at, round_trip_s, clock_offset_s, unanswered, bytes_in FROM node "
        "ORDER BY region, site, name"
    )
    shown = []
    for row in rows:
        row_id, region, site, name, heard_at, online, health_state, reasons, messages, size, results, durable, repeats = row[:13]  # fmt: skip
        captured_at, stored_at, answered_at, round_trip_s, offset_s, unanswered, bytes_in = row[13:]
        verdict, why = judge(
            signs_of(online, heard_at, health_state, reasons, answered_at, unanswered), as_of, silent_after_s
        )
        count, lost = gaps.get(row_id, (0, 0))
        shown.append(
            {
                "node": f"{region}/{site}/{name}",
                "site": site,
                "status": verdict.status,
                "verdict": verdict.value,
                "why": why,
                "heard_s": _ago(as_of, heard_at),
                "lag_s": None if stored_at is None else round(stored_at - captured_at, 3),
                "last_result_s": _ago(as_of, stored_at),
                "results": results,
                "durable": durable,
                "repeats": repeats,
                "gaps": count,
                "lost": lost,
                "awaited": awaited.get(row_id, 0),
                "round_trip_s": None if round_trip_s is None else round(round_trip_s, 4),
                "answered_s": _ago(as_of, answered_at),
                "unanswered": unanswered,
                "clock_offset_s": None if offset_s is None else round(offset_s, 3),
                "messages_up": messages,
                "bytes_in": bytes_in,
                "bytes_up": size,
            }
        )
    return shown


def _holes(epoch: str, state: str) -> int:
    """Numbers that have not come though later ones have."""
    ledger = ledger_of(epoch, state)
    return sum(
        high - low + 1
        for priority, ranges in ledger.state().items()
        for low, high in ledger.ranges(priority).missing(ranges[-1][1])
    )


def _sites(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    sites: dict[str, dict[str, Any]] = {}
    for node in nodes:
        site = sites.setdefault(
            node["site"],
            {"site": node["site"], "nodes": 0, "ok": 0, "heard_s": None, "results": 0, "lost": 0, "awaited": 0, "bytes_in": 0, "bytes_up": 0},
        )  # fmt: skip
        site["nodes"] += 1
        site["ok"] += node["verdict"] == Liveness.OK
        if node["heard_s"] is not None:
            site["heard_s"] = node["heard_s"] if site["heard_s"] is None else min(site["heard_s"], node["heard_s"])
        for name in ("results", "lost", "awaited", "bytes_in", "bytes_up"):
            site[name] += node[name]
    return list(sites.values())


def _ago(now: float, at: float | None) -> float | None:
    return None if at is None else round(max(0.0, now - at), 1)
