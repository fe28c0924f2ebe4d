"""The outbox on the disk: numbered records and gaps, until the region has them.

Rules:
- What changes, changes in a `transaction`; when that has ended it is on the disk (fsync).
- A number is given once. A record leaves by being acknowledged; lost in any other way, a gap takes its place. Gaps that
  have nothing between them are one, so there are never more of them than records (and one for each priority).
- Neither the clock nor the network is known here: time is an age (see `mark`).

For one thread, the writer's.
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
_AT_ONCE: Final = 1000
"""Records expired or evicted with one look."""
_LEAST_BYTES: Final = 1 << 18
"""On a full disk no more is given up than down to this."""
LARGEST: Final = 4
"""A record may take no more than this part (a fourth) of the quota."""
RECENT: Final = 16_384
"""Origins that are remembered. A broker gives a frame again only while it is among the last that were under way, of which it
has no more than Receive Maximum for each pipeline."""

Event = tuple[str, dict[str, Any]]


class Full(OutboxError):
    """The quota is used up, and nothing may be given up for new records."""

    code = "outbox-full"


@dataclass(slots=True)
class OutboxChanges:
    """What happened since the notes were taken last.

    Attributes:
        gone: keys of records that a gap has taken the place of.
        touched: first keys of gaps that are new or have grown.
        lost: records lost, by reason.
        events: what operators should know.
    """

    gone: list[int] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


class OutboxStore:
    """The records of one node.

    Args:
        path: of the database; next to it there will be `PATH-wal` and `PATH.mark`.
        max_bytes: most that the database's pages may take; its write-ahead log (4 MB) comes on top.
        when_full: give up the oldest of the lowest priority, or refuse what is new.
        boot: tells the time.
    Raises: OutboxError: it cannot be opened, and that is not because it is damaged.
    Attributes:
        epoch: which numbering.
        numbers: the next number of each priority.
        entries: records and gaps in it.
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
        self._ceiling = max_bytes  # lower while the disk is full
        self._when_full = when_full
        self._boot = boot
        self._notes = OutboxChanges()
        self.entries = 0
        self._age_s = 0.0
        damaged = False
        try:
            database = self._open()
        except Damaged as error:
            aside = set_aside(path)
            damaged = True
            detail = {"error": str(error), "remedy": error.remedy, "kept_as": str(aside)}
            self._notes.events.append(("outbox-set-aside", detail))
            database = self._open()
        self._database = database
        try:
            self._mark = Mark(path.with_name(path.name + ".mark"))
        except OSError as error:
            database.close()
            raise OutboxError(f"{path}.mark cannot be written: {error}", remedy="Check the folder.") from error
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
                    self._skip_to(self._mark.numbers)
            return
        self.epoch, self.numbers = os.urandom(8).hex(), list(_FIRST)
        self._opened, self._age_s = now, 0.0
        with self.transaction():
            self._database.change("INSERT INTO state VALUES (1, ?, '', 0, '', 0, 0)", (self.epoch,))
            if self._mark.epoch:
                self._end_epoch(PreviousEpoch(self._mark.epoch, self._mark.numbers))
            elif damaged:
                self._end_epoch(PreviousEpoch(None, None))

    def _skip_to(self, numbers: Sequence[int]) -> None:
        """The database lost its end, but it is known which numbers had been given: they are a gap."""
        for priority, (here, there) in enumerate(zip(self.numbers, numbers, strict=True)):
            if there > here:
                self._declare(Gap(key_of(priority, here), key_of(priority, there - 1), {"torn": there - here}))
                self._notes.lost["torn"] += there - here
                self.numbers[priority] = there
        self._notes.events.append(("outbox-numbers-lost", {"epoch": self.epoch, "records": self._notes.lost["torn"]}))

    def _end_epoch(self, previous: PreviousEpoch) -> None:
        """Declare that an earlier epoch has ended, under the first free number of the highest priority."""
        priority = PRIORITIES - 1
        key = key_of(priority, self.numbers[priority])
        self.numbers[priority] += 1
        self._declare(Gap(key, key, {}, (previous,)))
        detail = {"epoch": self.epoch, "previous": previous.epoch, "numbers": previous.numbers}
        self._notes.events.append(("outbox-epoch-lost", detail))

    @property
    def age_s(self) -> float:
        """Seconds that have surely passed since the store was made."""
        return self._age_s + self._boot().since(self._opened)

    @property
    def used_bytes(self) -> int:
        """Bytes of the database's pages that hold something."""
        with self._database.reading():
            return self._database.used_bytes

    @property
    def tops(self) -> list[int]:
        """For each priority, the key of its next record."""
        return [key_of(priority, number) for priority, number in enumerate(self.numbers)]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes; all are on the disk when it ends, or none has happened.

        Raises: OutboxError: none has happened.
        """
        before = self.epoch, list(self.numbers), self.entries
        kept = OutboxChanges(
            list(self._notes.gone), list(self._notes.touched), self._notes.lost.copy(), [*self._notes.events]
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
            (self.epoch, self.numbers, self.entries), self._notes = before, kept
            raise
        with contextlib.suppress(OSError):  # a full disk cannot hinder it: the file has its size
            self._mark.note(self.epoch, self.numbers)
        if self._reserve.fill():
            self._ceiling = self._max_bytes

    def notes(self) -> OutboxChanges:
        """What happened since this was asked last; after the transaction."""
        notes, self._notes = self._notes, OutboxChanges()
        return notes

    # In

    def append(self, records: Sequence[Record], origins: Sequence[int] = ()) -> list[int]:
        """Store records, and what they were made of. Returns: their keys.

        Args:
            origins: signed 64-bit numbers.
        Raises: OutboxError: they are not stored, but what else was done in this transaction stands.
        """
        for record in records:
            if record.size > self._max_bytes // LARGEST:
                raise OutboxError(
                    f"A result of {record.size} bytes is too large for an outbox of {self._max_bytes}",
                    remedy="Raise the outbox's `max_bytes`, or publish less at once.",
                    code="outbox-too-large",
                )
        before, notes, age_s = (list(self.numbers), self.entries), self._notes, self.age_s
        self._notes = OutboxChanges()
        try:
            with self._database.part():
                keys = [self._number(record.priority) for record in records]
                rows = [_row(key, record, age_s) for key, record in zip(keys, records, strict=True)]
                self._database.insert("entry", rows)
                self.entries += len(keys)
                if origins:
                    self._remember(origins)
                self._make_room()
        except BaseException:
            (self.numbers, self.entries), self._notes = before, notes
            raise
        for name in ("gone", "touched", "events"):
            getattr(notes, name).extend(getattr(self._notes, name))
        notes.lost.update(self._notes.lost)
        self._notes = notes
        return keys

    def _remember(self, origins: Sequence[int]) -> None:
        before = self._turns
        self._turns += len(origins)
        self._database.insert("recent", list(enumerate(origins, before)))
        if self._turns // _AT_ONCE > before // _AT_ONCE:
            self._database.rows("DELETE FROM recent WHERE turn < ?", (self._turns - RECENT,))

    def origins(self) -> list[int]:
        """What the last records that were stored were made of, the oldest first."""
        with self._database.reading():
            rows = self._database.rows("SELECT origin FROM recent ORDER BY turn DESC LIMIT ?", (RECENT,))
        return [origin for (origin,) in reversed(rows)]

    def _number(self, priority: int) -> int:
        number = self.numbers[priority]
        self.numbers[priority] = number + 1
        return key_of(priority, number)

    def _make_room(self) -> None:
        """Give up records until the quota holds."""
        while (excess := self._database.used_bytes - self._ceiling) > 0:
            rows = self._when_full == "evict" and self._database.rows(
                "SELECT key, length(payload) + length(properties) + length(topic) FROM entry"
                " WHERE topic <> '' ORDER BY key LIMIT ?",
                (_AT_ONCE,),
            )
            if not rows:
                raise Full(
                    f"The outbox is full: {self._max_bytes} bytes wait for the region",
                    remedy="Look at the link to the region, or raise the outbox's `max_bytes`.",
                )
            sizes = itertools.accumulate(size for _, size in rows)
            enough = next((count for count, size in enumerate(sizes, 1) if size >= excess), len(rows))
            self.lose([key for key, _ in rows[:enough]], "evicted")

    # Out

    def read(self, start: int, end: int, most: int, max_bytes: int) -> list[OutboxEntry]:
        """Entries in the order of their numbers; those whose bytes are not what was written become gaps.

        Args:
            start: key to begin with.
            end: key to stop before.
            most: entries.
            max_bytes: of them; the first comes whatever its size.
        """
        entries: list[OutboxEntry] = []
        corrupt: list[int] = []
        size = 0
        with self._database.reading():
            rows = self._database.rows(
                "SELECT key, last, topic, properties, crc, length(payload) FROM entry WHERE key >= ? AND key < ?"
                " ORDER BY key LIMIT ?",
                (start, end, most),
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
            self.lose(corrupt, "corrupt")
            self._notes.events.append(("outbox-corrupt", {"records": len(corrupt)}))
        return self.read(start, end, most, max_bytes)

    def trim(self, ack: Ack) -> bool:
        """Let go of what the region has.

        Returns: whether the acknowledgement fits. If it speaks of numbers that were never given, an earlier life of
            this store gave them and was lost unseen: a new epoch has begun.
        """
        if ack.epoch != self.epoch:
            return True
        tops = self.tops
        ranges = ack.ranges()
        if any(last >= tops[priority_of(last)] for _, last in ranges):
            self._overtaken()
            return False
        for first, last in ranges:
            self.entries -= self._database.change(
                "DELETE FROM entry WHERE key BETWEEN ? AND ? AND last <= ?", (first, last, last)
            )
            if sequence_of(first) == 0:
                self._cut(first, last)
        return True

    def _cut(self, first: int, last: int) -> None:
        """Shorten a gap that has been declared in part."""
        rows = self._database.rows("SELECT key, last, payload FROM entry WHERE key BETWEEN ? AND ?", (first, last))
        for key, end, body in rows:
            gap = Gap.read(key, end, body)
            declared, reasons = gap.count - (end - last), {}
            for reason, count in gap.reasons.items():
                over = min(count, max(0, declared))
                declared -= over
                reasons[reason] = count - over
            self.entries -= self._database.change("DELETE FROM entry WHERE key = ?", (key,))
            self._declare(
                Gap(last + 1, end, {reason: count for reason, count in reasons.items() if count}, gap.previous)
            )

    def _overtaken(self) -> None:
        previous = PreviousEpoch(self.epoch, tuple(self.numbers))
        self.epoch = os.urandom(8).hex()
        for priority, number in enumerate(self.numbers):
            first, last = key_of(priority, 1), key_of(priority, number) - 1
            rows = self._database.rows("SELECT min(key) FROM entry WHERE key BETWEEN ? AND ?", (first, last))
            begin = last if rows[0][0] is None else rows[0][0] - 1
            if begin >= first:  # the new epoch does not have the numbers below
                self._declare(Gap(first, begin, {}))
        self._end_epoch(previous)

    # Lost

    def expire(self) -> bool:
        """Give up records that are too old. Returns: whether there may be more."""
        rows = self._database.rows(
            "SELECT key FROM entry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (self.age_s, _AT_ONCE)
        )
        self.lose([key for (key,) in rows], "expired")
        return len(rows) == _AT_ONCE

    @property
    def may_expire(self) -> bool:
        """Whether there is anything to expire now."""
        with self._database.reading():
            return bool(self._database.rows("SELECT 1 FROM entry WHERE expires_at <= ? LIMIT 1", (self.age_s,)))

    def lose(self, keys: Iterable[int], reason: str) -> None:
        """Give up records, and declare it."""
        present = [key for key in sorted(keys) if self._is_record(key)]
        if not present:
            return
        for first, last in _runs(present):
            self._declare(Gap(first, last, {reason: last - first + 1}))
        self._notes.gone.extend(present)
        self._notes.lost[reason] += len(present)

    def _is_record(self, key: int) -> bool:
        return bool(self._database.rows("SELECT 1 FROM entry WHERE key = ? AND topic <> ''", (key,)))

    def _declare(self, gap: Gap) -> None:
        """Put a gap in the place of what is there, one with the gaps next to it."""
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
                gap = gap.joined(Gap.read(key, last, body))
                self.entries -= database.change("DELETE FROM entry WHERE key = ?", (key,))
        database.change(
            "INSERT INTO entry VALUES (?, ?, '', '', 0, NULL, 0, x'', ?)", (gap.first, gap.last, gap.body())
        )
        self.entries += 1
        self._notes.touched.append(gap.first)

    # House

    def make_room(self) -> bool:
        """Prepare for writing though the disk is full: with the reserve, and by making do with less than there is.

        Returns: whether it is worth another try.
        """
        self._reserve.release()
        self._database.shorten_log()
        if self._when_full == "refuse":
            return False
        try:
            used = min(self.used_bytes, self._ceiling)
        except OutboxError:
            return False
        if used <= _LEAST_BYTES:
            return False
        if self._ceiling == self._max_bytes:
            remedy = "Make room there. Until then the oldest results of the lowest priority are given up for new ones."
            self._notes.events.append(("outbox-disk-full", {"bytes": used, "remedy": remedy}))
        self._ceiling = used - max(used // 16, PAGE_BYTES)
        return True

    def close(self) -> None:
        """Close it; a store that was closed need not be looked through when it is opened."""
        with contextlib.suppress(OutboxError), self._database.transaction():
            self._database.change("UPDATE state SET clean = 1")
        self.abandon()

    def abandon(self) -> None:
        """Close it as it is."""
        self._database.close()
        self._mark.close()


def _row(key: int, record: Record, age_s: float) -> tuple[Any, ...]:
    expires_at = None if record.ttl_s is None else age_s + record.ttl_s
    crc = _crc(record.topic, record.properties, record.payload)
    about = (record.topic, record.pipeline, record.created_at, expires_at)
    return (key, key, *about, crc, record.properties, record.payload)


def _crc(topic: str, properties: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(properties, zlib.crc32(topic.encode())))


def _runs(keys: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ranges of keys that follow each other."""
    first = last = -1
    for key in keys:
        if key != last + 1:
            if first >= 0:
                yield first, last
            first = key
        last = key
    if first >= 0:
        yield first, last
