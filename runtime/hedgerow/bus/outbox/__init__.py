"""The outbox: the node's durable queue of results that must still reach the region.

    outbox (event loop) ──jobs──▶ writer (a thread) ──▶ store ──▶ database (SQLite)
        └─ window (what to send next)

Rules:
- A record that was called safe stays until the region has it; else a gap is declared in its place.
- Decisions are in `window` and `store`, which know neither loop nor network nor clock.
- Only `database` knows SQLite.
"""

from hedgerow.bus.outbox.ledger import Ledger
from hedgerow.bus.outbox.outbox import Outbox, OutboxStatus, Publish
from hedgerow.bus.outbox.records import PRIORITIES, Ack, Gap, Number, OutboxError, Record, read_gap

__all__ = [
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
