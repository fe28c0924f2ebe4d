"""Rows of the tables `instance` and `twin`: where nodes run, and what two of them use at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import orjson

from hedgerow.region.store.database.database import Database, RegionStoreError
from hedgerow.region.store.liveness import format_duration
from hedgerow.region.store.records import OtherService
from hedgerow.wire.messages import Instance

TwinKind = Literal["name", "turns", "state", "key"]
"""What two processes use: `name`, at once; `turns`: two state folders take turns under one name; `state`, `key`: two nodes have the
same state folder or key."""
TWIN_KINDS: Final[tuple[TwinKind, ...]] = get_args(TwinKind)

_SERVICE_S: Final = 90.0
"""How long another service is shown after it was last heard of."""
_FIELDS: Final = ("host", "address", "machine", "key", "state")
_INSTANCE: Final = f"node, session, first_at, last_at, started_at, {', '.join(_FIELDS)}"
_SAVE_INSTANCE: Final = (
    f"INSERT INTO instance ({_INSTANCE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node, session) DO UPDATE SET "  # noqa: S608
    + ", ".join(f"{name} = excluded.{name}" for name in ("last_at", "started_at", *_FIELDS))
)
_SAVE_TWIN: Final = (
    "INSERT INTO twin (node, kind, other, since, last_at, sessions) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (node, kind) DO UPDATE SET "
    "other = excluded.other, since = excluded.since, last_at = excluded.last_at, sessions = excluded.sessions"
)
_LIES: Final = "Either node may lie about it: look at both machines before you revoke or forget one."
_REMEDIES: Final[dict[TwinKind, str]] = {
    "name": "Stop one of them, or give each its own name (`node: {region, site, name}`) and certificate. Is it a copied disk? Run "
    "`hedgerow node new-identity` on the copy.",
    "turns": "If both machines are in use, give each its own name (`node: {region, site, name}`). If a backup of the state folder was "
    "put back, nothing is wrong; this goes away after a day.",
    "state": "Is it a copied disk? Run `hedgerow node new-identity` on the copy. Two nodes of one machine need a `node: {state_dir}` each. "
    f"{_LIES}",
    "key": "Give each node its own certificate: `hedgerow pki issue`, or `hedgerow pki apply` with a topology. Images are made clean by "
    f"`hedgerow node seal`. {_LIES}",
}


@dataclass(slots=True)
class SeenRun:
    """A run of a node, as it was last heard of. Times are Unix seconds of the region."""

    session: str
    first_at: float
    last_at: float
    instance: Instance

    def row(self, node: int) -> Sequence[Any]:
        """Return its row."""
        here = self.instance
        return (node, self.session, self.first_at, self.last_at, here.started_at, *(getattr(here, name) for name in _FIELDS))  # fmt: skip

    def where(self, now: float) -> str:
        """Describe it for operators."""
        here = self.instance
        seen = format_duration(max(0.0, now - self.last_at))
        return f"host {here.host or 'not known'}, address {here.address or 'not known'}, last seen {seen} ago"

    def public(self, now: float) -> dict[str, Any]:
        """Return it as a JSON-compatible mapping."""
        here = self.instance
        return {
            "session": self.session,
            "host": here.host or None,
            "address": here.address or None,
            "machine": here.machine or None,
            "started_at": here.started_at,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "last_s": round(max(0.0, now - self.last_at), 1),
        }


@dataclass(frozen=True, slots=True)
class Twin:
    """What two processes use, as stored.

    Attributes:
        node: row of the node.
        other: row of the other node; None: it has the same name.
        sessions: of both.
    """

    node: int
    kind: TwinKind
    other: int | None
    since: float
    last_at: float
    sessions: tuple[str, str]

    @property
    def remedy(self) -> str:
        """What an operator should do."""
        return _REMEDIES[self.kind]


def describe(twin: Twin, runs: Sequence[SeenRun], other: str, now: float) -> str:
    """Describe for operators what two processes use.

    Args:
        runs: those of `twin.sessions` that are known.
        other: the other node's address; "" if it has the same name.
        now: Unix seconds.
    """
    places = "; ".join(run.where(now) for run in runs) or "where is not known"
    if twin.kind == "name" and twin.sessions[0] == twin.sessions[1]:
        return f"a copy of its running process uses this name too: {places}"
    if twin.kind == "name":
        return f"another machine or process uses this name too: {places}"
    if twin.kind == "turns":
        return f"two installations take turns under this name: {places}"
    what = "state folder" if twin.kind == "state" else "key"
    return f"{other} has the same {what}: {places}"


def load_runs(database: Database) -> dict[int, dict[str, SeenRun]]:
    """Return the known runs of all nodes: row of the node → session → run, the one heard of last at the end."""
    runs: dict[int, dict[str, SeenRun]] = {}
    for row in database.rows(f"SELECT {_INSTANCE} FROM instance ORDER BY last_at"):  # noqa: S608 - constant names
        node, session, first_at, last_at, started_at, *texts = row
        instance = Instance.model_construct(started_at=started_at, **dict(zip(_FIELDS, texts, strict=True)))
        runs.setdefault(node, {})[session] = SeenRun(session, first_at, last_at, instance)
    return runs


def load_twins(database: Database) -> list[Twin]:
    """Return what two processes use now. A row that cannot be read is left out."""
    rows = database.rows("SELECT node, kind, other, since, last_at, sessions FROM twin ORDER BY node, kind")
    return [twin for row in rows if (twin := _twin(row)) is not None]


def _twin(row: Sequence[Any]) -> Twin | None:
    node, kind, other, since, last_at, sessions = row
    try:
        one, two = orjson.loads(sessions)
    except ValueError:
        return None
    return Twin(node, kind, other, since, last_at, (str(one), str(two))) if kind in TWIN_KINDS else None


def save_runs(database: Database, runs: Iterable[tuple[int, SeenRun]], forgotten: Iterable[tuple[int, str]]) -> None:
    """Write runs of nodes, and delete others, within the caller's transaction."""
    database.many("DELETE FROM instance WHERE node = ? AND session = ?", forgotten)
    database.many(_SAVE_INSTANCE, [run.row(node) for node, run in runs])


