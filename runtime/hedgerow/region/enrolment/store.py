"""The tables of claims and of machines that asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import forgotten_nodes

PENDING: Final = "pending"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"

_CLAIM: Final = (
    "id", "site", "place", "public_key", "uses", "used", "made_at", "expires_at", "labels", "who", "claims", "why", "revoked_at",
)  # fmt: skip
_MACHINE: Final = (
    "fingerprint", "site", "claim", "csr", "machine", "state", "asked_at", "seen_at", "decided_at", "node", "who", "reason",
    "rule", "grant_text", "signature",
)  # fmt: skip
_CLAIMS: Final = f"SELECT {', '.join(_CLAIM)} FROM claim"  # noqa: S608 - constant names
_MACHINES: Final = f"SELECT {', '.join(_MACHINE)} FROM enrolment"  # noqa: S608
_NEW_CLAIM: Final = f"INSERT INTO claim ({', '.join(_CLAIM)}) VALUES ({', '.join('?' * len(_CLAIM))})"  # noqa: S608
_NEW_MACHINE: Final = f"INSERT INTO enrolment ({', '.join(_MACHINE)}) VALUES ({', '.join('?' * len(_MACHINE))})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A claim.

    Attributes:
        place: the only node that it may become; None: any of the site.
        public_key: what verifies its signatures, in hexadecimal.
        uses, used: how many machines may use it, and how many have.
        labels: that its machines get.
        by: who made it, and why.
    """

    id: str
    site: str
    place: str | None
    public_key: str
    uses: int
    used: int
    made_at: float
    expires_at: float
    labels: Mapping[str, str]
    by: Actor
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredMachine:
    """A machine that asked to be a node.

    Attributes:
        fingerprint: of its key.
        claim: id of the claim it used; for a manufacturer's certificate its serial number.
        machine: what it says of itself.
        node: its place, once approved.
        who: who decided; "" while it is pending.
        rule: name of the rule that approved it; "" if none did.
        grant, signature: what it gets. If it was moved to another site, the signature is followed by a space and the release.
    """

    fingerprint: str
    site: str
    claim: str
    csr: str
    machine: Mapping[str, str]
    state: str
    asked_at: float
    seen_at: float
    decided_at: float | None = None
    node: str | None = None
    who: str = ""
    reason: str = ""
    rule: str = ""
    grant: str = ""
    signature: str = ""


