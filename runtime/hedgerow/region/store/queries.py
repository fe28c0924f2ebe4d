"""Read-only queries of a region's store: results in order of capture, and the status of sites and nodes.

Results are read in pages, each with its own query, so memory is bounded and a slow reader does not keep the database from
checkpointing or vacuuming.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from hedgerow.errors import FrameError
from hedgerow.region.store.database.database import Database, RegionStoreError
from hedgerow.region.store.lease import lease_status
from hedgerow.region.store.life.identity import former_addresses
from hedgerow.region.store.liveness import Liveness, judge
from hedgerow.region.store.nodes import signs_from_row
from hedgerow.region.store.outboxes.missing import count_missing
from hedgerow.region.store.outboxes.restores import last_restore
from hedgerow.region.store.twins.rows import TwinReport, other_services, twin_reports
from hedgerow.wire.messages import JSON, MSGPACK, decode_payload
from hedgerow.wire.ranges import LATEST_TIME, MAX_COUNT

_PAGE: Final = 500
_MOST_REFUSED: Final = 1000
LATE_S: Final = 10.0
"""A collector whose last heartbeat is older than this is not running; it writes one every 2 s."""


@dataclass(frozen=True, slots=True)
class ResultQuery:
    """Filter for results. Times are Unix seconds of capture; `until` is exclusive."""

    site: str | None = None
    node: str | None = None
    pipeline: str | None = None
    since: float | None = None
    until: float | None = None
    newest: int | None = None


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A stored result."""

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
        """The decoded payload; None if it is not JSON or MessagePack."""
        if self.content_type not in (JSON, MSGPACK, ""):
            return None
        try:
            return decode_payload(self.payload, self.content_type)
        except FrameError:
            return None

    def record(self) -> dict[str, Any]:
        """Return the result as a JSON-compatible mapping."""
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


def results(database: Database, query: ResultQuery) -> Iterator[StoredResult]:
    """Yield results in order of capture."""
    conditions, values = _conditions(query)
    after: tuple[float, int] | None = None
    if query.newest is not None:
        start = database.rows(
            f"SELECT r.captured_at, r.ingest{_FROM}{_where(conditions)} "
            "ORDER BY r.captured_at DESC, r.ingest DESC LIMIT 1 OFFSET ?",
            [*values, query.newest - 1],
        )
        if start:
            after = start[0][0], start[0][1] - 1
    left = query.newest
    while left is None or left > 0:
        page_conditions, page_values = list(conditions), list(values)
        if after is not None:
            page_conditions.append("(r.captured_at, r.ingest) > (?, ?)")
            page_values += after
        page = _PAGE if left is None else min(_PAGE, left)
        rows = database.rows(
            f"{_RESULTS}{_where(page_conditions)} ORDER BY r.captured_at, r.ingest LIMIT {page}", page_values
        )  # fmt: skip
        for row in rows:
            yield _stored(row)
        if len(rows) < page:
            return
        after = rows[-1][9], rows[-1][0]
        left = None if left is None else left - len(rows)


def _conditions(query: ResultQuery) -> tuple[list[str], list[Any]]:
    filters = {
        "n.site = ?": query.site,
        "n.name = ?": query.node,
        "r.pipeline = ?": query.pipeline,
        "r.captured_at >= ?": query.since,
        "r.captured_at < ?": query.until,
    }
    used = {condition: value for condition, value in filters.items() if value is not None}
    return list(used), list(used.values())


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _stored(row: Sequence[Any]) -> StoredResult:
    ingest, region, site, node, pipeline, epoch, priority, sequence = row[:8]
    sender_id, captured_at, received_at, content_type, properties, payload = row[8:]
    number = None if epoch is None else f"{epoch}/{priority}/{sequence}"
    return StoredResult(
        ingest, region, site, node, pipeline, number, sender_id, captured_at, received_at, content_type, properties, bytes(payload)
    )  # fmt: skip


