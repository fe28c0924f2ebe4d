"""The lease of a store: which of the services that share it leads, and since when.

A term begins when a service takes the lease, and has a number, the *fence*, higher than those of all terms before. Three rules keep
two leaders apart, and none compares clocks of two machines:

- **Writing** is fenced: each transaction of a leader checks, within itself, that its term is still the current one
  (`Database.lead`). A leader that was paused or cut off can write nothing once another has taken the lease, however its clock runs.
- **Taking over.** A standby takes the lease if its holder has left, or has ended (the system frees its lock), or if the standby has
  not seen it renewed for `TAKEOVER_AFTER_S` by its own monotonic clock. A wall clock that jumps changes nothing.
- **Publishing** (`LeaseKeeper.leads`): a leader that has not renewed its lease for `LEADS_S`, which is shorter, publishes nothing and
  does not connect. That clock goes on while the process is stopped or the machine sleeps. Besides, the leaders of one store use one
  MQTT session after each other, so the broker ends the former leader's connection when the next one connects.

The times in the tables are the database's, for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hedgerow.region.store.database.database import Database, RegionStoreError

RENEW_EVERY_S: Final = 2.0
LEADS_S: Final = 5.0
TAKEOVER_AFTER_S: Final = 6.0
STANDBY_NOTE_S: Final = 5.0
"""How often a standby notes that it is there."""
_STANDBY_FORGOTTEN_S: Final = 60.0
_MAX_TERMS: Final = 1000

_CLAIM: Final = (
    "UPDATE lease SET fence = fence + 1, renewals = 0, locked = ?, instance = ?, host = ?, since = ?, renewed_at = ?, "
    "client_token = CASE WHEN client_token = '' THEN ? ELSE client_token END "
    "WHERE fence = ? AND renewals = ? AND instance = ? RETURNING fence, client_token"
)
_RENEW: Final = "UPDATE lease SET renewals = renewals + 1, renewed_at = ?, locked = ? WHERE fence = ? AND instance = ?"
_NOTE_STANDBY: Final = "INSERT INTO standby (instance, host, seen_at) VALUES (?, ?, ?) ON CONFLICT (instance) DO UPDATE SET seen_at = excluded.seen_at"


class ServiceRun(NamedTuple):
    """A run of a service: its random id, and its host and process, for people."""

    instance: str
    host: str


@dataclass(frozen=True, slots=True)
class Term:
    """The time for which one service leads.

    Attributes:
        fence: number of the term.
        client_token: secret part of the client ids of whoever leads.
    """

    fence: int
    client_token: str


class LeaseRow(NamedTuple):
    """The lease as stored; `lease_term` and `lease` say more."""

    fence: int
    renewals: int
    locked: int
    instance: str
    host: str
    since: float
    renewed_at: float


def read_lease(database: Database) -> LeaseRow:
    """Return the lease."""
    ((row),) = database.rows("SELECT fence, renewals, locked, instance, host, since, renewed_at FROM lease")
    return LeaseRow(*row)


def claim_lease(
    database: Database, seen: LeaseRow, service: ServiceRun, client_token: str, because: str, *, locked: bool
) -> Term | None:
    """Take the lease, if nobody has taken or renewed it since it was seen.

    Args:
        seen: the lease as read.
        service: who takes it.
        client_token: secret part of the client ids, if the store has none yet.
        because: why it is free.
        locked: whether the service holds the store's lock.
    Returns: the term; None if the lease has changed.
    Raises: RegionStoreError: it cannot be written; a transaction of the former leader may be holding it.
    """
    with database.transaction():
        now = database.now()
        values = (int(locked), *service, now, now, client_token, seen.fence, seen.renewals, seen.instance)
        rows = database.rows(_CLAIM, values)
        if not rows:
            return None
        ((fence, token),) = rows
        database.run(
            "INSERT INTO lease_term VALUES (?, ?, ?, ?, ?, ?)", (fence, *service, now, because, seen.renewed_at)
        )
        database.run("DELETE FROM lease_term WHERE fence <= ?", (fence - _MAX_TERMS,))
        database.run("DELETE FROM standby WHERE instance = ?", (service.instance,))
    return Term(fence, token)


def renew_lease(database: Database, term: Term, service: ServiceRun, *, locked: bool) -> bool:
    """Renew the lease. Returns: whether it is still this service's."""
    return database.run(_RENEW, (database.now(), int(locked), term.fence, service.instance)) == 1


def leave_lease(database: Database, term: Term, service: ServiceRun) -> None:
    """Let the next leader follow at once."""
    database.run("UPDATE lease SET instance = '' WHERE fence = ? AND instance = ?", (term.fence, service.instance))


def note_standby(database: Database, service: ServiceRun) -> None:
    """Note that a service waits for the lease."""
    now = database.now()
    database.run("DELETE FROM standby WHERE seen_at < ? OR seen_at > ?", (now - _STANDBY_FORGOTTEN_S, now + 1))
    database.run(_NOTE_STANDBY, (*service, now))


def end_standby(database: Database, service: ServiceRun) -> None:
    """Note that a service waits no longer."""
    database.run("DELETE FROM standby WHERE instance = ?", (service.instance,))


def lease_status(database: Database) -> dict[str, Any] | None:
    """Return who leads and who waits, for `region status`; None for a store of a version without leases, or that nobody led."""
    try:
        lease = read_lease(database)
        standbys = database.rows("SELECT host, instance, seen_at FROM standby ORDER BY host, instance LIMIT 20")
        now = database.now()
    except RegionStoreError:  # the service has not been restarted since the upgrade: it creates the tables
        return None
    if not lease.fence:
        return None
    return {
        "term": lease.fence,
        "leader": lease.host if lease.instance else None,
        "instance": lease.instance or None,
        "since": lease.since,
        "renewed_s": round(max(0.0, now - lease.renewed_at), 1),
        "standbys": [
            {"host": host, "instance": instance, "last_seen_s": round(max(0.0, now - seen_at), 1)}
            for host, instance, seen_at in standbys
            if now - seen_at <= _STANDBY_FORGOTTEN_S
        ],
    }
