"""Known nodes of a store: rows held in memory, updated by records and written with the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import orjson

from hedgerow.region.store.database.database import Database
from hedgerow.region.store.liveness import Signs
from hedgerow.region.store.records import HealthRecord, PingRecord, StatusRecord, StoreRecord
from hedgerow.topics import Address

MAX_NODES: Final = 100_000
_MAX_BYTES: Final = 1 << 62


@dataclass(slots=True)
class KnownNode:
    """A row of the table `node`."""

    id: int
    region: str
    site: str
    name: str
    first_heard_at: float
    heard_at: float | None = None
    session: str | None = None
    online: int | None = None
    stopped: int | None = None
    crashes: int = 0
    status_at: float | None = None
    health_at: float | None = None
    health_state: str | None = None
    health_reasons: str | None = None
    health_session: str | None = None
    bytes_in: int = 0
    bytes_in_now: int = 0
    messages_up: int = 0
    bytes_up: int = 0
    results: int = 0
    durable: int = 0
    repeats: int = 0
    captured_at: float | None = None
    stored_at: float | None = None
    pinged_at: float | None = None
    answered_at: float | None = None
    round_trip_s: float | None = None
    clock_offset_s: float | None = None
    unanswered: int = 0

    @property
    def address(self) -> Address:
        """Its present address."""
        return Address(self.region, self.site, self.name)

    @property
    def signs(self) -> Signs:
        """What its status is derived from."""
        return signs_from_row(
            self.online,
            self.stopped,
            self.heard_at,
            self.health_state,
            self.health_reasons,
            self.answered_at,
            self.unanswered,
        )

    def count_message(self, record: StoreRecord) -> None:
        """Count a message from this node."""
        self.messages_up += 1
        self.bytes_up += record.size
        if record.fresh:
            self.heard_at = max(self.heard_at or 0.0, record.received_at)

    def update_health(self, record: HealthRecord, *, is_back: bool = False) -> None:
        """Store its health report.

        Args:
            is_back: whether its session has reported before another one did, so that most of its counts are counted.
        """
        self.health_at, self.health_state, self.health_reasons = record.received_at, record.state, record.reasons
        if record.session != self.health_session:  # its counters restarted at 0
            self.health_session, self.bytes_in_now = record.session, record.bytes_in if is_back else 0
        self.bytes_in = min(self.bytes_in + max(0, record.bytes_in - self.bytes_in_now), _MAX_BYTES)
        self.bytes_in_now = record.bytes_in

    def update_status(self, record: StatusRecord, *, is_known: bool = False) -> bool:
        """Store its status. Returns: False for the will of an earlier session, which is ignored.

        Args:
            is_known: whether its session has reported before, so that this is not its start.

        A new session counts as a crash if the one before is known not to have said that it stops. A retained status proves
        nothing: others may have come before it while the collector was away.
        """
        if not record.online and self.session not in (None, record.session):
            return False
        if record.fresh and self.stopped == 0 and record.session != self.session and not is_known:
            self.crashes += 1
        self.session, self.online, self.status_at = record.session, int(record.online), record.received_at
        self.stopped = int(record.stopped)
        return True

    def record_ping(self, record: PingRecord) -> None:
        """Store the outcome of a ping."""
        self.pinged_at = record.received_at
        if record.round_trip_s is None:
            self.unanswered += 1
        else:
            self.answered_at, self.round_trip_s, self.unanswered = record.received_at, record.round_trip_s, 0
            self.clock_offset_s = record.clock_offset_s
            self.heard_at = max(self.heard_at or 0.0, record.received_at)


def signs_from_row(
    online: int | None,
    stopped: int | None,
    heard_at: float | None,
    health_state: str | None,
    health_reasons: str | None,
    answered_at: float | None,
    unanswered: int,
    name_in_use: str = "",
) -> Signs:
    """Return what a node's status is derived from, from columns of its row. An unreadable column costs only its own part."""
    try:
        reasons = "; ".join(orjson.loads(health_reasons)) if health_reasons else ""
    except (ValueError, TypeError):
        reasons = "its reasons cannot be read"
    is_online = None if online is None else bool(online)
    return Signs(is_online, bool(stopped), heard_at, health_state, reasons, answered_at, unanswered, name_in_use)


_COLUMNS: Final = tuple(KnownNode.__dataclass_fields__)
_CHANGING: Final = _COLUMNS[5:]
_changing = attrgetter(*_CHANGING, "id")
_LOAD_NODES: Final = f"SELECT {', '.join(_COLUMNS)} FROM node WHERE forgotten_at IS NULL"  # noqa: S608 - constant names
_NEW_NODE: Final = (
    "INSERT INTO node (region, site, name, first_heard_at, messages_up, bytes_up, results, durable, repeats, unanswered) "
    "VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, 0) RETURNING id"
)
_SAVE_NODE: Final = f"UPDATE node SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE id = ?"  # noqa: S608


def load_nodes(database: Database) -> dict[Address, KnownNode]:
    """Return all known nodes, without those that were forgotten.

    Raises: RegionStoreError: they cannot be read.
    """
    nodes = [KnownNode(*row) for row in database.rows(_LOAD_NODES)]
    return {node.address: node for node in nodes}


def add_node(database: Database, address: Address, at: float) -> KnownNode:
    """Insert a new node."""
    ((row,),) = database.rows(_NEW_NODE, (*address, at))
    return KnownNode(row, *address, at)


def save_nodes(database: Database, nodes: Iterable[KnownNode]) -> None:
    """Update the rows of nodes."""
    database.many(_SAVE_NODE, map(_changing, nodes))
