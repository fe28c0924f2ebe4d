"""Former addresses of nodes: whose messages are those that still arrive under one.

A renamed node runs under its former address until its machine has its new configuration; until then everything from there is the
node's. Once it has reported under its present address, only results, gaps and events that were on their way are. A status of a
session that the node never had then shows another machine, which is a node of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import structlog

from hedgerow.region.store.database.database import Database
from hedgerow.region.store.life.identity import Alias, aliases, end_alias, former_addresses
from hedgerow.region.store.nodes import KnownNode
from hedgerow.region.store.records import HealthRecord, ReportedRecord, StatusRecord, StoreRecord
from hedgerow.topics import Address

log = structlog.get_logger(__name__)

_ON_ITS_WAY_S: Final = 7 * 86_400.0
"""How long a broker may hold what a node sent under its former address; a rendered one keeps the sessions of bridges for two days. Then
the former site has no say about the node any more."""
_SIGNS: Final = (StatusRecord, HealthRecord, ReportedRecord)


class FormerAddresses:
    """The former addresses of all nodes.

    Args:
        database: the database with them.
        nodes: all known nodes.
    Attributes:
        unseen: ids of the nodes that may still run under a former address.
    Raises: RegionStoreError: it cannot be read.
    """

    def __init__(self, database: Database, nodes: Iterable[KnownNode]) -> None:
        self._database = database
        self._aliases: dict[Address | None, Alias] = dict(aliases(database).items())
        nodes = list(nodes)
        wanted = {alias.node for alias in self._aliases.values()}
        self._nodes = {node.id: node for node in nodes if node.id in wanted}
        self._present = {node.id: node.address for node in nodes}
        self._names = {row: {one["node"] for one in every} for row, every in former_addresses(database).items()}
        self.unseen = {alias.node for alias in self._aliases.values() if not alias.seen}

    def find(self, record: StoreRecord, now: float) -> KnownNode | None:
        """Return the node whose message arrives under a former address; None: it is that of no known node, or is from now on."""
        alias, address = self._aliases.get(record.address), record.address
        if alias is None or address is None or (node := self._nodes.get(alias.node)) is None:
            return None
        late = alias.seen_at is not None and now - alias.seen_at > _ON_ITS_WAY_S
        if late or self._shows_another(node, alias, record):
            del self._aliases[address]
            end_alias(self._database, address, now)
            log.warning("former-address-taken", address=str(address), of=str(node.address))
            return None
        return node

    def names(self, node: KnownNode, sender: Address | None) -> Collection[str]:
        """Return the addresses that results of a node may name besides the one of their topic.

        Its own, before and now: its machine may have another name than its results, also an earlier one, if its disk was put back. So
        may one that comes up under a name that another node had, and counts as a node of its own.
        """
        own = {str(node.address), *self._names.get(node.id, ())}
        return own | {
            str(self._present[row])
            for row, names in self._names.items()
            if str(sender) in names and row in self._present
        }

    def note(self, node: KnownNode, record: StoreRecord, now: float) -> None:
        """Note that a node runs under its present address. A report proves nothing: a broker may have kept another node's."""
        if node.id not in self.unseen or not record.fresh or not isinstance(record, StatusRecord | HealthRecord):
            return
        if isinstance(record, StatusRecord) and not record.online:
            return
        self.unseen.discard(node.id)
        for alias in self._aliases.values():
            if alias.node == node.id and not alias.seen:
                alias.seen_at, alias.session = now, node.session
        seen = "UPDATE alias SET seen_at = ?, session = ? WHERE node = ? AND seen_at IS NULL"
        self._database.run(seen, (now, node.session, node.id))

    def is_outdated(self, record: StoreRecord) -> bool:
        """Whether a status, report or health is one that brokers still had of a node that runs under another address now."""
        if not self._aliases:  # as for almost all records
            return False
        alias = self._aliases.get(record.address)
        return alias is not None and alias.seen and isinstance(record, _SIGNS)

    def _shows_another(self, node: KnownNode, alias: Alias, record: StoreRecord) -> bool:
        """Whether a message under a former address shows that another machine has it: a status of a session that the node never had."""
        return (
            isinstance(record, StatusRecord)
            and record.online
            and record.fresh
            and alias.seen
            and record.session not in (node.session, alias.session)
        )
