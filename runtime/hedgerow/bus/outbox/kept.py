"""Acknowledged results that an outbox keeps for a while, in case the region's store is put back to an earlier time.

The region's store counts its transactions: an acknowledgement names the store and its position, so a result that was acknowledged is
in that store at that position. Once the region says which positions a restore has lost, what was acknowledged there waits again.

Records stay where they are; the table `kept` has the ranges of keys that wait no more. Gaps, which are small, move to `kept_gap`. So
keeping a result writes nothing that deleting it would not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hedgerow.bus.outbox.database import OutboxDatabase
from hedgerow.bus.outbox.records import Gap, StorePosition

_RANGE_RECORDS: Final = 500
_RANGE_BYTES: Final = 1 << 20
_RANGE_S: Final = 60.0
"""Limits of one range; what is acknowledged later begins a new one, so that what is kept is dropped in small parts."""
_GAP_BYTES: Final = 200
_MAX_STORES: Final = 16
"""Stores of the region that an outbox remembers: one, unless it is lost and begun anew."""


class KeepLimits(NamedTuple):
    """How long, and how much of what is acknowledged is kept; 0: nothing."""

    seconds: float = 0.0
    max_bytes: int = 0

    @property
    def are_set(self) -> bool:
        """Whether anything is kept."""
        return self.seconds > 0 and self.max_bytes > 0


NOTHING: Final = KeepLimits()
"""Acknowledged results are deleted at once."""


class KeptRange(NamedTuple):
    """Records that are kept: their first and last key."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class KnownStore:
    """What an outbox knows of the region's store.

    Attributes:
        mark: its `StorePosition.mark`; "" if none has acknowledged anything yet.
        resent: results that were sent again since it was put back last.
        complete: whether those were all that it had acknowledged and lost.
    """

    mark: str = ""
    resent: int = 0
    complete: bool = True


