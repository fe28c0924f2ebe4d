"""Stored identity of nodes: forgotten ones, former addresses, and retained topics to clear.

Two threads write the store: the collector's, which keeps all nodes in memory, and that of the rollout service, which carries out what
operators ask for. `lock_changes` keeps them apart, and tells the collector that its nodes are not the current ones any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from hedgerow.region.store.database.database import Database, RegionStoreError
from hedgerow.topics import Address, Channel

_RETAINED: Final = (Channel.STATUS, Channel.REPORTED, Channel.DESIRED)
"""Channels of a node whose last message brokers keep."""
CURRENT_ADDRESSES: Final = (
    "(SELECT id, region, site, name FROM node WHERE forgotten_at IS NULL UNION ALL SELECT a.node, a.region, a.site, a.name "
    "FROM alias a JOIN node f ON f.id = a.node WHERE a.seen_at IS NULL AND a.ended_at IS NULL AND f.forgotten_at IS NULL)"
)
"""Addresses under which nodes may run, as a table: a renamed one also under its former address, until it reports under the new one."""


@dataclass(slots=True)
class Alias:
    """A former address of a node.

    Attributes:
        node: the id of its row.
        seen_at: when the node first reported under its present address; None: it may still run under this one.
        session: its last session under this address.
    """

    node: int
    seen_at: float | None
    session: str | None

    @property
    def seen(self) -> bool:
        """Whether the node has reported under its present address."""
        return self.seen_at is not None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A node that an operator has forgotten.

    Attributes:
        id: of its row.
        address: its last one.
        at: Unix seconds.
        because: when, by whom and why, for humans.
    """

    id: int
    address: Address
    at: float
    because: str


def lock_changes(database: Database) -> int:
    """Keep others from changing who nodes are until the end of the transaction. Returns: how many such changes there were."""
    rows = database.rows("UPDATE collector SET changes = changes WHERE one = 1 RETURNING changes")
    return int(rows[0][0]) if rows else 0


def begin_batch(database: Database) -> tuple[int, int]:
    """Do as `lock_changes`, and count the transaction. Returns: the changes, and the store's position."""
    query = "UPDATE collector SET position = position + 1 WHERE one = 1 RETURNING changes, position"
    ((changes, position),) = database.rows(query)
    return int(changes), int(position)


def count_change(database: Database) -> None:
    """Have the collector read its nodes again, and keep it from storing anything until the end of the transaction.

    Call it before anything else is changed: the collector takes the same row first, so that neither waits for the other in a circle.
    """
    database.run("UPDATE collector SET changes = changes + 1 WHERE one = 1")


def forgotten_nodes(database: Database) -> dict[Address, Forgotten]:
    """Return the forgotten nodes, also by those former addresses under which they may still run."""
    rows = database.rows(
        "SELECT region, site, name, region, site, name, id, forgotten_at, forgotten_because FROM node WHERE forgotten_at IS NOT NULL "
        "UNION ALL SELECT a.region, a.site, a.name, n.region, n.site, n.name, n.id, n.forgotten_at, n.forgotten_because "
        "FROM alias a JOIN node n ON n.id = a.node WHERE n.forgotten_at IS NOT NULL AND a.ended_at IS NULL"
    )
    return {Address(*row[:3]): Forgotten(row[6], Address(*row[3:6]), row[7], row[8] or "") for row in rows}


def forget_node(database: Database, address: Address, node: int, now: float, because: str) -> None:
    """Mark a node as forgotten, drop its last reports, and clear its retained topics."""
    count_change(database)
    database.run("UPDATE node SET forgotten_at = ?, forgotten_because = ? WHERE id = ?", (now, because, node))
    for table in ("said", "instance", "twin"):
        database.run(f"DELETE FROM {table} WHERE node = ?", (node,))  # noqa: S608
    former = database.rows("SELECT region, site, name FROM alias WHERE node = ? AND ended_at IS NULL", (node,))
    clear_topics(
        database, [topic for each in (address, *(Address(*row) for row in former)) for topic in retained_topics(each)]
    )