def iso(at: float) -> str:
    """Return Unix seconds as ISO 8601 in UTC; a time that no calendar has, as the nearest one that it has."""
    at = max(0.0, min(at, LATEST_TIME)) if at == at else 0.0
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def status(database: Database, now: float) -> dict[str, Any]:
    """Return the status of a region: collector, sites, nodes.

    Args:
        database: opened to read.
        now: Unix seconds.
    """
    collectors = database.rows(
        "SELECT region, started_at, beat_at, connected, version, silent_after_s, stored_bytes FROM collector"
    )
    if not collectors:
        return {
            "region": None,
            "at": iso(now),
            "needs_help": True,
            "collector": None,
            "lease": None,
            "other_services": [],
            "restored": None,
            "sites": [],
            "nodes": [],
            "rejected": {},
            "refused": [],
        }
    ((region, started_at, beat_at, connected, version, silent_after_s, stored_bytes),) = collectors
    running = now - beat_at <= LATE_S
    # While the collector does not run it receives nothing: show nodes as of its last heartbeat.
    as_of = now if running and connected else beat_at
    nodes = _nodes(database, as_of, silent_after_s)
    others = other_services(database, as_of)
    rejected: dict[str, int] = dict(database.rows("SELECT reason, count FROM rejections ORDER BY reason"))
    return {
        "region": region,
        "at": iso(now),
        "needs_help": not (running and connected) or bool(others) or any(node["needs_help"] for node in nodes),
        "collector": {
            "running": running,
            "connected": bool(connected) and running,
            "started_at": iso(started_at),
            "last_seen_at": iso(beat_at),
            "last_seen_s": round(max(0.0, now - beat_at), 1),
            "version": version,
        },
        "lease": _lease(database),
        "other_services": others,
        "restored": _restored(database),
        "stored_bytes": stored_bytes,
        "rejected": rejected,
        "refused": _refused(database, now),
        "sites": _sites(nodes),
        "nodes": nodes,
    }


def _lease(database: Database) -> dict[str, Any] | None:
    """Return who leads since when, and which services stand by."""
    lease = lease_status(database)
    return None if lease is None else lease | {"since": iso(lease["since"])}


def _restored(database: Database) -> dict[str, Any] | None:
    """Return the last restore, what nodes have sent again since, and which are ahead of this store.

    A node is ahead if it reports a generation of its desired document that this store has not given.
    """
    restore = last_restore(database)
    if restore is None:
        return None
    floor = restore.pop("generation_floor")
    given: dict[int, int] = dict(database.rows("SELECT node, generation FROM desired"))
    reports = database.rows(
        "SELECT n.id, n.region, n.site, n.name, s.payload FROM said s JOIN node n ON n.id = s.node "
        "WHERE s.channel = 'reported' ORDER BY n.region, n.site, n.name"
    )
    ahead = []
    for row, region, site, name, payload in reports:
        generation = _generation_of(payload)
        if given.get(row, 0) < generation <= floor:
            ahead.append({"node": f"{region}/{site}/{name}", "generation": generation, "known": int(given.get(row, 0))})
    return restore | {"at": iso(restore["at"]), "backup_at": iso(restore["backup_at"]), "ahead": ahead}


def _generation_of(payload: bytes) -> int:
    try:
        return int(orjson.loads(bytes(payload))["generation"])
    except (ValueError, TypeError, KeyError):
        return 0


def _refused(database: Database, now: float) -> list[dict[str, Any]]:
    """Return what was refused of each site, the most frequent first."""
    query = "SELECT site, reason, count, last_at, detail FROM refusal ORDER BY count DESC, site, reason LIMIT ?"
    try:
        rows = database.rows(query, (_MOST_REFUSED,))
    except RegionStoreError:  # the service has not been restarted since the upgrade: it creates the table
        return []
    return [
        {"site": site, "reason": reason, "count": count, "last_s": _ago(now, last_at), "detail": detail}
        for site, reason, count, last_at, detail in rows
    ]


def _nodes(database: Database, as_of: float, silent_after_s: float) -> list[dict[str, Any]]:
    gaps = {
        node: (count, min(int(lost), MAX_COUNT))
        for node, count, lost in database.rows(
            # In floating point: a sum of hostile numbers would overflow.
            "SELECT l.node, count(*), sum(CAST(g.lost AS DOUBLE PRECISION)) FROM gap g JOIN ledger l ON l.id = g.ledger GROUP BY l.node"
        )
    }
    missing: dict[int, int] = {}
    for node, epoch, state, ended in database.rows(
        "SELECT node, epoch, state, ended FROM ledger WHERE closed_at IS NULL"
    ):
        missing[node] = min(missing.get(node, 0) + count_missing(epoch, state, ended), MAX_COUNT)
    clashes: dict[int, int] = dict(
        database.rows(
            "SELECT l.node, count(*) FROM ledger l JOIN result r ON r.ledger = l.id WHERE l.clash_of IS NOT NULL GROUP BY l.node"
        )
    )
    rows = database.rows(
        "SELECT id, region, site, name, heard_at, online, stopped, health_state, health_reasons, messages_up, bytes_up, results, "
        "durable, repeats, captured_at, stored_at, answered_at, round_trip_s, clock_offset_s, unanswered, bytes_in, crashes FROM node "
        "WHERE forgotten_at IS NULL ORDER BY region, site, name"
    )
    former, twins = former_addresses(database), twin_reports(database, as_of)
    return [
        _moved(
            _readable(row, gaps, missing, as_of, silent_after_s, twins.get(row[0], TwinReport())),
            former.get(row[0], []),
        )
        | {"clashes": clashes.get(row[0], 0)}
        for row in rows
    ]


