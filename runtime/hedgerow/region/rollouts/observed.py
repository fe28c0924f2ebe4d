"""What is known of nodes, read from the store as it comes: a few queries for all nodes, never one for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import structlog
from pydantic import ValidationError

from hedgerow.region.rollouts.planning.gate import Facts
from hedgerow.region.rollouts.planning.health_samples import MOST_SAMPLES, Flow, Sample, Shown
from hedgerow.region.store.database.database import Database
from hedgerow.topics import Address, Channel
from hedgerow.wire.fleet import Reported

log = structlog.get_logger(__name__)

_LATE_S: Final = 30.0
"""What is stored this much after it came is still noticed at once; what is even later, with the next `reload`."""
_AT_ONCE: Final = 20_000


@dataclass(slots=True)
class _ObservedNode:
    facts: Facts = field(default_factory=Facts)
    reported_at: float = 0.0
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))


class ObservedState:
    """What is known of every node.

    Attributes:
        ids: the nodes' rows.
        facts: by node.
        changed: nodes that are new, or reported something, since this was emptied.
    """

    def __init__(self) -> None:
        self.ids: dict[Address, int] = {}
        self.facts: dict[Address, Facts] = {}
        self.changed: set[Address] = set()
        self._nodes: dict[int, _ObservedNode] = {}
        self._addresses: dict[int, Address] = {}
        self._newest_said = 0.0
        self._newest_health = 0
        self._watched: set[int] = set()

    def refresh(self, database: Database) -> None:
        """Read who is heard, and what they report. Raises: StoreError: it cannot be read."""
        for row in database.rows("SELECT id, region, site, name, online, heard_at FROM node"):
            self._heard(*row)
        since = self._newest_said - _LATE_S
        for row in database.rows(
            "SELECT node, received_at, payload FROM said WHERE channel = ? AND received_at >= ?",
            (Channel.REPORTED.value, since),
        ):
            self._said(*row)

    def watch(self, database: Database, nodes: Collection[Address]) -> None:
        """Read the health of these nodes, and of no others. Raises: StoreError: it cannot be read."""
        self._read_health(database, {self.ids[node] for node in nodes if node in self.ids})

    def labels(self, node: Address) -> dict[str, str]:
        """What a node is chosen by: what it reports, and where it stands."""
        reported = self.facts[node].reported
        return {"region": node.region, "site": node.site, "node": node.node, **(reported.labels if reported else {})}

    def _heard(
        self, row_id: int, region: str, site: str, name: str, online: int | None, heard_at: float | None
    ) -> None:
        node = self._nodes.get(row_id)
        if node is None:
            address = self._addresses[row_id] = Address(region, site, name)
            node = self._nodes[row_id] = _ObservedNode()
            self.ids[address] = row_id
            self.changed.add(address)
        facts = node.facts
        is_online = None if online is None else bool(online)
        if facts.heard_at != heard_at or facts.online != is_online or self._addresses[row_id] not in self.facts:
            self._know(row_id, replace(facts, online=is_online, heard_at=heard_at))

    def _said(self, row_id: int, received_at: float, payload: bytes) -> None:
        node = self._nodes.get(row_id)
        if node is None or received_at == node.reported_at:
            return
        node.reported_at = received_at
        self._newest_said = max(self._newest_said, received_at)
        try:
            reported = Reported.model_validate_json(bytes(payload))
        except ValidationError as error:
            log.warning("unreadable-report", node=str(self._addresses[row_id]), error=error.errors()[0]["msg"])
            return
        self.changed.add(self._addresses[row_id])
        self._know(row_id, replace(node.facts, reported=reported))

    def _read_health(self, database: Database, wanted: set[int]) -> None:
        rows: list[Any] = []
        if new := wanted - self._watched:  # how they usually are shows in what came before anybody looked
            most = min(_AT_ONCE, MOST_SAMPLES * max(1, len(self._nodes)))
            rows = database.rows("SELECT ingest, node, payload FROM health ORDER BY ingest DESC LIMIT ?", (most,))[::-1]
            rows = [row for row in rows if row[1] in new or (self._watched and row[0] > self._newest_health)]
            for row_id in new:
                self._nodes[row_id].samples.clear()
        elif wanted:
            rows = database.rows(
                "SELECT ingest, node, payload FROM health WHERE ingest > ? ORDER BY ingest LIMIT ?",
                (self._newest_health, _AT_ONCE),
            )
        self._watched = wanted
        touched = set()
        for ingest, row_id, payload in rows:
            self._newest_health = max(self._newest_health, ingest)
            if row_id in wanted and (sample := read_sample(payload)) is not None:
                self._nodes[row_id].samples.append(sample)
                touched.add(row_id)
        for row_id in touched:
            node = self._nodes[row_id]
            self._know(row_id, replace(node.facts, samples=tuple(node.samples)))

    def _know(self, row_id: int, facts: Facts) -> None:
        self._nodes[row_id].facts = self.facts[self._addresses[row_id]] = facts


def read_sample(payload: bytes) -> Sample | None:
    """A health report as far as gates need it; None: it cannot be read. It was checked when it was stored."""
    try:
        health: dict[str, Any] = orjson.loads(bytes(payload))
        return Sample(
            float(health["at"]),
            str(health["session"]),
            str(health["state"]),
            "; ".join(map(str, health.get("reasons", ()))),
            {name: _flow(told) for name, told in health.get("pipelines", {}).items()},
            {name: _shown(told) for name, told in health.get("models", {}).items()},
            int(health.get("memory_bytes", 0)),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _shown(told: dict[str, Any]) -> Shown:
    drift = told.get("drift")
    return Shown(str(told["digest"]), int(told.get("frames", 0)), None if drift is None else float(drift))


def _flow(told: dict[str, Any]) -> Flow:
    p99 = told.get("latency_p99_ms")
    return Flow(
        int(told.get("received", 0)),
        sum(told.get("dead", {}).values()),
        sum(told.get("dropped", {}).values()),
        None if p99 is None else float(p99),
        tuple(told.get("models", ())),
    )
