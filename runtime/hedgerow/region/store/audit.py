"""The audit log: who did what in the fleet, when and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from hedgerow.region.store.database.database import Database

SERVICE: Final = "service"
"""Actor of what no operator requested."""
_SAVE_AUDIT: Final = "INSERT INTO audit (at, who, claims, why, action, rollout, detail) VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who performs an action, and why.

    Attributes:
        who: the operating system's user, or the database's role.
        claims: another name that they give themselves.
    """

    who: str
    why: str = ""
    claims: str = ""

    @property
    def name(self) -> str:
        """Who, with what they claim marked as such."""
        return f"{self.who} (claims {self.claims})" if self.claims else self.who


def save_audit(
    database: Database, by: Actor, action: str, now: float, *, rollout: str | None = None, **detail: Any
) -> None:
    """Add an entry to the audit log."""
    values = (now, by.who, by.claims, by.why, action, rollout, orjson.dumps(detail).decode())
    database.run(_SAVE_AUDIT, values)
