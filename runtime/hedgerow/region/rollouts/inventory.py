"""Read-only inventory of nodes: status, labels, running and desired models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import ValidationError

from hedgerow.errors import ConfigError
from hedgerow.labels import Selector
from hedgerow.region.rollouts.planning.membership import effective_labels
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import former_addresses
from hedgerow.region.store.liveness import Liveness, judge
from hedgerow.region.store.nodes import signs_from_row
from hedgerow.region.store.queries import LATE_S, iso
from hedgerow.region.store.twins.rows import TwinReport, twin_reports
from hedgerow.topics import Address, Channel
from hedgerow.wire.fleet import Desired, Reported
from hedgerow.wire.messages import Health, WireMessage

_NODES = """
SELECT n.id, n.region, n.site, n.name, n.first_heard_at, n.heard_at, n.online, n.stopped, n.health_state, n.health_reasons, n.answered_at,
       n.unanswered, s.received_at, s.payload, d.generation, d.published, d.document, d.pins
FROM node n LEFT JOIN said s ON s.node = n.id AND s.channel = ? LEFT JOIN desired d ON d.node = n.id
WHERE n.forgotten_at IS NULL ORDER BY n.region, n.site, n.name
"""


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Filter for nodes.

    Attributes:
        selector: of labels.
        model: `NAME`, `NAME@VERSION` or the beginning of a digest, of the bundle or of the running file.
        health: their status.
    """

    selector: Selector = field(default_factory=Selector)
    model: str | None = None
    health: Liveness | None = None

    def matches(self, node: dict[str, Any]) -> bool:
        """Whether a node passes the filter."""
        if self.health is not None and node["status"] != self.health.value:
            return False
        if self.model is not None and not any(_serves(self.model, name, one) for name, one in node["models"].items()):
            return False
        return self.selector.matches(node["labels"])


def parse_status(text: str) -> Liveness:
    """Return a status by its name, or by its deprecated name.

    Raises: ConfigError: there is no such status.
    """
    for liveness in Liveness:
        if text in (liveness.value, liveness.old_name):
            return liveness
    raise ConfigError(f"There is no status {text!r}", remedy=f"Use one of {', '.join(Liveness)}.")


def inventory(database: Database, now: float, which: NodeFilter | None = None) -> list[dict[str, Any]]:
    """Return nodes, ordered by address.

    Args:
        database: opened to read.
        now: Unix seconds.
        which: None: all.
    """
    which = which or NodeFilter()
    return [node for node in _all(database, now) if which.matches(node)]


def newest_health(database: Database, node: Address) -> dict[str, Any]:
    """Return a node's newest health report; empty if there is none."""
    rows = database.rows(
        "SELECT h.payload FROM health h JOIN node n ON n.id = h.node WHERE n.region = ? AND n.site = ? AND n.name = ? "
        "ORDER BY h.ingest DESC LIMIT 1",
        (node.region, node.site, node.node),
    )
    return _valid(Health, rows[0][0], {}) if rows else {}


def _all(database: Database, now: float) -> Iterator[dict[str, Any]]:
    collectors = database.rows("SELECT beat_at, connected, silent_after_s FROM collector")
    if not collectors:
        return
    ((beat_at, connected, silent_after_s),) = collectors
    # While the collector does not run it receives nothing: show nodes as of its last heartbeat.
    as_of = now if now - beat_at <= LATE_S and connected else beat_at
    former, twins = former_addresses(database), twin_reports(database, as_of)
    for row_id, *row in database.rows(_NODES, (Channel.REPORTED.value,)):
        about = twins.get(row_id, TwinReport())
        formerly = {"formerly": former.get(row_id, [])}
        try:
            yield _node(row, as_of, silent_after_s, about) | formerly
        except Exception as error:  # noqa: BLE001 - one row must not hide all others
            bare = (*row[:3], 0, *[None] * 6, 0, *[None] * 6)
            why = f"its row in the store cannot be read: {type(error).__name__}: {error}"[:300]
            yield _node(bare, as_of, silent_after_s, about) | {"why": why} | formerly


def _node(row: Sequence[Any], as_of: float, silent_after_s: float, twins: TwinReport) -> dict[str, Any]:
    region, site, name, first_heard_at, last_seen, online, stopped, state, reasons, last_reply, unanswered = row[:11]
    reported_at, payload, generation, published, document, pins = row[11:]
    signs = signs_from_row(online, stopped, last_seen, state, reasons, last_reply, unanswered, twins.name_in_use)
    liveness, why = judge(signs, as_of, silent_after_s)
    reported, desired = _valid(Reported, payload, _UNREADABLE), _valid(Desired, document, {})
    own, of_region = reported.get("labels", {}), desired.get("labels", {})
    labels = effective_labels(Address(region, site, name), own, of_region)
    return {
        "node": str(Address(region, site, name)),
        "status": liveness.value,
        "verdict": liveness.old_name,
        "why": why,
        "twins": list(twins.twins),
        "runs": list(twins.runs),
        "first_heard_at": iso(first_heard_at),
        "heard_s": None if last_seen is None else round(max(0.0, as_of - last_seen), 1),
        "labels": dict(sorted(labels.items())),
        "labels_of_region": of_region,
        "models": reported.get("models", {}),
        "state": reported.get("state"),
        "step": reported.get("step", ""),
        "progress": reported.get("progress"),
        "error": reported.get("error"),
        "rolled_back": reported.get("rolled_back", []),
        "quarantined": reported.get("quarantined", []),
        "pipelines": reported.get("pipelines", {}),
        "store_bytes": reported.get("store_bytes"),
        "store_max_bytes": reported.get("store_max_bytes"),
        "reported_at": None if reported_at is None else iso(reported_at),
        "generation": reported.get("generation"),
        "desired_generation": generation,
        "published_generation": published,
        "desired_models": desired.get("models", {}),
        "withdrawn_models": desired.get("withdrawn", []),
        "rollout": desired.get("rollout"),
        "pins": _read(pins),
    }


_UNREADABLE: Final[dict[str, Any]] = {
    "error": {
        "code": "unreadable-report",
        "message": "its report cannot be read",
        "remedy": "Upgrade the node, or revoke it.",
    }
}


def _valid(kind: type[WireMessage], payload: Any, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Decode a stored document; empty if there is none, and `otherwise` if it is invalid."""
    if payload is None:
        return {}
    try:
        document = kind.model_validate_json(payload if isinstance(payload, str) else bytes(payload))
    except (ValidationError, ValueError, TypeError):
        return otherwise
    return document.model_dump(exclude_none=True, by_alias=True)


def _read(payload: Any) -> dict[str, Any]:
    """Decode a stored document; empty if there is none or it is invalid."""
    if payload is None:
        return {}
    try:
        body = orjson.loads(payload if isinstance(payload, str) else bytes(payload))
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _serves(text: str, name: str, serving: dict[str, Any]) -> bool:
    ref = serving.get("model") or {}
    digests = [
        str(digest).removeprefix("sha256:") for digest in (ref.get("digest"), serving.get("file_digest")) if digest
    ]
    bundle, at, version = text.partition("@")
    if bundle in (name, ref.get("name")):
        return not at or ref.get("version") == version
    beginning = text.removeprefix("sha256:")
    return len(beginning) >= 4 and any(digest.startswith(beginning) for digest in digests)