class EnrolmentStore:
    """Reads and writes claims and machines.

    Args:
        database: opened with `alongside`, or to read.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, ident: str) -> StoredClaim | None:
        """Return a claim; None if there is none."""
        found = self.database.rows(f"{_CLAIMS} WHERE id = ?", (ident,))
        return _claim(found[0]) if found else None

    def claims(self) -> list[StoredClaim]:
        """Return all claims, newest first."""
        return [_claim(row) for row in self.database.rows(f"{_CLAIMS} ORDER BY made_at DESC, id")]

    def add_claim(self, one: StoredClaim) -> None:
        """Insert a claim."""
        values: tuple[Any, ...] = (
            one.id,
            one.site,
            one.place,
            one.public_key,
            one.uses,
            one.used,
            one.made_at,
            one.expires_at,
        )
        values += (_json(one.labels), one.by.who, one.by.claims, one.by.why, one.revoked_at)
        self.database.run(_NEW_CLAIM, values)

    def revoke_claim(self, ident: str, now: float) -> bool:
        """Revoke a claim. Returns: whether it was not revoked before."""
        return (
            self.database.run("UPDATE claim SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now, ident)) > 0
        )

    def use_claim(self, ident: str) -> bool:
        """Count a use of a claim. Returns: whether one was left."""
        return self.database.run("UPDATE claim SET used = used + 1 WHERE id = ? AND used < uses", (ident,)) > 0

    def machine(self, fingerprint: str) -> StoredMachine | None:
        """Return a machine; None if it has not asked."""
        found = self.database.rows(f"{_MACHINES} WHERE fingerprint = ?", (fingerprint,))
        return _machine(found[0]) if found else None

    def machines(self, state: str | None = None, prefix: str = "") -> list[StoredMachine]:
        """Return machines, those that asked first first.

        Args:
            state: only these; None: all.
            prefix: of the fingerprint, hexadecimal digits.
        """
        sql, values = f"{_MACHINES} WHERE fingerprint LIKE ?", [f"{prefix}%"]
        if state is not None:
            sql, values = f"{sql} AND state = ?", [*values, state]
        return [_machine(row) for row in self.database.rows(f"{sql} ORDER BY asked_at, fingerprint", values)]

    def with_claim(self, claim: str, *, other_than: str = "") -> list[StoredMachine]:
        """Return the machines that asked with a claim, or a manufacturer's certificate, except one."""
        sql = f"{_MACHINES} WHERE claim = ? AND fingerprint <> ? ORDER BY asked_at"
        return [_machine(row) for row in self.database.rows(sql, (claim, other_than))]

    def add_machine(self, one: StoredMachine) -> None:
        """Insert a machine that asks for the first time."""
        values: tuple[Any, ...] = (
            one.fingerprint,
            one.site,
            one.claim,
            one.csr,
            _json(one.machine),
            one.state,
            one.asked_at,
            one.seen_at,
        )
        values += (one.decided_at, one.node, one.who, one.reason, one.rule, one.grant, one.signature)
        self.database.run(_NEW_MACHINE, values)

    def seen(self, fingerprint: str, now: float) -> None:
        """Note that a machine asked again."""
        self.database.run("UPDATE enrolment SET seen_at = ? WHERE fingerprint = ?", (now, fingerprint))

    def decide(self, one: StoredMachine, *, was: str | None = None) -> bool:
        """Update a machine's state, place and grant.

        Args:
            one: the machine.
            was: its state so far; None: any.
        Returns: whether it was in that state; if not, somebody else has decided meanwhile, and nothing changes.
        """
        values = (one.state, one.decided_at, one.node, one.who, one.reason, one.rule, one.grant, one.signature)
        return (
            self.database.run(
                "UPDATE enrolment SET state = ?, decided_at = ?, node = ?, who = ?, reason = ?, rule = ?, grant_text = ?, "
                "signature = ? WHERE fingerprint = ? AND state = coalesce(?, state)",
                (*values, one.fingerprint, was),
            )
            > 0
        )

    def move_place(self, site: str, place: str, new_site: str, new_place: str) -> None:
        """Note that the machine in a place, if there is one, has another place now; its next certificate is for that."""
        self.database.run(
            "UPDATE enrolment SET site = ?, node = ? WHERE site = ? AND node = ? AND state = ?",
            (new_site, new_place, site, place, APPROVED),
        )

    def free_place(self, site: str, place: str, now: float, by: Actor) -> None:
        """Take a place from the machine that has it, if one does: it is answered as rejected, and another one may have the place."""
        self.database.run(
            "UPDATE enrolment SET state = ?, decided_at = ?, who = ?, reason = ?, grant_text = '', signature = '' "
            "WHERE site = ? AND node = ? AND state = ?",
            (REJECTED, now, by.name, by.why, site, place, APPROVED),
        )

    def pending(self) -> tuple[int, dict[str, int]]:
        """Return how many machines are pending, in all and by site."""
        rows = self.database.rows("SELECT site, count(*) FROM enrolment WHERE state = ? GROUP BY site", (PENDING,))
        return sum(count for _, count in rows), dict(rows)

    def taken(self, site: str) -> set[str]:
        """Return the places of a site that machines have."""
        rows = self.database.rows("SELECT node FROM enrolment WHERE state = ? AND site = ?", (APPROVED, site))
        return {node for (node,) in rows}

    def forgotten(self, site: str) -> set[str]:
        """Return the places of a site whose nodes were forgotten."""
        return {node.node for node in forgotten_nodes(self.database) if node.site == site}

    def by_rule(self, rule: str) -> int:
        """Return how many machines a rule has approved."""
        ((count,),) = self.database.rows("SELECT count(*) FROM enrolment WHERE rule = ?", (rule,))
        return int(count)


def _claim(row: tuple[Any, ...]) -> StoredClaim:
    one = dict(zip(_CLAIM, row, strict=True))
    by = Actor(one.pop("who"), one.pop("why"), one.pop("claims"))
    return StoredClaim(**one | {"labels": orjson.loads(one["labels"]), "by": by})


def _machine(row: tuple[Any, ...]) -> StoredMachine:
    one = dict(zip(_MACHINE, row, strict=True))
    one["grant"] = one.pop("grant_text")
    return StoredMachine(**one | {"machine": orjson.loads(one["machine"])})


def _json(value: Mapping[str, str]) -> str:
    return orjson.dumps(dict(value)).decode()
