"""What people ask the region's service to do: rows of the store that they write, and that the service answers.

So whoever may write to the store may ask, and there is no other door. What was not taken up in time is not done later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hedgerow.errors import CommandError, HedgerowError
from hedgerow.region.store.database.database import Database, RegionStoreError
from hedgerow.region.store.liveness import format_duration
from hedgerow.region.store.queries import LATE_S

EXPIRES_AFTER_S: Final = 30.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Something that somebody wants done.

    Attributes:
        expires_at: Unix seconds after which it must not be done.
    """

    id: int
    expires_at: float
    who: str
    why: str
    verb: str
    args: dict[str, Any]


def send_request(
    database: Database,
    verb: str,
    args: dict[str, Any],
    *,
    who: str,
    why: str,
    wait_s: float = EXPIRES_AFTER_S,
) -> Any:
    """Ask the service to do something, and wait for its answer.

    Args:
        database: opened to write beside the collector.
    Returns: what it answers.
    Raises:
        CommandError: it refuses, with its reason; or it does not run, or does not answer.
        StoreError: the store cannot be written.
    """
    now = time.time()
    for (beat_at,) in database.rows("SELECT beat_at FROM collector"):
        if now - beat_at > LATE_S:
            raise CommandError(
                f"The region's service does not run: it was last seen {format_duration(now - beat_at)} ago",
                code="no-service",
                remedy="`hedgerow region run region.yaml` starts it.",
            )
    try:
        ((row,),) = database.rows(
            "INSERT INTO intent (at, expires_at, who, why, verb, args) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            (now, now + wait_s, who, why, verb, orjson.dumps(args).decode()),
        )
    except RegionStoreError as error:
        if "intent" in str(error) and ("no such table" in str(error) or "does not exist" in str(error)):
            raise RegionStoreError(
                "The store was made by a version that knows no rollouts",
                remedy="Start this version's `hedgerow region run`: it adds what is missing.",
            ) from error
        raise
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        rows = database.rows("SELECT accepted, answer FROM intent WHERE id = ? AND answered_at IS NOT NULL", (row,))
        if rows:
            return _unwrap(*rows[0])
        time.sleep(_POLL_S)
    raise CommandError(
        f"The region's service has not answered for {wait_s:.0f} s; it will not do it later",
        code="no-answer",
        remedy="`hedgerow region status` says whether it runs; `hedgerow region run region.yaml` starts it.",
    )


def open_requests(database: Database) -> list[RolloutRequest]:
    """Those that have no answer, oldest first."""
    rows = database.rows(
        "SELECT id, expires_at, who, why, verb, args FROM intent WHERE answered_at IS NULL ORDER BY id"
    )
    return [
        RolloutRequest(row, expires_at, who, why, verb, orjson.loads(args))
        for row, expires_at, who, why, verb, args in rows
    ]


def reply(database: Database, request: RolloutRequest, now: float, outcome: Any) -> None:
    """Answer: with what was done, or with the error for which it was not."""
    accepted = not isinstance(outcome, HedgerowError)
    if isinstance(outcome, HedgerowError):
        outcome = {"code": outcome.code, "message": str(outcome), "remedy": outcome.remedy}
    database.run(
        "UPDATE intent SET answered_at = ?, accepted = ?, answer = ? WHERE id = ?",
        (now, int(accepted), orjson.dumps(outcome).decode(), request.id),
    )


def _unwrap(accepted: int, reply: str) -> Any:
    said = orjson.loads(reply)
    if accepted:
        return said
    raise CommandError(said["message"], code=said["code"], remedy=said["remedy"])
