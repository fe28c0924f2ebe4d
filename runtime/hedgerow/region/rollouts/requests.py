"""Operators' requests to the region's service: rows that the command line writes to the store and the service answers.

So write access to the store is the only permission needed. A request not handled in time expires. Who makes it is the user or role that
writes the row, as far as the database can tell; any other name is kept as a claim.
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
    """A request.

    Attributes:
        expires_at: Unix seconds after which it must not be carried out.
        who: the operating system's user, or the database's role.
        claims: another name that they give themselves.
    """

    id: int
    expires_at: float
    who: str
    claims: str
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
    claims: str = "",
    wait_s: float = EXPIRES_AFTER_S,
) -> Any:
    """Send a request to the service, and wait for its reply.

    Args:
        database: opened with `alongside`.
        verb, args: the request.
        who, why, claims: for the audit log. PostgreSQL puts the connection's role in place of `who`, and adds that to the claims.
        wait_s: longest wait.
    Returns: the reply.
    Raises:
        CommandError: the service refuses, is not running, or does not reply.
        RegionStoreError: the store cannot be written.
    """
    now = time.time()
    for (beat_at,) in database.rows("SELECT beat_at FROM collector"):
        if now - beat_at > LATE_S:
            raise CommandError(
                f"The region's service is not running; last seen {format_duration(now - beat_at)} ago",
                code="no-service",
                remedy="Start it with `hedgerow region run region.yaml`.",
            )
    try:
        ((row,),) = database.rows(
            "INSERT INTO intent (at, expires_at, who, claims, why, verb, args) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (now, now + wait_s, who, claims, why, verb, orjson.dumps(args).decode()),
        )
    except RegionStoreError as error:
        if "intent" in str(error) and ("no such table" in str(error) or "does not exist" in str(error)):
            raise RegionStoreError(
                "The store was created by a version without rollouts",
                remedy="Start this version's `hedgerow region run` once: it migrates the store.",
            ) from error
        raise
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        rows = database.rows("SELECT accepted, answer FROM intent WHERE id = ? AND answered_at IS NOT NULL", (row,))
        if rows:
            return _unwrap(*rows[0])
        time.sleep(_POLL_S)
    raise CommandError(
        f"The region's service did not reply within {wait_s:.0f} s; the request has expired",
        code="no-answer",
        remedy="Check with `hedgerow region status` whether it is running; `hedgerow region run region.yaml` starts it.",
    )


def open_requests(database: Database) -> list[RolloutRequest]:
    """Return the requests without a reply, oldest first."""
    rows = database.rows(
        "SELECT id, expires_at, who, claims, why, verb, args FROM intent WHERE answered_at IS NULL ORDER BY id"
    )
    return [
        RolloutRequest(row, expires_at, who, claims, why, verb, _args(args))
        for row, expires_at, who, claims, why, verb, args in rows
    ]


def _args(text: str) -> dict[str, Any]:
    """Decode arguments; unreadable ones are none, so that the request is refused as any other without them."""
    try:
        args = orjson.loads(text)
    except (ValueError, TypeError):
        return {}
    return args if isinstance(args, dict) else {}


def reply(database: Database, request: RolloutRequest, now: float, outcome: Any) -> None:
    """Store the reply to a request: the outcome, or the error that prevented it."""
    accepted = not isinstance(outcome, HedgerowError)
    if isinstance(outcome, HedgerowError):
        outcome = {"code": outcome.code, "message": str(outcome), "remedy": outcome.remedy}
    database.run(
        "UPDATE intent SET answered_at = ?, accepted = ?, answer = ? WHERE id = ?",
        (now, int(accepted), orjson.dumps(outcome).decode(), request.id),
    )


def _unwrap(accepted: int, reply: str) -> Any:
    body = orjson.loads(reply)
    if accepted:
        return body
    raise CommandError(body["message"], code=body["code"], remedy=body["remedy"])
