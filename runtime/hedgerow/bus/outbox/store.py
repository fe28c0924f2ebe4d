"""Numbered records and gaps on disk, until the region acknowledges them.

Rules:
- Every change is part of a `transaction`, and is on disk (fsync) when that ends.
- A number is assigned once: the first record of a run begins an epoch that no other run, of this file or of a copy, has. A
  record is deleted when it is acknowledged; if it is lost in any other way, a gap takes its place. Adjacent gaps of one epoch
  are merged, so there are never more gaps than records (plus one per priority and epoch).
- The store uses neither wall clock nor network: time is an age (see `mark`).

Single-threaded: used only by the writer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from hedgerow.bus.outbox.database import PAGE_BYTES, Damaged, OutboxDatabase, set_aside
from hedgerow.bus.outbox.epochs import MAX_FORMER, Epochs, EpochSpan, FormerEpoch, KeyAck, new_epoch
from hedgerow.bus.outbox.kept import NOTHING, KeepLimits, KeptEntries, KeptRange
from hedgerow.bus.outbox.mark import RESERVE_BYTES, Boot, Mark, Reserve
from hedgerow.bus.outbox.records import (
    PRIORITIES,
    Ack,
    Gap,
    OutboxEntry,
    OutboxError,
    PreviousEpoch,
    Record,
    StorePosition,
    key_of,
    priority_of,
    record_check,
    sender_id,
    sequence_of,
)

_FIRST: Final = (1,) * PRIORITIES
_BATCH: Final = 1000
"""Limit on records expired or evicted by one query."""
_MIN_BYTES: Final = 1 << 18
"""On a full disk, eviction stops at this size."""
MAX_RECORD_FRACTION: Final = 4
"""A record may take at most a quarter of the quota: `max_bytes // 4`."""
MAX_KEPT_FRACTION: Final = 4
"""What is acknowledged may take at most a quarter of the quota, and makes room for what waits."""
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
        rewound: keys from which on entries are to be sent again: gaps that are new or have grown, and what waits again.
        lost: records lost, by reason.
        events: for operators.
        renumbered: whether stored entries belong to another epoch now.
    """

    given_up: list[int] = field(default_factory=list)
    rewound: list[int] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    renumbered: bool = False

    def copy(self) -> OutboxChanges:
        """Return an independent copy."""
        given_up, rewound, events = list(self.given_up), list(self.rewound), [*self.events]
        return OutboxChanges(given_up, rewound, self.lost.copy(), events, self.renumbered)


class MachineAndKey(NamedTuple):
    """Where an outbox runs: fingerprints of the machine and of the node's key; "" if unknown."""

    machine: str = ""
    identity: str = ""


NOWHERE: Final = MachineAndKey()
"""Of an outbox whose machine and key are not known."""


