"""Observed state of the nodes, read incrementally from the store with a few queries for all nodes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import structlog
from pydantic import ValidationError

from hedgerow.region.rollouts.planning.gate import ObservedNode
from hedgerow.region.rollouts.planning.health_samples import MAX_SAMPLES, HealthSample, ModelSample, PipelineSample
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import nodes_not_moved
from hedgerow.topics import Address, Channel
from hedgerow.wire.fleet import Reported
from hedgerow.wire.ranges import MAX_COUNT

log = structlog.get_logger(__name__)

_LATE_S: Final = 30.0
"""Longest time from reception to storage for a report to be noticed; later ones are read after the next restart."""
_MAX_ROWS: Final = 20_000


@dataclass(slots=True)
class _NodeRecord:
    observed: ObservedNode = field(default_factory=ObservedNode)
    reported_at: float = 0.0
    samples: deque[HealthSample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class ObservedState:
    """Observed state of every node.

    Attributes:
        ids: row ids, by node.
        nodes: observed state, by node.
        changed: nodes that are new or have reported since the caller last cleared this.
    """

    def __init__(self) -> None:
        self.ids: dict[Address, int] = {}
        self.nodes: dict[Address, ObservedNode] = {}
        self.changed: set[Address] = set()
        self._records: dict[int, _NodeRecord] = {}
        self._addresses: dict[int, Address] = {}
        self._newest_report = 0.0
        self._newest_health = 0
        self._watched: set[int] = set()
        self._moving: set[int] = set()

    def refresh(self, database: Database) -> None:
        """Read presence and reports.

        Raises: RegionStoreError: they cannot be read.
        """
        for row in database.rows(
            "SELECT id, region, site, name, online, heard_at FROM node WHERE forgotten_at IS NULL"
        ):
            self._row(self._update_presence, row)
        self._note_moving(nodes_not_moved(database))
        since = self._newest_report - _LATE_S
        for row in database.rows(
            "SELECT node, received_at, payload FROM said WHERE channel = ? AND received_at >= ?",
            (Channel.REPORTED.value, since),
        ):
            self._row(self._update_report, row)

    def watch(self, database: Database, nodes: Collection[Address]) -> None:
        """Read the health reports of these nodes only.

        Raises: RegionStoreError: they cannot be read.
        """
        self._read_health(database, {self.ids[node] for node in nodes if node in self.ids})

    def labels(self, node: Address) -> dict[str, str]:
        """Return the labels that a node reports."""
        reported = self.nodes[node].reported
        return reported.labels if reported else {}

    def _row(self, update: Callable[..., None], row: Sequence[Any]) -> None:
        """Read a row; one that cannot be read concerns only its own node."""
        try:
            update(*row)
        except Exception:
            log.exception("node-unreadable", row=row[0], node=str(self._addresses.get(row[0], "")))

    def _update_presence(
        self, row_id: int, region: str, site: str, name: str, online: int | None, last_seen: float | None
    ) -> None:
        record = self._records.get(row_id)
        if record is None:
            address = self._addresses[row_id] = Address(region, site, name)
            record = self._records[row_id] = _NodeRecord()
            self.ids[address] = row_id
            self.changed.add(address)
        observed = record.observed
        is_online = None if online is None else bool(online)
        if observed.last_seen != last_seen or observed.online != is_online or self._addresses[row_id] not in self.nodes:
            self._set(row_id, replace(observed, online=is_online, last_seen=last_seen))

    def _note_moving(self, moving: set[int]) -> None:
        """Note which renamed nodes have not reported under their new address yet: no document reaches them before."""
        for row_id in (moving | self._moving) & self._records.keys():
            self._set(row_id, replace(self._records[row_id].observed, moving=row_id in moving))
        self._moving = moving

    def _update_report(self, row_id: int, received_at: float, payload: bytes) -> None:
        record = self._records.get(row_id)
        if record is None or received_at == record.reported_at:
            return
        record.reported_at = received_at
        self._newest_report = max(self._newest_report, received_at)
        try:
            reported = Reported.model_validate_json(bytes(payload))
        except ValidationError as error:
            log.warning("unreadable-report", node=str(self._addresses[row_id]), error=error.errors()[0]["msg"])
            return
        self.changed.add(self._addresses[row_id])
        self._set(row_id, replace(record.observed, reported=reported))

    def _read_health(self, database: Database, watched: set[int]) -> None:
        rows: list[Any] = []
        if new := watched - self._watched:  # earlier reports provide the baseline
            most = min(_MAX_ROWS, MAX_SAMPLES * max(1, len(self._records)))
            rows = database.rows("SELECT ingest, node, payload FROM health ORDER BY ingest DESC LIMIT ?", (most,))[::-1]
            rows = [row for row in rows if row[1] in new or (self._watched and row[0] > self._newest_health)]
            for row_id in new:
                self._records[row_id].samples.clear()
        elif watched:
            rows = database.rows(
                "SELECT ingest, node, payload FROM health WHERE ingest > ? ORDER BY ingest LIMIT ?",
                (self._newest_health, _MAX_ROWS),
            )
        self._watched = watched
        touched = set()
        for ingest, row_id, payload in rows:
            self._newest_health = max(self._newest_health, ingest)
            if row_id in watched and (sample := decode_sample(payload)) is not None:
                self._records[row_id].samples.append(sample)
                touched.add(row_id)
        for row_id in touched:
            record = self._records[row_id]
            self._set(row_id, replace(record.observed, samples=tuple(record.samples)))

    def _set(self, row_id: int, observed: ObservedNode) -> None:
        self._records[row_id].observed = self.nodes[self._addresses[row_id]] = observed


def decode_sample(payload: bytes) -> HealthSample | None:
    """Decode the part of a stored health report that gates need; None: it is invalid."""
    try:
        health: dict[str, Any] = orjson.loads(bytes(payload))
        return HealthSample(
            float(health["at"]),
            str(health["session"]),
            str(health["state"]),
            "; ".join(map(str, health.get("reasons", ()))),
            {name: _pipeline_sample(pipeline) for name, pipeline in health.get("pipelines", {}).items()},
            {name: _model_sample(model) for name, model in health.get("models", {}).items()},
            _count(health.get("memory_bytes", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return None


def _count(value: Any) -> int:
    """Return a count within its range: what is stored may be from a version that did not check it."""
    return min(max(int(value), 0), MAX_COUNT)


def _number(value: Any) -> float | None:
    """Return a finite number; None if it is not one."""
    return float(value) if value is not None and math.isfinite(value) else None


def _model_sample(model: dict[str, Any]) -> ModelSample:
    return ModelSample(str(model["digest"]), _count(model.get("frames", 0)), _number(model.get("drift")))


def _pipeline_sample(pipeline: dict[str, Any]) -> PipelineSample:
    return PipelineSample(
        _count(pipeline.get("received", 0)),
        _count(sum(pipeline.get("dead", {}).values())),
        _count(sum(pipeline.get("dropped", {}).values())),
        _number(pipeline.get("latency_p99_ms")),
        tuple(pipeline.get("models", ())),
    )