def _moved(node: dict[str, Any], formerly: list[dict[str, Any]]) -> dict[str, Any]:
    """Add a node's former addresses, and whether it has come up under its present one."""
    waits = [one["node"] for one in formerly if not one["seen"] and not one["taken"]]
    why = f"it was {waits[-1]}, and has not reported under its present name yet" if waits else ""
    return node | {"formerly": formerly, "why": "; ".join(filter(None, (node["why"], why)))}


def _readable(
    row: Sequence[Any], gaps: Any, missing: Any, as_of: float, silent_after_s: float, twins: TwinReport
) -> dict[str, Any]:
    """Describe a node; one whose row cannot be read as such, so that it does not hide the others."""
    try:
        return _node(row, gaps, missing, as_of, silent_after_s, twins)
    except Exception as error:  # noqa: BLE001 - whatever is in that row
        # id, region, site, name, 5 × nothing known, 5 counts, 6 × nothing known, 3 counts
        bare = (*row[:4], *[None] * 5, *[0] * 5, *[None] * 5, *[0] * 3)
        node = _node(bare, {}, {}, as_of, silent_after_s, twins)
        return node | {"why": f"its row in the store cannot be read: {type(error).__name__}: {error}"[:300]}


def _node(
    row: Sequence[Any], gaps: Any, missing: Any, as_of: float, silent_after_s: float, twins: TwinReport
) -> dict[str, Any]:
    row_id, region, site, name, last_seen, online, stopped, health_state, reasons, messages, size, results = row[:12]
    durable, repeats, captured_at, stored_at, last_reply, round_trip_s, offset_s, unanswered, bytes_in, crashes = row[
        12:
    ]
    signs = signs_from_row(online, stopped, last_seen, health_state, reasons, last_reply, unanswered, twins.name_in_use)
    liveness, why = judge(signs, as_of, silent_after_s)
    count, lost = gaps.get(row_id, (0, 0))
    return {
        "node": f"{region}/{site}/{name}",
        "site": site,
        "status": liveness.value,
        "verdict": liveness.old_name,
        "why": why,
        "needs_help": liveness.needs_help,
        "crashes": int(crashes),
        "twins": list(twins.twins),
        "heard_s": _ago(as_of, last_seen),
        "lag_s": None if stored_at is None else round(stored_at - captured_at, 3),
        "last_result_s": _ago(as_of, stored_at),
        "results": int(results),
        "durable": int(durable),
        "repeats": int(repeats),
        "gaps": count,
        "lost": lost,
        "awaited": missing.get(row_id, 0),
        "round_trip_s": None if round_trip_s is None else round(round_trip_s, 4),
        "answered_s": _ago(as_of, last_reply),
        "unanswered": int(unanswered),
        "clock_offset_s": None if offset_s is None else round(offset_s, 3),
        "messages_up": int(messages),
        "bytes_in": int(bytes_in),
        "bytes_up": int(size),
    }


def _sites(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    sites: dict[str, dict[str, Any]] = {}
    for node in nodes:
        site = sites.setdefault(
            node["site"],
            {"site": node["site"], "nodes": 0, "ok": 0, "heard_s": None, "results": 0, "lost": 0, "awaited": 0, "bytes_in": 0, "bytes_up": 0},
        )  # fmt: skip
        site["nodes"] += 1
        site["ok"] += node["status"] == Liveness.OK
        if node["heard_s"] is not None:
            site["heard_s"] = node["heard_s"] if site["heard_s"] is None else min(site["heard_s"], node["heard_s"])
        for name in ("results", "lost", "awaited", "bytes_in", "bytes_up"):
            site[name] = min(site[name] + node[name], MAX_COUNT)
    return list(sites.values())


def _ago(now: float, at: float | None) -> float | None:
    return None if at is None else round(max(0.0, now - at), 1)