def admit_node(database: Database, node: Forgotten) -> None:
    """Take a forgotten node in again, as new as one can be that has a history: nothing is known of its present state."""
    count_change(database)
    database.run(
        "UPDATE node SET forgotten_at = NULL, forgotten_because = NULL, heard_at = NULL, session = NULL, online = NULL, "
        "stopped = NULL, status_at = NULL, health_at = NULL, health_state = NULL, health_reasons = NULL, health_session = NULL, "
        "bytes_in_now = 0, unanswered = 0 WHERE id = ?",
        (node.id,),
    )
    keep_topics(database, node.address)


def move_node(database: Database, node: int, old: Address, new: Address, now: float) -> None:
    """Give a node another address. The old one stands for it until its machine has the new one, and for what was on its way."""
    count_change(database)
    end_alias(database, new, now)
    since = "INSERT INTO alias (node, region, site, name, since) VALUES (?, ?, ?, ?, ?)"
    database.run(since, (node, *old, now))
    database.run("UPDATE node SET site = ?, name = ? WHERE id = ?", (new.site, new.node, node))
    database.run("UPDATE desired SET published = 0 WHERE node = ?", (node,))
    clear_topics(database, retained_topics(old))
    keep_topics(database, new)


def end_alias(database: Database, address: Address, now: float) -> None:
    """End a former address: from now on, another node has it."""
    ended = "UPDATE alias SET ended_at = ? WHERE ended_at IS NULL AND region = ? AND site = ? AND name = ?"
    database.run(ended, (now, *address))


def nodes_not_moved(database: Database) -> set[int]:
    """Return the ids of the nodes that have not reported under their present address since they got it."""
    rows = database.rows("SELECT DISTINCT node FROM alias WHERE seen_at IS NULL AND ended_at IS NULL")
    return {node for (node,) in rows}


def retained_topics(address: Address) -> list[str]:
    """Return the topics of a node whose last message brokers keep."""
    return [address.topic(channel) for channel in _RETAINED]


def clear_topics(database: Database, topics: Iterable[str]) -> None:
    """Have the retained messages of topics cleared."""
    database.many("INSERT INTO clearing (topic) VALUES (?) ON CONFLICT DO NOTHING", [(topic,) for topic in topics])


def keep_topics(database: Database, address: Address) -> None:
    """Do not clear the topics of a node that there is again."""
    database.many("DELETE FROM clearing WHERE topic = ?", [(topic,) for topic in retained_topics(address)])


def topics_to_clear(database: Database) -> list[str]:
    """Return the topics whose retained messages are to be cleared."""
    return [topic for (topic,) in database.rows("SELECT topic FROM clearing ORDER BY topic")]


def topics_cleared(database: Database, topics: Iterable[str]) -> None:
    """Record that the broker has cleared topics."""
    database.many("DELETE FROM clearing WHERE topic = ?", [(topic,) for topic in topics])


def aliases(database: Database) -> dict[Address, Alias]:
    """Return the former addresses that still stand for a node."""
    rows = database.rows(
        "SELECT a.region, a.site, a.name, a.node, a.seen_at, a.session FROM alias a JOIN node n ON n.id = a.node "
        "WHERE a.ended_at IS NULL AND n.forgotten_at IS NULL"
    )
    return {Address(*row[:3]): Alias(row[3], row[4], row[5]) for row in rows}


def former_addresses(database: Database) -> dict[int, list[dict[str, Any]]]:
    """Return all former addresses of nodes by the ids of their rows, oldest first; a store of an earlier version has none."""
    found: dict[int, list[dict[str, Any]]] = {}
    try:
        rows = database.rows("SELECT node, region, site, name, since, seen_at, ended_at FROM alias ORDER BY id")
    except RegionStoreError:
        return found
    for node, region, site, name, since, seen_at, ended_at in rows:
        one = {
            "node": f"{region}/{site}/{name}",
            "until": since,
            "seen": seen_at is not None,
            "taken": ended_at is not None,
        }
        found.setdefault(node, []).append(one)
    return found
