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
        wanted = {alias.node for alias in self._aliases.values()}
        self._nodes = {node.id: node for node in nodes if node.id in wanted}
        self._names = {row: {one["node"] for one in every} for row, every in former_addresses(database).items()}
        self.unseen = {alias.node for alias in self._aliases.values() if not alias.seen}

    def find(self, address: Address) -> KnownNode | None:
        """Return the node that an address stood for; None: there is none."""
        alias = self._aliases.get(address)
        return None if alias is None else self._nodes.get(alias.node)

    def names(self, node: KnownNode) -> Collection[str]:
        """Return all addresses that a node has had before; its results may still name one."""
        return self._names.get(node.id, ())

    def note(self, node: KnownNode, record: StoreRecord, now: float) -> None:
        """Note that a node reports under its present address."""
        if node.id not in self.unseen or not record.fresh or not isinstance(record, _SIGNS):
            return
        if isinstance(record, StatusRecord) and not record.online:
            return
        self.unseen.discard(node.id)
        for alias in self._aliases.values():
            if alias.node == node.id and not alias.seen:
                alias.seen, alias.session = True, node.session
        seen = "UPDATE alias SET seen_at = ?, session = ? WHERE node = ? AND seen_at IS NULL"
        self._database.run(seen, (now, node.session, node.id))

    def is_taken(self, node: KnownNode, record: StoreRecord) -> bool:
        """Whether a message under a former address shows that another machine has taken it."""
        return (
            isinstance(record, StatusRecord)
            and record.online
            and record.fresh
            and self.is_outdated(record)
            and record.session not in (node.session, self._aliases[record.address].session)
        )

    def is_outdated(self, record: StoreRecord) -> bool:
        """Whether a status, report or health is one that brokers still had of a node that runs under another address now."""
        alias = self._aliases.get(record.address)
        return alias is not None and alias.seen and isinstance(record, _SIGNS)

    def end(self, address: Address, node: KnownNode, now: float) -> None:
        """End a former address: another node has it now."""
        del self._aliases[address]
        end_alias(self._database, address, now)
        log.warning("former-address-taken", address=str(address), of=str(node.address))