class KeptEntries:
    """The acknowledged entries of an outbox's file. All methods but `waiting` run within the caller's transaction.

    Args:
        database: the file.
        limits: how much is kept.
    """

    def __init__(self, database: OutboxDatabase, limits: KeepLimits) -> None:
        self._database = database
        self.limits = limits

    @property
    def used_bytes(self) -> int:
        """Bytes of what is kept."""
        of_gaps = f"SELECT count(*) * {_GAP_BYTES} FROM kept_gap"  # noqa: S608 - our own number
        return int(self._database.value(f"SELECT coalesce(sum(bytes), 0) + ({of_gaps}) FROM kept"))  # noqa: S608

    def waiting(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges from `start` up to `end`, exclusive, of which nothing is kept; ends are exclusive too."""
        rows = self._database.rows(
            "SELECT first, last FROM kept WHERE first < ? AND "
            "first >= coalesce((SELECT max(first) FROM kept WHERE first <= ?), ?) ORDER BY first",
            (end, start, start),
        )
        for first, last in rows:
            if start < first:
                yield start, first
            start = max(start, last + 1)
        if start < end:
            yield start, end

    def has(self, first: int, last: int) -> bool:
        """Whether any record between two keys, ends included, is kept."""
        if first > last:
            return False
        return bool(
            self._database.rows(
                "SELECT 1 FROM kept WHERE first <= ? AND last >= ? AND "
                "first >= coalesce((SELECT max(first) FROM kept WHERE first <= ?), ?) LIMIT 1",
                (last, first, first, first),
            )
            or self._database.rows("SELECT 1 FROM kept_gap WHERE first BETWEEN ? AND ? LIMIT 1", (first, last))
        )

    def keep(self, first: int, last: int, at: StorePosition, age_s: float, lowest: int) -> int:
        """Keep the records between two keys, ends included, none of which is kept yet. Returns: how many there are.

        `lowest` is the first key of their epoch and priority: a range belongs to one.
        """
        count, size = self._database.rows(
            "SELECT count(*), coalesce(sum(length(payload) + length(properties) + length(topic)), 0) FROM entry "
            "WHERE key BETWEEN ? AND ?",
            (first, last),
        )[0]
        if not count:
            return 0
        grown = self._database.change(
            "UPDATE kept SET last = ?, position = ?, records = records + ?, bytes = bytes + ? "
            "WHERE last = ? AND first >= ? AND store = ? AND age_s >= ? AND records < ? AND bytes < ?",
            (
                last,
                at.position,
                count,
                size,
                first - 1,
                lowest,
                at.store,
                age_s - _RANGE_S,
                _RANGE_RECORDS,
                _RANGE_BYTES,
            ),
        )
        if not grown:
            row = (first, last, at.store, at.position, age_s, count, size)
            self._database.change("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return int(count)

    def keep_gap(self, gap: Gap, at: StorePosition, age_s: float) -> None:
        """Keep a gap."""
        row = (gap.first, gap.last, gap.body(), at.store, at.position, age_s)
        self._database.change("INSERT OR REPLACE INTO kept_gap VALUES (?, ?, ?, ?, ?, ?)", row)

    def note_dropped(self, store: str, position: int) -> None:
        """Note that something which was acknowledged at a position is kept no more."""
        self._database.change(
            "UPDATE region_store SET dropped = max(dropped, ?) WHERE store = ?", (position, store)
        )  # fmt: skip

    def has_outlived(self, age_s: float) -> bool:
        """Whether anything was kept for long enough."""
        before = age_s - self.limits.seconds
        return any(
            self._database.rows(f"SELECT 1 FROM {table} WHERE age_s <= ? LIMIT 1", (before,))  # noqa: S608
            for table in ("kept", "kept_gap")
        )

    def drop_outlived(self, age_s: float) -> bool:
        """Drop what was kept for long enough. Returns: whether there was any."""
        before, dropped = age_s - self.limits.seconds, False
        for first, last, store, position in self._database.rows(
            "SELECT first, last, store, position FROM kept WHERE age_s <= ?", (before,)
        ):
            self._drop(first, last, store, position)
            dropped = True
        for first, store, position in self._database.rows(
            "SELECT first, store, position FROM kept_gap WHERE age_s <= ?", (before,)
        ):
            self._database.change("DELETE FROM kept_gap WHERE first = ?", (first,))
            self.note_dropped(store, position)
            dropped = True
        return dropped

    def drop_excess(self) -> bool:
        """Drop what is too much. Returns: whether there was any."""
        dropped = False
        while self.used_bytes > self.limits.max_bytes and self.drop_oldest():
            dropped = True
        return dropped

    def drop_oldest(self) -> bool:
        """Drop the range that was acknowledged first. Returns: False if nothing is kept."""
        rows = self._database.rows("SELECT first, last, store, position FROM kept ORDER BY age_s, first LIMIT 1")
        for first, last, store, position in rows:
            self._drop(first, last, store, position)
        if rows:
            return True
        gaps = self._database.rows("SELECT store, max(position) FROM kept_gap GROUP BY store")
        for store, position in gaps:
            self.note_dropped(store, position)
        self._database.change("DELETE FROM kept_gap")
        return bool(gaps)

    def _drop(self, first: int, last: int, store: str, position: int) -> None:
        self._database.change("DELETE FROM entry WHERE key BETWEEN ? AND ?", (first, last))
        self._database.change("DELETE FROM kept WHERE first = ?", (first,))
        self.note_dropped(store, position)

    # The region's store

    def stores(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return the known stores, and the positions that each has lost."""
        rows = self._database.rows("SELECT store, lost FROM region_store")
        return {store: tuple((first, last) for first, last in json.loads(lost)) for store, lost in rows}

    def known(self) -> KnownStore:
        """Return the store that was learned of last."""
        rows = self._database.rows("SELECT store, lost, resent, complete FROM region_store ORDER BY turn DESC LIMIT 1")
        for store, lost, resent, complete in rows:
            mark = StorePosition(store, 0, tuple((first, last) for first, last in json.loads(lost))).mark
            return KnownStore(mark, int(resent), bool(complete))
        return KnownStore()

    def learn(self, of: StorePosition) -> tuple[list[KeptRange], list[Gap], bool] | None:
        """Note what the region says of its store, and keep no longer what that has lost.

        Returns: the records and gaps that wait again, and whether there were others that were dropped before; None: it is known.
        """
        known = self.stores()
        if known.get(of.store) == of.lost:
            return None
        ((turn,),) = self._database.rows("SELECT coalesce(max(turn), 0) + 1 FROM region_store")
        self._database.change(
            "INSERT INTO region_store (store, lost, turn) VALUES (?, ?, ?) ON CONFLICT (store) DO UPDATE SET "
            "lost = excluded.lost, turn = excluded.turn, resent = 0",
            (of.store, json.dumps(of.lost), turn),
        )
        new = [one for one in of.lost if one not in known.get(of.store, ())]
        lacks = " OR ".join(["store = ? AND position > ? AND position <= ?"] * len(new)) or "0"
        values: list[str | int] = [part for one in new for part in (of.store, *one)]
        dropped = self._database.value("SELECT dropped FROM region_store WHERE store = ?", (of.store,))
        incomplete = any(dropped > first for first, _ in new)
        if known and of.store not in known:  # it has nothing of what another store acknowledged
            lacks, values = f"{lacks} OR store <> ?", [*values, of.store]
            incomplete = bool(self._database.value("SELECT max(dropped) FROM region_store"))
        self._database.change("UPDATE region_store SET complete = ? WHERE store = ?", (not incomplete, of.store))
        self._database.change("DELETE FROM region_store WHERE turn <= ?", (turn - _MAX_STORES,))
        return *self._take(lacks, values), incomplete

    def note_resent(self, store: str, results: int) -> None:
        """Note how many results are sent again since a store was put back."""
        self._database.change("UPDATE region_store SET resent = ? WHERE store = ?", (results, store))

    def take(self, first: int, last: int) -> tuple[list[KeptRange], list[Gap]]:
        """Keep what is between two keys, ends included, no longer. Returns: what waits again."""
        return self._take("first BETWEEN ? AND ?", (first, last))

    def _take(self, where: str, values: Sequence[str | int]) -> tuple[list[KeptRange], list[Gap]]:
        ranges = [KeptRange(*row) for row in self._database.rows(f"SELECT first, last FROM kept WHERE {where}", values)]  # noqa: S608
        gaps = [
            Gap.read(*row)
            for row in self._database.rows(f"SELECT first, last, body FROM kept_gap WHERE {where}", values)  # noqa: S608
        ]
        self._database.change(f"DELETE FROM kept WHERE {where}", values)  # noqa: S608
        self._database.change(f"DELETE FROM kept_gap WHERE {where}", values)  # noqa: S608
        return ranges, gaps