def save_twins(database: Database, twins: Iterable[Twin], ended: Iterable[tuple[int, TwinKind]]) -> None:
    """Write what two processes use, and delete what has ended, within the caller's transaction."""
    database.many("DELETE FROM twin WHERE node = ? AND kind = ?", ended)
    rows = [
        (one.node, one.kind, one.other, one.since, one.last_at, orjson.dumps(one.sessions).decode()) for one in twins
    ]
    database.many(_SAVE_TWIN, rows)


def store_id(database: Database) -> str:
    """Return the id of a store, which it got when its table was made."""
    ((found,),) = database.rows("SELECT id FROM store_identity")
    return str(found)


def save_other_services(database: Database, services: Iterable[OtherService]) -> None:
    """Write the other services of the region, within the caller's transaction."""
    database.run("DELETE FROM other_service")
    rows = [(one.instance, one.store, one.host, one.address, one.since, one.last_at) for one in services]
    database.many(
        "INSERT INTO other_service (instance, store, host, address, since, last_at) VALUES (?, ?, ?, ?, ?, ?)", rows
    )


def other_services(database: Database, as_of: float) -> list[dict[str, Any]]:
    """Return the other services of the region that were there shortly before a time in Unix seconds."""
    try:
        mine = store_id(database)
        rows = database.rows(
            "SELECT instance, store, host, address, since, last_at FROM other_service ORDER BY instance"
        )
    except RegionStoreError:  # the service has not been restarted since the upgrade: it creates the tables
        return []
    return [
        {
            "instance": instance,
            "host": host or None,
            "address": address or None,
            "store": store,
            "is_copy": store == mine,
            "since": since,
            "last_s": round(max(0.0, as_of - last_at), 1),
        }
        for instance, store, host, address, since, last_at in rows
        if as_of - last_at <= _SERVICE_S
    ]


@dataclass(frozen=True, slots=True)
class TwinReport:
    """What a reader shows of a node: what two processes use, and its last runs, newest first."""

    twins: Sequence[dict[str, Any]] = ()
    runs: Sequence[dict[str, Any]] = ()
    name_in_use: str = ""


def twin_reports(database: Database, now: float) -> dict[int, TwinReport]:
    """Return what is known of twins, by row of the node.

    Args:
        now: Unix seconds.
    """
    try:
        runs, twins = load_runs(database), load_twins(database)
        current = database.rows("SELECT id, region, site, name, health_session, health_at FROM node")
    except RegionStoreError:  # the service has not been restarted since the upgrade: it creates the tables
        return {}
    names: dict[int, str] = {}
    for node, region, site, name, session, health_at in current:
        names[node] = f"{region}/{site}/{name}"
        if (run := runs.get(node, {}).get(session)) is not None and health_at is not None:
            run.last_at = max(run.last_at, health_at)
    found: dict[int, list[dict[str, Any]]] = {}
    in_use: dict[int, str] = {}
    for twin in twins:
        others = runs.get(twin.node if twin.other is None else twin.other, {})
        known = [others[session] for session in dict.fromkeys(twin.sessions) if session in others]
        other = names.get(twin.other, "a node that is not known") if twin.other is not None else ""
        text = describe(twin, known, other, now)
        body = {"kind": twin.kind, "other": other or None, "since": twin.since, "what": text, "remedy": twin.remedy}
        found.setdefault(twin.node, []).append(body | {"machines": [run.public(now) for run in known]})
        if twin.kind == "name":
            in_use[twin.node] = f"{text}. {twin.remedy}"
    return {
        node: TwinReport(
            found.get(node, []),
            [run.public(now) for run in sorted(runs.get(node, {}).values(), key=lambda run: -run.last_at)],
            in_use.get(node, ""),
        )
        for node in runs.keys() | found.keys()
    }