class OutboxStore:
    """The outbox's database of one node.

    Args:
        path: its file; `PATH-wal`, `PATH.mark` and `PATH.reserve` are created beside it.
        max_bytes: quota for the database's pages, without its write-ahead log (4 MB).
        when_full: evict the oldest records of the lowest priority, or refuse new ones.
        boot: returns the time since boot.
        runs_on: where this run is; a change since the last one is reported.
        keep: how long what is acknowledged is kept, in case the region's store is put back.
    Raises: OutboxError: it cannot be opened. A damaged file is set aside instead.
    Attributes:
        epoch: of this run's numbers; "" until it has assigned one.
        epochs: of all stored entries.
        numbers: the next sequence of each priority.
        moved: what of `runs_on` has changed since the last run: machine, key.
        entries: number of records and gaps that wait.
        stores: stores of the region, with the positions that each has lost.
        region: what is known of the region's store.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        when_full: Literal["evict", "refuse"] = "evict",
        boot: Callable[[], Boot] = Boot.now,
        runs_on: MachineAndKey = NOWHERE,
        keep: KeepLimits = NOTHING,
    ) -> None:
        self.path = path
        self._keep = keep._replace(max_bytes=min(keep.max_bytes, max_bytes // MAX_KEPT_FRACTION))
        self.epoch, self.epochs = "", Epochs()
        self.numbers = list(_FIRST)
        self.moved: list[str] = []
        self._runs_on = runs_on
        self._max_bytes = max_bytes
        self._ceiling = max_bytes  # lowered while the disk is full
        self._when_full = when_full
        self._boot = boot
        self._changes = OutboxChanges()
        self.entries = 0
        self._dropped = False  # something that was kept: epochs may be done with
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
        self._kept = KeptEntries(database, self._keep)
        try:
            self._mark = Mark(path.with_name(path.name + ".mark"))
        except OSError as error:
            database.close()
            raise OutboxError(
                f"Cannot write {path}.mark: {error}", remedy="Check the folder's permissions and the disk."
            ) from error
        self._reserve = Reserve(path.with_name(path.name + ".reserve"), min(RESERVE_BYTES, max_bytes // 8))
        self._load(damaged)
        database.truncate_log()  # so that losing its end loses at most numbers of this run, which the mark knows
        self._reserve.fill()

    def _open(self) -> OutboxDatabase:
        database = OutboxDatabase(self.path)
        try:
            with database.reading():
                if not database.rows("SELECT 1 FROM state WHERE clean"):
                    database.check()
                self._state = database.rows("SELECT epoch, numbers, age_s, boot, boot_s, machine, identity FROM state")
                self._stored_spans = [
                    _span(*row) for row in database.rows("SELECT epoch, bases, ends, former FROM epoch ORDER BY turn")
                ]
                self.entries = count_waiting(database)
                kept = KeptEntries(database, self._keep)
                self.stores, self.region = kept.stores(), kept.known()
                self._turns = int(database.value("SELECT coalesce(max(turn), 0) + 1 FROM recent"))
        except OutboxError:
            database.close()
            raise
        return database

    def _load(self, damaged: bool) -> None:
        now = self._boot()
        if self._state:
            last, numbers, age_s, *boot, machine, identity = self._state[0]
            self.numbers = [int(number) for number in json.loads(numbers)]
            self._opened, self._age_s = now, age_s + now.since(Boot(*boot))
            self.epochs = Epochs(self._stored_spans)
            with self.transaction():
                self._declare_torn(last)
                self._end_epochs()
                self._notice_move(MachineAndKey(machine, identity))
            return
        self._opened, self._age_s = now, 0.0
        self._changes.renumbered = True  # whatever was stored before is not there any more
        with self.transaction():
            self._database.change(
                "INSERT INTO state VALUES (1, '', '', 0, '', 0, 0, ?, ?)",
                (self._runs_on.machine, self._runs_on.identity),
            )
            if self._mark.epoch:
                self._declare_epoch_end(PreviousEpoch(self._mark.epoch, self._mark.numbers))
            elif damaged:
                self._declare_epoch_end(PreviousEpoch(None, None))

    def _notice_move(self, before: MachineAndKey) -> None:
        """Report that the file was moved: to another machine, or to a node with another key. It may as well be a copy."""
        now = self._runs_on
        pairs = (("machine", before.machine, now.machine), ("key", before.identity, now.identity))
        self.moved = [name for name, old, new in pairs if old and new and old != new]
        if self.moved:
            remedy = (
                "Nothing to do if you moved or restored the node: this run numbers its results anew, and none is lost. If "
                "it is a copy of a node that still runs, give it a name of its own."
            )
            self._changes.events.append(("outbox-moved", {"changed": self.moved, "remedy": remedy}))
        if now != before:
            self._database.change(
                "UPDATE state SET machine = ?, identity = ?",
                (now.machine or before.machine, now.identity or before.identity),
            )

    def _declare_torn(self, last: str) -> None:
        """Declare numbers that were assigned but are missing from a database that lost its end.

        Args:
            last: the epoch of its last run that assigned numbers.
        """
        mark = self._mark
        span = self.epochs.named(mark.epoch)
        if span is None or span.ends is not None:
            if mark.epoch and mark.epoch != last and span is None and mark.numbers != _FIRST:
                self._declare_epoch_end(PreviousEpoch(mark.epoch, mark.numbers))
            return
        torn = 0
        for priority, (stored, assigned) in enumerate(zip(self.numbers, mark.numbers, strict=True)):
            assigned += span.bases[priority]
            if assigned > stored:
                self._declare_gap(
                    Gap(key_of(priority, stored), key_of(priority, assigned - 1), {"torn": assigned - stored})
                )
                torn += assigned - stored
                self.numbers[priority] = assigned
        if torn:
            self._changes.lost["torn"] += torn
            self._changes.events.append(("outbox-numbers-lost", {"epoch": mark.epoch, "records": torn}))

    def _end_epochs(self) -> None:
        """End the last run's epoch, and forget those of which nothing waits."""
        for span in self.epochs.spans:
            if span.ends is None and span.epoch != self.epoch:
                self._save_span(span, span.ended(self.numbers))
        for span in self.epochs.spans:
            self._forget_if_done(span)

    def _begin_epoch(self) -> None:
        """Begin the epoch of this run."""
        span = EpochSpan(new_epoch(), tuple(number - 1 for number in self.numbers))
        self.epoch = span.epoch
        self._database.change(
            "INSERT INTO epoch (epoch, bases, former) VALUES (?, ?, '[]')", (span.epoch, json.dumps(span.bases))
        )
        self.epochs = Epochs([*self.epochs.spans, span])

    def _save_span(self, old: EpochSpan, new: EpochSpan) -> None:
        ends = None if new.ends is None else json.dumps(new.ends)
        self._database.change(
            "UPDATE epoch SET epoch = ?, bases = ?, ends = ?, former = ? WHERE epoch = ?",
            (new.epoch, json.dumps(new.bases), ends, json.dumps(new.former), old.epoch),
        )
        self.epochs = self.epochs.replaced(old, new)

    def _forget_if_done(self, span: EpochSpan) -> None:
        """Forget an ended epoch of which nothing waits or is kept; of the last one, the next one still tells that it has ended."""
        if span.ends is None or any(self._waits(first, last) for first, last in _key_ranges(span)):
            return
        ended = [one for one in self.epochs.spans if one.ends is not None]
        if span is ended[-1] or any(self._kept.has(first, last) for first, last in _key_ranges(span)):
            if not span.is_done:
                self.epochs = self.epochs.replaced(span, replace(span, is_done=True))
            return
        self._database.change("DELETE FROM epoch WHERE epoch = ?", (span.epoch,))
        self.epochs = self.epochs.replaced(span, None)

    def _waits(self, first: int, last: int) -> bool:
        return any(
            self._database.rows("SELECT 1 FROM entry WHERE key >= ? AND key < ? LIMIT 1", part)
            for part in self._kept.waiting(first, last + 1)
        )

    def _declare_epoch_end(self, previous: PreviousEpoch, kind: str = "outbox-epoch-lost", **more: Any) -> None:
        """Declare the end of an earlier epoch, under the next number of the highest priority."""
        key = self._assign_key(PRIORITIES - 1)
        self._declare_gap(Gap(key, key, {}, (previous,)))
        detail = {"epoch": self.epoch, "previous": previous.epoch, "numbers": previous.numbers, **more}
        self._changes.events.append((kind, detail))

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
        before = self.epoch, self.epochs, list(self.numbers), self.entries
        learned = self.stores, self.region
        saved = self._changes.copy()
        try:
            with self._database.transaction():
                yield
                now = self._boot()
                self._database.change(
                    "UPDATE state SET epoch = ifnull(nullif(?, ''), epoch), numbers = ?, age_s = ?, boot = ?, boot_s = ?, clean = 0",
                    (self.epoch, json.dumps(self.numbers), self._age_s + now.since(self._opened), *now),
                )
        except BaseException:
            (self.epoch, self.epochs, self.numbers, self.entries), self._changes = before, saved
            self.stores, self.region = learned
            raise
        if self.epoch:
            bases = self.epochs.spans[-1].bases
            with contextlib.suppress(OSError):  # works on a full disk too: the file has its final size
                self._mark.write(self.epoch, [number - base for number, base in zip(self.numbers, bases, strict=True)])
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
        checks = [record.check for record in records]
        before = self.epoch, self.epochs, list(self.numbers), self.entries
        changes, age_s = self._changes, self.age_s
        self._changes = OutboxChanges()
        try:
            with self._database.part():
                keys = [self._assign_key(record.priority) for record in records]
                rows = [
                    _row(key, record, age_s, check) for key, record, check in zip(keys, records, checks, strict=True)
                ]
                self._database.insert("entry", rows)
                self.entries += len(keys)
                if origins:
                    self._remember(origins)
                self._enforce_quota()
        except BaseException:
            (self.epoch, self.epochs, self.numbers, self.entries), self._changes = before, changes
            raise
        for name in ("given_up", "rewound", "events"):
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
        if not self.epoch:
            self._begin_epoch()
        number = self.numbers[priority]
        self.numbers[priority] = number + 1
        return key_of(priority, number)

    def _enforce_quota(self) -> None:
        """Evict records until the quota is met."""
        while (excess := self._database.used_bytes - self._ceiling) > 0:
            if self._kept.drop_oldest():
                self._dropped = True
                continue
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
            for key, last, topic, properties, crc, length in self._heads(start, end, limit):
                size += length
                if entries and size > max_bytes:
                    break
                payload = self._database.value("SELECT payload FROM entry WHERE key = ?", (key,))
                check = record_check(sender_id(properties), payload) if topic else 0
                if topic and crc not in (_crc(topic, properties, check), _former_crc(topic, properties, payload)):
                    corrupt.append(key)
                else:
                    entries.append(OutboxEntry(key, last, topic, properties, payload, check))
        if not corrupt:
            return entries
        with self.transaction():
            self.give_up(corrupt, "corrupt")
            self._changes.events.append(("outbox-corrupt", {"records": len(corrupt)}))
        return self.read(start, end, limit, max_bytes)

    def _heads(self, start: int, end: int, limit: int) -> Iterator[tuple[Any, ...]]:
        """Yield the first entries that wait, without their payloads."""
        for part in self._kept.waiting(start, end):
            rows = self._database.rows(
                "SELECT key, last, topic, properties, crc, length(payload) FROM entry WHERE key >= ? AND key < ?"
                " ORDER BY key LIMIT ?",
                (*part, limit),
            )
            yield from rows
            limit -= len(rows)
            if limit <= 0:
                return

    def acknowledge(self, ack: Ack) -> bool:
        """Apply an acknowledgement that tells numbers only; see `trim`. Returns: False if a new epoch had to begin."""
        span = self.epochs.named(ack.epoch)
        if span is None:
            return True
        acked = span.translated(ack, self.numbers)
        if acked.beyond and span.ends is None:
            self.leave_epoch(span.epoch, "unassigned")
            return False
        self.trim(span.epoch, acked)
        return True

    def trim(self, epoch: str, acked: KeyAck, records: Sequence[int] = (), at: StorePosition | None = None) -> None:
        """Delete acknowledged entries, or keep them for a while.

        Args:
            epoch: of the acknowledgement.
            acked: its ranges. If it does not tell what the region holds, they delete records too.
            records: keys of the records that the region holds.
            at: when the region's store had them; None: it does not tell, so they are not kept.
        """
        span = self.epochs.named(epoch)
        if span is None:
            return
        if at is not None and any(first < at.position <= last for first, last in self.stores.get(at.store, ())):
            self._changes.rewound.extend(records)  # the store has been put back since to a time before
            return
        keep_at = at if self._keep.are_set else None
        for first, last in acked.ranges:
            if acked.held is None:
                for part in self._kept.waiting(first, last + 1):
                    self.entries -= self._database.change(
                        "DELETE FROM entry WHERE key >= ? AND key < ? AND last <= ?", (*part, last)
                    )
            else:  # records are proven one by one
                self._trim_gaps(first, last, keep_at)
            self._shorten_gaps(first, last)
        for first, last in _runs(sorted(records)):
            for start, end in self._kept.waiting(first, last + 1):
                self.entries -= self._trim_records(start, end - 1, keep_at, span)
        if keep_at is not None:
            self._dropped |= self._kept.drop_excess()
        elif at is not None:
            self._kept.note_dropped(at.store, at.position)
        self._forget_if_done(span)

    def _trim_records(self, first: int, last: int, keep_at: StorePosition | None, span: EpochSpan) -> int:
        if keep_at is not None:
            priority = priority_of(first)
            lowest = key_of(priority, span.bases[priority] + 1)
            return self._kept.keep(first, last, keep_at, self.age_s, lowest)
        return self._database.change("DELETE FROM entry WHERE key BETWEEN ? AND ? AND topic <> ''", (first, last))

    def _trim_gaps(self, first: int, last: int, keep_at: StorePosition | None) -> None:
        rows = self._database.rows(
            "SELECT key, last, payload FROM entry WHERE topic = '' AND key BETWEEN ? AND ? AND last <= ?",
            (first, last, last),
        )
        for key, end, body in rows:
            if keep_at is not None:
                self._kept.keep_gap(Gap.read(key, end, body), keep_at, self.age_s)
            self.entries -= self._database.change("DELETE FROM entry WHERE key = ?", (key,))

    # What the region's store has lost

    def learn(self, of: StorePosition) -> None:
        """Note what the region says of its store. What that has lost and is kept here waits again."""
        learned = self._kept.learn(of)
        self.stores, self.region = self._kept.stores(), self._kept.known()
        if learned is None:
            return
        ranges, gaps, incomplete = learned
        results = self._wait_again(ranges, gaps)
        self._kept.note_resent(of.store, results)
        self.region = self._kept.known()
        if results or incomplete:
            remedy = (
                "None. The region's store is as of an earlier time, or another one: what it had acknowledged and has lost is sent again."
                if not incomplete
                else "Some of what it had acknowledged and has lost is not here any more: see `outbox: {keep_acknowledged_s, "
                "keep_acknowledged_bytes}`."
            )
            self._changes.events.append(
                ("region-restored", {"results": results, "complete": not incomplete, "remedy": remedy})
            )

    def _wait_again(self, ranges: Sequence[KeptRange], gaps: Sequence[Gap]) -> int:
        """Have entries wait that were kept. Returns: how many records."""
        results = 0
        for first, last in ranges:
            keys = [
                key for (key,) in self._database.rows("SELECT key FROM entry WHERE key BETWEEN ? AND ?", (first, last))
            ]
            self.entries += len(keys)
            results += len(keys)
            self._changes.rewound.append(first)
            for before, after in itertools.pairwise([first - 1, *keys, last + 1]):
                if after > before + 1:  # they have expired meanwhile
                    self._declare_gap(Gap(before + 1, after - 1, {"expired": after - before - 1}))
        for span in [one for one in self.epochs.spans if one.is_done]:
            if any(self._waits(first, last) for first, last in _key_ranges(span)):
                self.epochs = self.epochs.replaced(span, replace(span, is_done=False))
        for gap in gaps:
            self._declare_gap(gap)
        return results

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is acknowledged and kept."""
        with self._database.reading():
            return self._kept.used_bytes

    def _shorten_gaps(self, first: int, last: int) -> None:
        """Shorten gaps of which the region has the first part."""
        rows = self._database.rows(
            "SELECT key, last, payload FROM entry WHERE topic = '' AND key BETWEEN ? AND ? AND last > ?",
            (first, last, last),
        )
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

    def leave_epoch(self, epoch: str, why: str) -> None:
        """Number what waits of an epoch anew: another outbox uses it too.

        Args:
            epoch: its id; nothing happens if nothing waits in it and it has ended.
            why: `unassigned`: the region has received numbers that this outbox did not assign; `another-result`: it has
                other results under its numbers.
        """
        span = self.epochs.named(epoch)
        if span is None:
            return
        full = span.ended(self.numbers)
        assert full.ends is not None  # noqa: S101 - it has ended now
        for first, last in _key_ranges(
            full
        ):  # the region knows them by their former number, and does not store them twice
            self._wait_again(*self._kept.take(first, last))
        span = self.epochs.named(epoch) or span
        previous = PreviousEpoch(
            epoch, tuple(end - base + 1 for base, end in zip(full.bases, full.ends, strict=True)), moved=True
        )
        bases, ends, holes = list(full.ends), list(full.ends), []
        for priority, (lowest, highest) in enumerate(_key_ranges(full)):
            rows = self._database.rows(
                "SELECT key, last FROM entry WHERE key BETWEEN ? AND ? ORDER BY key", (lowest, highest)
            )
            for (_, before), (key, _) in itertools.pairwise(rows):
                if key > before + 1:
                    holes.append((before + 1, key - 1))
            if rows:
                bases[priority], ends[priority] = sequence_of(rows[0][0]) - 1, sequence_of(rows[-1][1])
                if span.ends is None and ends[priority] < full.ends[priority]:
                    holes.append((rows[-1][1] + 1, highest))
        former = (FormerEpoch(epoch, full.bases, full.ends), *span.former)[:MAX_FORMER]
        new = EpochSpan(new_epoch(), tuple(bases), None if span.ends is None else tuple(ends), former)
        self._save_span(span, new)
        if self.epoch == epoch:
            self.epoch = new.epoch
        for first, last in holes:  # they were acknowledged before, and are not part of the new epoch
            self._declare_gap(Gap(first, last, {}))
        self._forget_if_done(new)
        self._changes.renumbered = True
        remedy = (
            "Nothing is lost. Find the other outbox: a copy of this machine that runs too? Give it a name of its own. See "
            "`hedgerow region status`."
        )
        self._declare_epoch_end(previous, "outbox-clash", why=why, remedy=remedy)

    # Losing records

    def expire(self) -> bool:
        """Give up expired records, and drop what was kept for long enough. Returns: whether there may be more."""
        if self._kept.drop_outlived(self.age_s):
            self._dropped = True
        if self._dropped:
            self._dropped = False
            for span in [one for one in self.epochs.spans if one.is_done]:
                self._forget_if_done(span)
        rows = self._database.rows(
            "SELECT key FROM entry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (self.age_s, _BATCH)
        )
        kept = [key for (key,) in rows if self._kept.has(key, key)]
        self._database.delete("entry", kept)
        self.give_up([key for (key,) in rows], "expired")
        return len(rows) == _BATCH

    @property
    def has_expired(self) -> bool:
        """Whether any record has expired, or was kept for long enough."""
        with self._database.reading():
            return self._kept.has_outlived(self.age_s) or bool(
                self._database.rows("SELECT 1 FROM entry WHERE expires_at <= ? LIMIT 1", (self.age_s,))
            )

    def is_of(self, key: int, epoch: str) -> bool:
        """Whether a key belongs to an epoch."""
        span = self.epochs.named(epoch)
        return span is not None and span.has(key)

    def give_up(self, keys: Iterable[int], reason: str) -> None:
        """Give up records and declare a gap for them."""
        present = [key for key in sorted(keys) if self._is_record(key)]
        if not present:
            return
        for first, last in self._runs_by_epoch(present):
            self._declare_gap(Gap(first, last, {reason: last - first + 1}))
        self._changes.given_up.extend(present)
        self._changes.lost[reason] += len(present)

    def _runs_by_epoch(self, keys: Sequence[int]) -> Iterator[tuple[int, int]]:
        for _, part in itertools.groupby(keys, self.epochs.of):
            yield from _runs(part)

    def _is_record(self, key: int) -> bool:
        found = self._database.rows("SELECT 1 FROM entry WHERE key = ? AND topic <> ''", (key,))
        return bool(found) and not self._kept.has(key, key)

    def _declare_gap(self, gap: Gap) -> None:
        """Replace entries by a gap, merged with adjacent gaps."""
        database = self._database
        self.entries -= database.change("DELETE FROM entry WHERE key BETWEEN ? AND ?", (gap.first, gap.last))
        priority, span = priority_of(gap.first), self.epochs.of(gap.first)
        lowest = key_of(priority, span.bases[priority] + 1)
        beyond = key_of(priority + 1, 0) if span.ends is None else key_of(priority, span.ends[priority] + 1)
        columns = "SELECT key, last, topic, CASE topic WHEN '' THEN payload END FROM entry"
        beside = database.rows(
            f"{columns} WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT 1", (lowest, gap.first)
        ) + database.rows(f"{columns} WHERE key > ? AND key < ? ORDER BY key LIMIT 1", (gap.last, beyond))
        for key, last, topic, body in beside:
            if not topic:
                gap = gap.merged(Gap.read(key, last, body))
                self.entries -= database.change("DELETE FROM entry WHERE key = ?", (key,))
        database.change(
            "INSERT INTO entry VALUES (?, ?, '', '', 0, NULL, 0, x'', ?)", (gap.first, gap.last, gap.body())
        )
        self.entries += 1
        self._changes.rewound.append(gap.first)

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


def count_waiting(database: OutboxDatabase) -> int:
    """Return how many entries of a file wait."""
    parts = KeptEntries(database, NOTHING).waiting(0, key_of(PRIORITIES, 0))
    return sum(int(database.value("SELECT count(*) FROM entry WHERE key >= ? AND key < ?", part)) for part in parts)


def _row(key: int, record: Record, age_s: float, check: int) -> tuple[Any, ...]:
    expires_at = None if record.ttl_s is None else age_s + record.ttl_s
    crc = _crc(record.topic, record.properties, check)
    about = (record.topic, record.pipeline, record.created_at, expires_at)
    return (key, key, *about, crc, record.properties, record.payload)


def _crc(topic: str, properties: bytes, check: int) -> int:
    """Return the checksum of a record; its payload is part of `record_check`."""
    return zlib.crc32(check.to_bytes(8, "little", signed=True), zlib.crc32(properties, zlib.crc32(topic.encode())))


def _former_crc(topic: str, properties: bytes, payload: bytes) -> int:
    """Return the checksum that files of format 1 have."""
    return zlib.crc32(payload, zlib.crc32(properties, zlib.crc32(topic.encode())))


def _span(epoch: str, bases: str, ends: str | None, former: str) -> EpochSpan:
    """Decode a row of the table `epoch`."""
    earlier = tuple(FormerEpoch(name, tuple(low), tuple(high)) for name, low, high in json.loads(former))
    return EpochSpan(epoch, tuple(json.loads(bases)), None if ends is None else tuple(json.loads(ends)), earlier)


def _key_ranges(span: EpochSpan) -> list[tuple[int, int]]:
    """Return the first and last key of each priority of an ended epoch; the last is lower if it has none."""
    assert span.ends is not None  # noqa: S101 - the caller's part
    pairs = enumerate(zip(span.bases, span.ends, strict=True))
    return [(key_of(priority, base + 1), key_of(priority, end)) for priority, (base, end) in pairs]


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
