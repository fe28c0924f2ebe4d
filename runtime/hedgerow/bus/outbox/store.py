"""Numbered records and gaps on disk, until the region acknowledges them.

Rules:
- Every change is part of a `transaction`, and is on disk (fsync) when that ends.
- A number is assigned once. A record is deleted when it is acknowledged; if it is lost in any other way, a gap takes its
  place. Adjacent gaps are merged, so there are never more gaps than records (plus one per priority).
- The store uses neither wall clock nor network: time is an age (see `mark`).

Single-threaded: used only by the writer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hedgerow.bus.outbox.database import PAGE_BYTES, Damaged, OutboxDatabase, set_aside
from hedgerow.bus.outbox.mark import RESERVE_BYTES, Boot, Mark, Reserve
from hedgerow.bus.outbox.records import (
    PRIORITIES,
    Ack,
    Gap,
    OutboxEntry,
    OutboxError,
    PreviousEpoch,
    Record,
    key_of,
    priority_of,
    sequence_of,
)

_FIRST: Final = (1,) * PRIORITIES
_BATCH: Final = 1000
"""Limit on records expired or evicted by one query."""
_MIN_BYTES: Final = 1 << 18
"""On a full disk, eviction stops at this size."""
MAX_RECORD_FRACTION: Final = 4
"""A record may take at most a quarter of the quota: `max_bytes // 4`."""
REMEMBERED_ORIGINS: Final = 16_384
"""Number of origins remembered. A broker redelivers only frames that were in flight, at most Receive Maximum per
pipeline."""

Event = tuple[str, dict[str, Any]]


class OutboxFull(OutboxError):
    """The quota is used up, and no record may be evicted."""

    code = "outbox-full"


@dataclass(slots=True)
class OutboxChanges:
    """Changes since the last `OutboxStore.take_changes`.

    Attributes:
        given_up: keys of records replaced by a gap.
        changed_gaps: first keys of gaps that are new or have grown.
        lost: records lost, by reason.
        events: for operators.
    """

    given_up: list[int] = field(default_factory=list)
    changed_gaps: list[int] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


class OutboxStore:
    """The outbox's database of one node.

    Args:
        path: its file; `PATH-wal`, `PATH.mark` and `PATH.reserve` are created beside it.
        max_bytes: quota for the database's pages, without its write-ahead log (4 MB).
        when_full: evict the oldest records of the lowest priority, or refuse new ones.
        boot: returns the time since boot.
    Raises: OutboxError: it cannot be opened. A damaged file is set aside instead.
    Attributes:
        epoch: of the numbers.
        numbers: the next number of each priority.
        entries: number of stored records and gaps.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        when_full: Literal["evict", "refuse"] = "evict",
        boot: Callable[[], Boot] = Boot.now,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._ceiling = max_bytes  # lowered while the disk is full
        self._when_full = when_full
        self._boot = boot
        self._changes = OutboxChanges()
        self.entries = 0
        self._age_s = 0.0
        damaged = False
        try:
            database = self._open()
        except Damaged as error:
            aside = set_aside(path)
            damaged = True
            detail = {"error": str(error), "remedy": error.remedy, "kept_as": str(aside)}
            self._changes.events.append(("outbox-set-aside", detail))
            database = self._open()
        self._database = database
        try:
            self._mark = Mark(path.with_name(path.name + ".mark"))
        except OSError as error:
            database.close()
            raise OutboxError(
                f"Cannot write {path}.mark: {error}", remedy="Check the folder's permissions and the disk."
            ) from error
        self._reserve = Reserve(path.with_name(path.name + ".reserve"), min(RESERVE_BYTES, max_bytes // 8))
        self._load(damaged)
        self._reserve.fill()

    def _open(self) -> OutboxDatabase:
        database = OutboxDatabase(self.path)
        try:
            with database.reading():
                if not database.rows("SELECT 1 FROM state WHERE clean"):
                    database.check()
                self._state = database.rows("SELECT epoch, numbers, age_s, boot, boot_s FROM state")
                self.entries = int(database.value("SELECT count(*) FROM entry"))
                self._turns = int(database.value("SELECT coalesce(max(turn), 0) + 1 FROM recent"))
        except OutboxError:
            database.close()
            raise
        return database

    def _load(self, damaged: bool) -> None:
        now = self._boot()
        if self._state:
            self.epoch, numbers, age_s, *boot = self._state[0]
            self.numbers = [int(number) for number in json.loads(numbers)]
            self._opened, self._age_s = now, age_s + now.since(Boot(*boot))
            ahead = self._mark.epoch == self.epoch and any(map(int.__gt__, self._mark.numbers, self.numbers))
            with self.transaction():
                if ahead:
                    self._declare_torn(self._mark.numbers)
            return
        self.epoch, self.numbers = os.urandom(8).hex(), list(_FIRST)
        self._opened, self._age_s = now, 0.0
        with self.transaction():
            self._database.change("INSERT INTO state VALUES (1, ?, '', 0, '', 0, 0)", (self.epoch,))
            if self._mark.epoch:
                self._declare_epoch_end(PreviousEpoch(self._mark.epoch, self._mark.numbers))
            elif damaged:
                self._declare_epoch_end(PreviousEpoch(None, None))

    def _declare_torn(self, numbers: Sequence[int]) -> None:
        """Declare numbers that were assigned but are missing from a database that lost its end."""
        for priority, (stored, assigned) in enumerate(zip(self.numbers, numbers, strict=True)):
            if assigned > stored:
                self._declare_gap(
                    Gap(key_of(priority, stored), key_of(priority, assigned - 1), {"torn": assigned - stored})
                )
                self._changes.lost["torn"] += assigned - stored
                self.numbers[priority] = assigned
        self._changes.events.append(
            ("outbox-numbers-lost", {"epoch": self.epoch, "records": self._changes.lost["torn"]})
        )

    def _declare_epoch_end(self, previous: PreviousEpoch) -> None:
        """Declare the end of an earlier epoch, under the next number of the highest priority."""
        priority = PRIORITIES - 1
        key = key_of(priority, self.numbers[priority])
        self.numbers[priority] += 1
        self._declare_gap(Gap(key, key, {}, (previous,)))
        detail = {"epoch": self.epoch, "previous": previous.epoch, "numbers": previous.numbers}
        self._changes.events.append(("outbox-epoch-lost", detail))

    @property
    def age_s(self) -> float:
        """Seconds that have certainly passed since the store was created."""
        return self._age_s + self._boot().since(self._opened)

    @property
    def used_bytes(self) -> int:
        """Size of the database's pages in use, in bytes."""
        with self._database.reading():
            return self._database.used_bytes

    @property
    def next_keys(self) -> list[int]:
        """The key of the next record of each priority."""
        return [key_of(priority, number) for priority, number in enumerate(self.numbers)]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run changes; they are on disk when the block ends.

        Raises: OutboxError: it failed; nothing has changed.
        """
        before = self.epoch, list(self.numbers), self.entries
        saved = OutboxChanges(
            list(self._changes.given_up),
            list(self._changes.changed_gaps),
            self._changes.lost.copy(),
            [*self._changes.events],
        )
        try:
            with self._database.transaction():
                yield
                now = self._boot()
                self._database.change(
                    "UPDATE state SET epoch = ?, numbers = ?, age_s = ?, boot = ?, boot_s = ?, clean = 0",
                    (self.epoch, json.dumps(self.numbers), self._age_s + now.since(self._opened), *now),
                )
        except BaseException:
            (self.epoch, self.numbers, self.entries), self._changes = before, saved
            raise
        with contextlib.suppress(OSError):  # works on a full disk too: the file has its final size
            self._mark.write(self.epoch, self.numbers)
        if self._reserve.fill():
            self._ceiling = self._max_bytes

    def take_changes(self) -> OutboxChanges:
        """Remove and return the collected changes; call it after a transaction."""
        changes, self._changes = self._changes, OutboxChanges()
        return changes

    # Appending

    def append(self, records: Sequence[Record], origins: Sequence[int] = ()) -> list[int]:
        """Store records and their origins. Returns: the records' keys.

        Args:
            origins: signed 64-bit ids.
        Raises: OutboxError: none is stored; other changes of the transaction stand.
        """
        for record in records:
            if record.size > self._max_bytes // MAX_RECORD_FRACTION:
                raise OutboxError(
                    f"A result of {record.size} bytes exceeds the outbox's limit of {self._max_bytes // MAX_RECORD_FRACTION} bytes",
                    remedy="Raise the outbox's `max_bytes` (a result may take a quarter of it), or publish smaller results.",
                    code="outbox-too-large",
                )
        before, changes, age_s = (list(self.numbers), self.entries), self._changes, self.age_s
        self._changes = OutboxChanges()
        try:
            with self._database.part():
                keys = [self._assign_key(record.priority) for record in records]
                rows = [_row(key, record, age_s) for key, record in zip(keys, records, strict=True)]
                self._database.insert("entry", rows)
                self.entries += len(keys)
                if origins:
                    self._remember(origins)
                self._enforce_quota()
        except BaseException:
            (self.numbers, self.entries), self._changes = before, changes
            raise
        for name in ("given_up", "changed_gaps", "events"):
            getattr(changes, name).extend(getattr(self._changes, name))
        changes.lost.update(self._changes.lost)
        self._changes = changes
        return keys

    def _remember(self, origins: Sequence[int]) -> None:
        before = self._turns
        self._turns += len(origins)
        self._database.insert("recent", list(enumerate(origins, before)))
        if self._turns // _BATCH > before // _BATCH:
            self._database.rows("DELETE FROM recent WHERE turn < ?", (self._turns - REMEMBERED_ORIGINS,))

    def origins(self) -> list[int]:
        """Return the remembered origins, oldest first."""
        with self._database.reading():
            rows = self._database.rows("SELECT origin FROM recent ORDER BY turn DESC LIMIT ?", (REMEMBERED_ORIGINS,))
        return [origin for (origin,) in reversed(rows)]

    def _assign_key(self, priority: int) -> int:
        number = self.numbers[priority]
        self.numbers[priority] = number + 1
        return key_of(priority, number)

    def _enforce_quota(self) -> None:
        """Evict records until the quota is met."""
        while (excess := self._database.used_bytes - self._ceiling) > 0:
            rows = self._when_full == "evict" and self._database.rows(
                "SELECT key, length(payload) + length(properties) + length(topic) FROM entry"
                " WHERE topic <> '' ORDER BY key LIMIT ?",
                (_BATCH,),
            )
            if not rows:
                raise OutboxFull(
                    f"The outbox is full: {self._max_bytes} bytes are waiting for the region",
                    remedy="Check the link to the region, or raise the outbox's `max_bytes`.",
                )
            sizes = itertools.accumulate(size for _, size in rows)
            enough = next((count for count, size in enumerate(sizes, 1) if size >= excess), len(rows))
            self.give_up([key for key, _ in rows[:enough]], "evicted")

    # Reading and acknowledging

    def read(self, start: int, end: int, limit: int, max_bytes: int) -> list[OutboxEntry]:
        """Return entries in key order; corrupt records become gaps.

        Args:
            start: first key.
            end: end of the range, exclusive.
            limit: number of entries.
            max_bytes: size limit; the first entry may exceed it.
        """
        entries: list[OutboxEntry] = []
        corrupt: list[int] = []
        size = 0
        with self._database.reading():
            rows = self._database.rows(
                "SELECT key, last, topic, properties, crc, length(payload) FROM entry WHERE key >= ? AND key < ?"
                " ORDER BY key LIMIT ?",
                (start, end, limit),
            )
            for key, last, topic, properties, crc, length in rows:
                size += length
                if entries and size > max_bytes:
                    break
                payload = self._database.value("SELECT payload FROM entry WHERE key = ?", (key,))
                if topic and crc != _crc(topic, properties, payload):
                    corrupt.append(key)
                else:
                    entries.append(OutboxEntry(key, last, topic, properties, payload))
        if not corrupt:
            return entries
        with self.transaction():
            self.give_up(corrupt, "corrupt")
            self._changes.events.append(("outbox-corrupt", {"records": len(corrupt)}))
        return self.read(start, end, limit, max_bytes)

    def trim(self, ack: Ack) -> bool:
        """Delete acknowledged entries.

        Returns: False if it acknowledges numbers that this store never assigned. Then an earlier copy of the store assigned
            them and was lost unnoticed, and a new epoch starts.
        """
        if ack.epoch != self.epoch:
            return True
        next_keys = self.next_keys
        ranges = ack.ranges()
        if any(last >= next_keys[priority_of(last)] for _, last in ranges):
            self._restart_epoch()
            return False
        for first, last in ranges:
            self.entries -= self._database.change(
                "DELETE FROM entry WHERE key BETWEEN ? AND ? AND last <= ?", (first, last, last)
            )
            if sequence_of(first) == 0:
                self._shorten_gaps(first, last)
        return True

    def _shorten_gaps(self, first: int, last: int) -> None:
        """Shorten gaps of which the region has the first part."""
        rows = self._database.rows("SELECT key, last, payload FROM entry WHERE key BETWEEN ? AND ?", (first, last))
        for key, end, body in rows:
            gap = Gap.read(key, end, body)
            declared, reasons = gap.count - (end - last), {}
            for reason, count in gap.reasons.items():
                over = min(count, max(0, declared))
                declared -= over
                reasons[reason] = count - over
            self.entries -= self._database.change("DELETE FROM entry WHERE key = ?", (key,))
            self._declare_gap(
                Gap(last + 1, end, {reason: count for reason, count in reasons.items() if count}, gap.previous)
            )

    def _restart_epoch(self) -> None:
        """Start a new epoch that keeps the stored numbers."""
        previous = PreviousEpoch(self.epoch, tuple(self.numbers))
        self.epoch = os.urandom(8).hex()
        for priority, number in enumerate(self.numbers):
            first, last = key_of(priority, 1), key_of(priority, number) - 1
            rows = self._database.rows("SELECT min(key) FROM entry WHERE key BETWEEN ? AND ?", (first, last))
            before = last if rows[0][0] is None else rows[0][0] - 1
            if before >= first:  # the numbers below are not part of the new epoch
                self._declare_gap(Gap(first, before, {}))
        self._declare_epoch_end(previous)

    # Losing records

    def expire(self) -> bool:
        """Give up expired records. Returns: whether there may be more."""
        rows = self._database.rows(
            "SELECT key FROM entry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (self.age_s, _BATCH)
        )
        self.give_up([key for (key,) in rows], "expired")
        return len(rows) == _BATCH

    @property
    def has_expired(self) -> bool:
        """Whether any record has expired."""
        with self._database.reading():
            return bool(self._database.rows("SELECT 1 FROM entry WHERE expires_at <= ? LIMIT 1", (self.age_s,)))

    def give_up(self, keys: Iterable[int], reason: str) -> None:
        """Give up records and declare a gap for them."""
        present = [key for key in sorted(keys) if self._is_record(key)]
        if not present:
            return
        for first, last in _runs(present):
            self._declare_gap(Gap(first, last, {reason: last - first + 1}))
        self._changes.given_up.extend(present)
        self._changes.lost[reason] += len(present)

    def _is_record(self, key: int) -> bool:
        return bool(self._database.rows("SELECT 1 FROM entry WHERE key = ? AND topic <> ''", (key,)))

    def _declare_gap(self, gap: Gap) -> None:
        """Replace entries by a gap, merged with adjacent gaps."""
        database = self._database
        self.entries -= database.change("DELETE FROM entry WHERE key BETWEEN ? AND ?", (gap.first, gap.last))
        priority = priority_of(gap.first)
        columns = "SELECT key, last, topic, CASE topic WHEN '' THEN payload END FROM entry"
        beside = database.rows(
            f"{columns} WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT 1", (key_of(priority, 0), gap.first)
        ) + database.rows(
            f"{columns} WHERE key > ? AND key < ? ORDER BY key LIMIT 1", (gap.last, key_of(priority + 1, 0))
        )
        for key, last, topic, body in beside:
            if not topic:
                gap = gap.merged(Gap.read(key, last, body))
                self.entries -= database.change("DELETE FROM entry WHERE key = ?", (key,))
        database.change(
            "INSERT INTO entry VALUES (?, ?, '', '', 0, NULL, 0, x'', ?)", (gap.first, gap.last, gap.body())
        )
        self.entries += 1
        self._changes.changed_gaps.append(gap.first)

    # Maintenance

    def free_space(self) -> bool:
        """Prepare for a retry on a full disk: release the reserve, and lower the quota so that records are evicted.

        Returns: whether to retry.
        """
        self._reserve.release()
        self._database.truncate_log()
        if self._when_full == "refuse":
            return False
        try:
            used = min(self.used_bytes, self._ceiling)
        except OutboxError:
            return False
        if used <= _MIN_BYTES:
            return False
        if self._ceiling == self._max_bytes:
            remedy = (
                "Free some disk space. Until then, the oldest results of the lowest priority are evicted for new ones."
            )
            self._changes.events.append(("outbox-disk-full", {"bytes": used, "remedy": remedy}))
        self._ceiling = used - max(used // 16, PAGE_BYTES)
        return True

    def close(self) -> None:
        """Close the store and mark it clean, so that the next start skips the check of all pages."""
        with contextlib.suppress(OutboxError), self._database.transaction():
            self._database.change("UPDATE state SET clean = 1")
        self.abandon()

    def abandon(self) -> None:
        """Close the store without marking it clean."""
        self._database.close()
        self._mark.close()


def copy_records(source: Path, target: Path) -> int:
    """Copy the records of an outbox that no node uses to a new one, where their numbers begin anew. Gaps stay behind.

    Args:
        source: file of the outbox.
        target: file of the new one, which must not exist.
    Returns: how many there were.
    Raises: OutboxError: one of them cannot be opened or written.
    """
    count, key = 0, -1
    database = OutboxDatabase(source)
    try:
        store = OutboxStore(target, max_bytes=max(1 << 20, 8 * source.stat().st_size))
        try:
            with database.reading():
                age_s = float(database.value("SELECT age_s FROM state"))
            while True:
                with database.reading():
                    rows = database.rows(
                        "SELECT key, pipeline, topic, payload, properties, created_at, expires_at FROM entry "
                        "WHERE key > ? AND topic <> '' ORDER BY key LIMIT 100",
                        (key,),
                    )
                if not rows:
                    return count
                records = [
                    Record(pipeline, topic, payload, properties, priority_of(number), created_at, None if ends is None else ends - age_s)
                    for number, pipeline, topic, payload, properties, created_at, ends in rows
                ]  # fmt: skip
                with store.transaction():
                    store.append(records)
                count, key = count + len(rows), rows[-1][0]
        finally:
            store.close()
    finally:
        database.close()


def _row(key: int, record: Record, age_s: float) -> tuple[Any, ...]:
    expires_at = None if record.ttl_s is None else age_s + record.ttl_s
    crc = _crc(record.topic, record.properties, record.payload)
    about = (record.topic, record.pipeline, record.created_at, expires_at)
    return (key, key, *about, crc, record.properties, record.payload)


def _crc(topic: str, properties: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(properties, zlib.crc32(topic.encode())))


def _runs(keys: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of consecutive keys."""
    first = last = -1
    for key in keys:
        if key != last + 1:
            if first >= 0:
                yield first, last
            first = key
        last = key
    if first >= 0:
        yield first, last
