"""Sends readings of water meters, and compares them with the results in a region's store.

A reading gives one result, with the reading's id. So what was made is known from what brokers accepted, whatever nodes, their
outboxes and the region say.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from hedgerow.cli.base.client import publish_properties
from hedgerow.cli.base.connection import connected
from hedgerow.cli.demo.processes import SiteProcesses
from hedgerow.wire.messages import JSON, encode_json

_TOPIC: Final = "meter/water"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was made, and what a region's store has of it.

    Attributes:
        made: readings that brokers accepted.
        stored: those whose result is stored.
        lost: those whose result is not.
        duplicated: results that are stored once more than they were made.
        by_both: readings of which two machines of one name made a result each; both are stored.
    """

    made: int
    stored: int
    lost: int
    duplicated: int
    by_both: int


class Readings:
    """The readings, and their results.

    Args:
        store: the region's store, an SQLite file.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._sent: set[str] = set()
        self._withheld: set[str] = set()
        self._by_twins: set[str] = set()

    async def send(self, site: SiteProcesses, count: int, *, twins: bool = False, withheld: bool = False) -> list[str]:
        """Send readings to a site's broker, and return their ids.

        Args:
            twins: two machines of one name process them: a reading that one has not acknowledged goes to the other too.
            withheld: the region is to refuse their results.
        Raises: BusError: the broker does not accept one.
        """
        ids = []
        async with connected(site.sensors) as client:
            for number in range(count):
                ids.append(uuid4().hex)
                user = [("id", ids[-1]), ("time", f"{time.time():.6f}")]
                properties = publish_properties(ContentType=JSON, UserProperty=user)
                await client.send(_TOPIC, encode_json({"litres": [number]}), qos=1, properties=properties)
        (self._withheld if withheld else self._sent).update(ids)
        if twins:
            self._by_twins.update(ids)
        return ids

    async def missing(self, ids: Collection[str]) -> set[str]:
        """Return those of these readings whose results are not stored."""
        return set(ids) - {one for one, _ in self._results()}

    async def runs(self, ids: Collection[str]) -> set[str]:
        """Return the runs of nodes that made the stored results of these readings, by the epochs of their numbers."""
        return {_run(number) for one, number in self._results() if one in ids}

    def compare(self) -> Comparison:
        """Compare what was made with what is stored."""
        return compare(self._results(), self._sent, self._by_twins)

    @property
    def leaked(self) -> int:
        """Results that the region was to refuse, and has."""
        return len(self._withheld & {one for one, _ in self._results()})

    def _results(self) -> list[tuple[str, str]]:
        """Return the stored results: the reading's id, and the number that a node's outbox gave. Of a store that is gone: none."""
        from hedgerow.region.store.database.open import open_database
        from hedgerow.region.store.queries import ResultQuery, results

        if not self._store.exists():
            return []
        with closing(open_database(str(self._store), write=False)) as database:
            return [(one.id or "", one.number or "") for one in results(database, ResultQuery())]


def compare(results: Sequence[tuple[str, str]], sent: Set[str], by_twins: Set[str]) -> Comparison:
    """Compare stored results with what was sent.

    Args:
        results: id of the reading and number of each.
        sent: ids of the readings.
        by_twins: of those among them that two machines of one name processed.
    """
    stored = {one for one, _ in results}
    made_by_twins = {(one, _run(number)) for one, number in results if one in by_twins}
    by_both = len(made_by_twins) - len(stored & by_twins)
    return Comparison(
        made=len(sent),
        stored=len(sent & stored),
        lost=len(sent - stored),
        duplicated=len(results) - len(stored) - by_both,
        by_both=by_both,
    )


def _run(number: str) -> str:
    """Return the epoch in a number, without what marks a clash."""
    return number.partition("/")[0].partition("~")[0]
