"""Durable queue of results on their way to the region.

    outbox (event loop) ──jobs──▶ writer (thread) ──▶ store ──▶ database (SQLite)
        └─ window (what to send next)

Rules:
- A record reported as stored stays until the region acknowledges it, or a gap is declared in its place.
- `window` and `store` decide; they use no event loop, network or clock.
- Only `database` uses SQLite.
"""

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.outbox import Outbox, OutboxStatus, Publish
from hedgerow.bus.outbox.records import (
    PACKET_OVERHEAD_BYTES,
    PRIORITIES,
    Ack,
    Gap,
    Number,
    OutboxError,
    Record,
    read_gap,
)

__all__ = [
    "PACKET_OVERHEAD_BYTES",
    "PRIORITIES",
    "Ack",
    "Gap",
    "Ledger",
    "Number",
    "Outbox",
    "OutboxError",
    "OutboxStatus",
    "Publish",
    "Record",
    "read_gap",
]
