"""Decides which records to send next. Pure: no clock, no disk, no link.

Rules:
- The window bounds the records in flight: sent and not acknowledged by the region.
- New records go out at once, ahead of the backlog of an outage, higher priority first. The backlog has a fixed share of the
  window, so neither starves the other. The region's acknowledgements move the window, so the slowest hop sets the rate
  and none has to be configured.
- The path preserves order. If a record sent later is acknowledged, the earlier ones are lost and are resent (as in RFC 9002
  §6.1, with a packet threshold of 1). After a long time without acknowledgement, one record is resent as a probe, whatever
  else is in flight; the reply reveals the state of all others (§6.2). After a reconnect that time is short until the region
  replies: its own subscriptions may have come back later than this link, so the first records may have reached nobody.
- A record that later ones overtake again and again is stuck: no bridge carries it. It leaves the window and is sent at growing
  intervals (`overtaken.py`), so it delays no other.
- Local subscribers do not wait for the region. If the window stays full, new records go out past it, once, and join the
  backlog for the region.
- The region acknowledges on its own schedule unless a record requests it. One does for each half of the new records' and of
  the backlog's part of the window, in entries or bytes, and so do probes; so a window of any size keeps moving.
- A record leaves the window when the region's check proves that it holds this record, and not another of the same number. From
  a region that sends no checks, the number has to do.
- The backlog is on disk; only a cursor per priority is in memory. It skips entries that are in flight or about to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hedgerow.bus.outbox.epochs import EpochSpan, KeyAck
from hedgerow.bus.outbox.overtaken import OvertakenRecords
from hedgerow.bus.outbox.records import PRIORITIES, OutboxEntry, priority_of

_PROBE_TIMEOUT_S: Final = 30.0
_RECONNECT_PROBE_TIMEOUT_S: Final = 1.0
_MAX_PROBE_TIMEOUT_S: Final = 960.0
_MAX_WAITING_WINDOWS: Final = 16
"""New records waiting for a place in the window: at most this many windows of entries, and one window of bytes."""
_STALLED_S: Final = 1.0
"""Longest wait for a place in the window without any acknowledgement."""


def split_window(
    window: int, share: float, *, live: int, backlog: int, live_in_flight: int, backlog_in_flight: int
) -> tuple[int, int]:
    """Return how many new records, and how many of the backlog, to send now.

    Args:
        window: limit on records in flight.
        share: backlog's part of the window, 0 to 1.
        live: new records waiting.
        backlog: backlog records waiting.
        live_in_flight: new records in flight.
        backlog_in_flight: backlog records in flight.
    """
    free = max(0, window - live_in_flight - backlog_in_flight)
    old = min(backlog, free, max(0, _backlog_share(window, share) - backlog_in_flight))
    return min(live, free - old), old


def _backlog_share(window: int, share: float) -> int:
    """Return how many backlog records may be in flight."""
    return max(1, min(int(window * share), window - 1))


class ReadRequest(NamedTuple):
    """Entries to read from the store: keys from `start` up to `end`, exclusive, within limits of number and bytes."""

    start: int
    end: int
    limit: int
    max_bytes: int


class _InFlight(NamedTuple):
    turn: int
    size: int
    live: bool
    wants_ack: bool
    check: int | None  # None: a gap
    length: int  # of the payload


class _SentPast(NamedTuple):
    turn: int
    check: int
    length: int


class Acknowledged(NamedTuple):
    """What an acknowledgement proves.

    Attributes:
        keys: records and gaps that were sent and need not be sent again.
        clash: whether the region has another result under a number of this outbox.
    """

    keys: list[int]
    clash: bool


class SendWindow:
    """Records in flight to the region, and the choice of the next ones.

    Args:
        max_entries: limit on entries in flight.
        max_bytes: limit on bytes in flight; a single entry may exceed it.
        share: backlog's part of the window while there are new records.
    """

    def __init__(self, max_entries: int, max_bytes: int, share: float) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._share = share
        old, old_bytes = _backlog_share(max_entries, share), int(max_bytes * share)
        self._ack_thresholds = (old // 2, old_bytes // 2), ((max_entries - old) // 2, (max_bytes - old_bytes) // 2)
        self.reset([0] * PRIORITIES, [0] * PRIORITIES)

    def reset(self, starts: Sequence[int], next_keys: Sequence[int]) -> None:
        """Start over: everything stored is backlog.

        Args:
            starts: for each priority, a lower bound of its stored keys.
            next_keys: for each priority, the key of its next record.
        """
        self._cursors = list(starts)
        self._next_keys = list(next_keys)
        self._in_flight: dict[int, _InFlight] = {}  # in sending order
        self._live: list[deque[OutboxEntry]] = [deque() for _ in range(PRIORITIES)]
        self._waiting: dict[int, int] = {}  # sizes of the entries in _live, by key
        self._waiting_bytes = 0
        self._bytes = [0, 0]  # in flight: backlog, new
        self._since_ack_request = [(0, 0), (0, 0)]  # backlog, new: entries and bytes since the last ack request
        self._live_in_flight = 0
        self._turn = 0
        self._reading: ReadRequest | None = None
        self._rewound: int | None = None
        self._last_ack_at = self._probed_at = float("-inf")
        self._waiting_since: float | None = None
        self._overtaken = OvertakenRecords()
        self._passed: dict[int, _SentPast] = {}  # sent past a full window
        self._probe: int | None = None
        self._probe_due = False  # to be sent even if the backlog has its full share of the window
        self._probe_timeout_s = _PROBE_TIMEOUT_S

    @property
    def in_flight(self) -> int:
        """Number of entries sent and not acknowledged."""
        return len(self._in_flight)

    @property
    def stuck(self) -> int:
        """Number of records that do not get through although later ones do."""
        return self._overtaken.stuck

    def hopeless(self, now: float) -> list[int]:
        """Return, once, the keys of stuck records that should be given up."""
        return self._overtaken.hopeless(now)

    def wants_ack(self, key: int) -> bool:
        """Whether an entry just sent should request an immediate acknowledgement."""
        sent = self._in_flight.get(key)
        return sent is not None and sent.wants_ack

    @property
    def backlog(self) -> bool:
        """Whether there may be stored entries that are neither new nor in flight."""
        return any(cursor < next_key for cursor, next_key in zip(self._cursors, self._next_keys, strict=True))

    def appended(self, entries: Iterable[OutboxEntry], next_keys: Sequence[int], *, up: bool) -> None:
        """Take in newly stored records.

        Args:
            entries: the records.
            next_keys: the key of the next record of each priority.
            up: whether the link is up; else they become backlog.
        """
        if up:
            for entry in entries:
                priority = priority_of(entry.key)
                if self._cursors[priority] == entry.key:
                    self._cursors[priority] = entry.last + 1  # no backlog precedes it
                self._live[priority].append(entry)
                self._waiting[entry.key] = entry.size
                self._waiting_bytes += entry.size
        self._next_keys = list(next_keys)

    def link_down(self) -> None:
        """Move waiting new records to the backlog."""
        while self._waiting:
            self._to_backlog()

    def link_up(self, now: float) -> None:
        """Probe: the broker may have lost the records in flight. The next record requests an acknowledgement."""
        self._probe_timeout_s = _RECONNECT_PROBE_TIMEOUT_S
        self._since_ack_request = list(self._ack_thresholds)
        for key in self._overtaken.held():  # what did not carry them may have been changed
            self.rewind(key)
        if self._in_flight:
            self._send_probe(now)

    def _send_probe(self, now: float) -> None:
        self._probe = next(iter(self._in_flight))
        self._probe_due = True
        self.resend(self._probe)
        self._probed_at = now

    def _to_backlog(self) -> OutboxEntry:
        """Move the first waiting record to the backlog."""
        entry = self._take_live()
        self.rewind(entry.key)
        return entry

    def _take_live(self) -> OutboxEntry:
        """Remove and return the next waiting record."""
        entry = next(waiting for waiting in reversed(self._live) if waiting).popleft()
        self._waiting_bytes -= self._waiting.pop(entry.key)
        return entry

    def rewind(self, key: int) -> None:
        """Move the cursor back to a key that has to be sent (again)."""
        self._overtaken.release(key)
        priority = priority_of(key)
        self._cursors[priority] = min(self._cursors[priority], key)
        if self._reading is not None and priority_of(self._reading.start) == priority:
            self._rewound = key if self._rewound is None else min(self._rewound, key)

    def discard(self, keys: Iterable[int]) -> None:
        """Drop waiting records that were given up."""
        given_up = set(keys)
        self._overtaken.remove((key, key) for key in given_up)
        lost = self._waiting.keys() & given_up
        if lost:
            self._waiting_bytes -= sum(self._waiting.pop(key) for key in lost)
            self._live = [deque(entry for entry in waiting if entry.key not in lost) for waiting in self._live]

    def next(self, now: float) -> tuple[list[OutboxEntry], ReadRequest | None]:
        """Return the new records to send now, and a request to read from the store for `offer`.

        Args:
            now: monotonic seconds.
        """
        backlog_in_flight = len(self._in_flight) - self._live_in_flight
        live, old = split_window(
            self._max_entries,
            self._share,
            live=len(self._waiting),
            backlog=self._max_entries if self.backlog else 0,
            live_in_flight=self._live_in_flight,
            backlog_in_flight=backlog_in_flight,
        )
        entries: list[OutboxEntry] = []
        while live and sum(self._bytes) < self._max_bytes:
            entry = self._take_live()
            self._mark_sent(entry, now, live=True)
            entries.append(entry)
            live -= 1
        if not self._waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        since = now if self._waiting_since is None else self._waiting_since
        stalled = now - max(self._last_ack_at, since) >= _STALLED_S
        while self._waiting and (
            stalled
            or len(self._waiting) > _MAX_WAITING_WINDOWS * self._max_entries
            or self._waiting_bytes > self._max_bytes
        ):
            entry = self._to_backlog()
            self._turn += 1
            self._passed[entry.key] = _SentPast(self._turn, entry.check, len(entry.payload))
            if len(self._passed) > _MAX_WAITING_WINDOWS * self._max_entries:
                del self._passed[next(iter(self._passed))]
            entries.append(entry)
        max_bytes = min(int(self._max_bytes * self._share) - self._bytes[0], self._max_bytes - sum(self._bytes))
        if not old or (max_bytes <= 0 and backlog_in_flight):
            old = int(self._probe_due and self.backlog)
        if self._reading is not None or not old:
            return entries, None
        priority = max(p for p in range(PRIORITIES) if self._cursors[p] < self._next_keys[p])
        self._reading = ReadRequest(self._cursors[priority], self._next_keys[priority], old, max(0, max_bytes))
        self._rewound = None
        return entries, self._reading

    def offer(self, request: ReadRequest, entries: Sequence[OutboxEntry] | None, now: float) -> list[OutboxEntry]:
        """Take in entries that were read; None: reading failed. Returns: those to send."""
        if request is not self._reading:
            return []  # requested before a reset
        self._reading = None
        if entries is None:
            return []
        chosen = [
            entry
            for entry in entries
            if entry.key not in self._in_flight
            and entry.key not in self._waiting
            and not self._overtaken.holds(entry.key)
        ]
        for entry in chosen:
            self._mark_sent(entry, now, live=False)
        reached = entries[-1].last + 1 if entries else request.end
        if self._rewound is not None:
            reached = min(reached, self._rewound)
        self._cursors[priority_of(request.start)] = reached
        return chosen

    def _mark_sent(self, entry: OutboxEntry, now: float, *, live: bool) -> None:
        if not self._in_flight:
            self._last_ack_at = now
        if self._probe_due:  # whichever goes first tells as much
            self._probe, self._probe_due = entry.key, False
        self._turn += 1
        entries, size = self._since_ack_request[live]
        entries, size = entries + 1, size + entry.size
        max_entries, max_bytes = self._ack_thresholds[live]
        wants_ack = entries >= max_entries or size >= max_bytes or entry.key == self._probe
        self._since_ack_request[live] = (0, 0) if wants_ack else (entries, size)
        self._in_flight[entry.key] = _InFlight(
            self._turn,
            entry.size,
            live,
            wants_ack,
            entry.check if entry.topic else None,
            len(entry.payload),
        )
        self._bytes[live] += entry.size
        self._live_in_flight += live

    def _remove(self, key: int) -> _InFlight:
        was = self._in_flight.pop(key)
        self._bytes[was.live] -= was.size
        self._live_in_flight -= was.live
        return was

    def acked(self, ack: KeyAck, now: float, span: EpochSpan | None = None) -> Acknowledged:
        """Remove acknowledged entries, and resend those of the same epoch that were lost before them.

        Args:
            ack: the acknowledgement.
            now: monotonic seconds.
            span: its epoch; None: all entries belong to it.
        """
        keys, clash = self._proven(ack)
        self._overtaken.remove(ack.ranges if ack.held is None else ((key, key) for key in keys))
        latest = 0
        for key in keys:
            passed = self._passed.pop(key, None)
            if passed is not None:
                latest = max(latest, passed.turn)
            if key in self._in_flight:
                latest = max(latest, self._remove(key).turn)
        if latest:
            self._last_ack_at, self._probe_timeout_s, self._probe_due = now, _PROBE_TIMEOUT_S, False
            self._resend_lost(latest, now, span)
        return Acknowledged(keys, clash)

    def _proven(self, ack: KeyAck) -> Acknowledged:
        """Return the entries that the region has, of those that were sent."""
        keys = []
        for first, last in ack.ranges:
            sent = self._between(first, last, self._in_flight)
            if ack.held is None:
                keys += sent + [key for key in self._between(first, last, self._passed) if key not in self._in_flight]
            else:
                keys += [key for key in sent if self._in_flight[key].check is None]
        clash = False
        for key, check in ack.held or ():
            sent_as = self._in_flight.get(key) or self._passed.get(key)
            if sent_as is None or sent_as.check is None:
                continue
            # One that was rejected unread is this one only if it is as large; another outbox may use the number too.
            is_unread = check is None and (ack.unread is None or (key, sent_as.length) in ack.unread)
            if check == sent_as.check or is_unread:
                keys.append(key)
            else:
                clash = True
        return Acknowledged(keys, clash)

    @staticmethod
    def _between(first: int, last: int, sent: Mapping[int, Any]) -> list[int]:
        if last - first < len(sent):
            return [key for key in range(first, last + 1) if key in sent]
        return [key for key in sent if first <= key <= last]

    def _resend_lost(self, latest: int, now: float, span: EpochSpan | None) -> None:
        """Resend what was sent before an entry that has arrived; each epoch is acknowledged on its own."""
        lost = []
        for key, was in self._in_flight.items():
            if was.turn > latest:
                break
            if span is None or span.has(key):
                lost.append(key)
        for key in lost:
            if self._overtaken.add(key, now):
                self._remove(key)
            else:
                self.resend(key)

    def resend(self, key: int) -> None:
        """Resend an entry that is in flight, in its place."""
        if key in self._in_flight:
            self._remove(key)
            self.rewind(key)

    def probe(self, now: float) -> bool:
        """Resend stuck entries whose pause is over, and one if no acknowledgement arrived in time. Returns: whether the latter."""
        for key in self._overtaken.due(now):
            self.rewind(key)
        if not self._in_flight or now - max(self._last_ack_at, self._probed_at) < self._probe_timeout_s:
            return False
        self._send_probe(now)
        self._probe_timeout_s = min(2 * self._probe_timeout_s, _MAX_PROBE_TIMEOUT_S)
        return True
