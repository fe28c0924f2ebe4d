"""What to send next. Pure: no clock, no disk, no link.

Rules:
- No more is under way than the window takes: sent, and not acknowledged by the region.
- New records go at once, ahead of what waits from an outage; the higher priority first. The backlog has a share of the
  window, and no more than that: so each finds room at once, whatever the other does. What the window lets through is set
  by the region's acknowledgements, so the pace is that of the slowest part of the way, without a rate to configure.
- The way keeps the order. If something is acknowledged that was sent later, what was sent earlier is lost and is sent
  again (as in RFC 9002 §6.1, with a packet threshold of 1). If nothing is acknowledged for long, one is sent again, as a
  probe: the answer tells about all the others (§6.2).
- Those who look on at the site do not wait for the region. If the window is full and stays so, what is new goes out past it,
  once, and is backlog for the region.
- The region answers in its own time, unless it is asked to answer at once. One is asked with each half of what either may
  have under way, in entries or bytes, and with what is sent again to learn what came: so a window of any size moves on.
- The backlog is on the disk, only its place is known here: a cursor for each priority. What is under way or about to be
  is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hedgerow.bus.outbox.records import PRIORITIES, Ack, OutboxEntry, priority_of

_PATIENCE_S: Final = 30.0
_MOST_PATIENCE_S: Final = 960.0
_WAITING: Final = 16
"""New records may wait for room, as many as so many windows, or the bytes of one;"""
_SILENT_S: Final = 1.0
"""and no longer than this without hearing anything."""


def share_out(
    window: int, share: float, *, live: int, backlog: int, live_under_way: int, backlog_under_way: int
) -> tuple[int, int]:
    """How many new records and how many of the backlog to send now.

    Args:
        window: most that may be under way.
        share: part of it for the backlog, 0 to 1.
        live: new records that wait.
        backlog: others that wait.
        live_under_way: new ones sent and not acknowledged.
        backlog_under_way: others sent and not acknowledged.
    """
    free = max(0, window - live_under_way - backlog_under_way)
    kept = min(backlog, free, max(0, _entitled(window, share) - backlog_under_way))
    return min(live, free - kept), kept


def _entitled(window: int, share: float) -> int:
    """How many of the backlog may be under way."""
    return max(1, min(int(window * share), window - 1))


class ReadRequest(NamedTuple):
    """Entries to be read from the store: from a key, before a key, at most so many, of at most so many bytes."""

    start: int
    end: int
    most: int
    max_bytes: int


class _UnderWay(NamedTuple):
    turn: int
    size: int
    live: bool
    asks: bool


class SendWindow:
    """What is under way to the region, and what goes next.

    Args:
        most: entries under way.
        max_bytes: of them; one goes whatever its size.
        share: of the backlog, while there are new records.
    """

    def __init__(self, most: int, max_bytes: int, share: float) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._share = share
        kept, kept_bytes = _entitled(most, share), int(max_bytes * share)
        self._halves = (kept // 2, kept_bytes // 2), ((most - kept) // 2, (max_bytes - kept_bytes) // 2)
        self.begin([0] * PRIORITIES, [0] * PRIORITIES)

    def begin(self, starts: Sequence[int], tops: Sequence[int]) -> None:
        """Begin anew: all that is stored is backlog.

        Args:
            starts: for each priority, a key that nothing stored is below.
            tops: the key of its next record.
        """
        self._cursors = list(starts)
        self._tops = list(tops)
        self._under_way: dict[int, _UnderWay] = {}  # in the order of their turns
        self._live: list[deque[OutboxEntry]] = [deque() for _ in range(PRIORITIES)]
        self._waiting: dict[int, int] = {}  # size by key of those in _live
        self._waiting_bytes = 0
        self._bytes = [0, 0]  # of the backlog, of what is new
        self._unasked = [(0, 0), (0, 0)]  # entries and bytes of either since the region was last asked to answer
        self._live_under_way = 0
        self._turn = 0
        self._reading: ReadRequest | None = None
        self._rewound: int | None = None
        self._heard_at = self._asked_at = float("-inf")
        self._waits_since: float | None = None
        self._probe: int | None = None
        self._patience_s = _PATIENCE_S

    @property
    def under_way(self) -> int:
        """Entries sent and not acknowledged."""
        return len(self._under_way)

    def asks(self, key: int) -> bool:
        """Whether what was just sent is to ask the region to answer at once."""
        sent = self._under_way.get(key)
        return sent is not None and sent.asks

    @property
    def backlog(self) -> bool:
        """Whether there may be something that is neither new nor under way."""
        return any(cursor < top for cursor, top in zip(self._cursors, self._tops, strict=True))

    def appended(self, entries: Iterable[OutboxEntry], tops: Sequence[int], *, up: bool) -> None:
        """New records are stored.

        Args:
            tops: the key of the next record of each priority.
            up: whether they can be sent now; else they are backlog.
        """
        if up:
            for entry in entries:
                priority = priority_of(entry.key)
                if self._cursors[priority] == entry.key:
                    self._cursors[priority] = entry.last + 1  # nothing of the backlog is before it
                self._live[priority].append(entry)
                self._waiting[entry.key] = entry.size
                self._waiting_bytes += entry.size
        self._tops = list(tops)

    def link_down(self) -> None:
        """Nothing can be sent for a while: what is new becomes backlog."""
        while self._waiting:
            self._to_backlog()

    def link_up(self, now: float) -> None:
        """The broker is back, perhaps without what it had: one is sent again, and the answer tells about the others."""
        if self._under_way:
            self._send_probe(now)

    def _send_probe(self, now: float) -> None:
        self._probe = next(iter(self._under_way))
        self.again(self._probe)
        self._asked_at = now

    def _to_backlog(self) -> OutboxEntry:
        """Make the first that waits backlog."""
        entry = self._take()
        self.rewind(entry.key)
        return entry

    def _take(self) -> OutboxEntry:
        """The next of those that wait."""
        entry = next(waiting for waiting in reversed(self._live) if waiting).popleft()
        self._waiting_bytes -= self._waiting.pop(entry.key)
        return entry

    def rewind(self, key: int) -> None:
        """There is something to send at this key, which may have been passed already."""
        priority = priority_of(key)
        self._cursors[priority] = min(self._cursors[priority], key)
        if self._reading is not None and priority_of(self._reading.start) == priority:
            self._rewound = key if self._rewound is None else min(self._rewound, key)

    def gone(self, keys: Iterable[int]) -> None:
        """Records are given up: those that wait are not sent."""
        lost = self._waiting.keys() & set(keys)
        if lost:
            self._waiting_bytes -= sum(self._waiting.pop(key) for key in lost)
            self._live = [deque(entry for entry in waiting if entry.key not in lost) for waiting in self._live]

    def next(self, now: float) -> tuple[list[OutboxEntry], ReadRequest | None]:
        """What is new and to be sent now, and what to read from the store and `offer`.

        Args:
            now: monotonic seconds.
        """
        backlog_under_way = len(self._under_way) - self._live_under_way
        live, old = share_out(
            self._most,
            self._share,
            live=len(self._waiting),
            backlog=self._most if self.backlog else 0,
            live_under_way=self._live_under_way,
            backlog_under_way=backlog_under_way,
        )
        entries: list[OutboxEntry] = []
        while live and sum(self._bytes) < self._max_bytes:
            entry = self._take()
            self._send(entry, now, live=True)
            entries.append(entry)
            live -= 1
        if not self._waiting:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        since = now if self._waits_since is None else self._waits_since
        silent = now - max(self._heard_at, since) >= _SILENT_S
        while self._waiting and (
            silent or len(self._waiting) > _WAITING * self._most or self._waiting_bytes > self._max_bytes
        ):
            entries.append(self._to_backlog())
        max_bytes = min(int(self._max_bytes * self._share) - self._bytes[0], self._max_bytes - sum(self._bytes))
        if self._reading is not None or not old or (max_bytes <= 0 and backlog_under_way):
            return entries, None
        priority = max(p for p in range(PRIORITIES) if self._cursors[p] < self._tops[p])
        self._reading = ReadRequest(self._cursors[priority], self._tops[priority], old, max(0, max_bytes))
        self._rewound = None
        return entries, self._reading

    def offer(self, wanted: ReadRequest, entries: Sequence[OutboxEntry] | None, now: float) -> list[OutboxEntry]:
        """What was read; None if it could not be. Returns: what of it to send."""
        if wanted is not self._reading:
            return []  # read before it all began anew
        self._reading = None
        if entries is None:
            return []
        chosen = [entry for entry in entries if entry.key not in self._under_way and entry.key not in self._waiting]
        for entry in chosen:
            self._send(entry, now, live=False)
        reached = entries[-1].last + 1 if entries else wanted.end
        if self._rewound is not None:
            reached = min(reached, self._rewound)
        self._cursors[priority_of(wanted.start)] = reached
        return chosen

    def _send(self, entry: OutboxEntry, now: float, *, live: bool) -> None:
        if not self._under_way:
            self._heard_at = now
        self._turn += 1
        entries, size = self._unasked[live]
        entries, size = entries + 1, size + entry.size
        most, most_bytes = self._halves[live]
        asks = entries >= most or size >= most_bytes or entry.key == self._probe
        self._unasked[live] = (0, 0) if asks else (entries, size)
        self._under_way[entry.key] = _UnderWay(self._turn, entry.size, live, asks)
        self._bytes[live] += entry.size
        self._live_under_way += live

    def _forget(self, key: int) -> _UnderWay:
        was = self._under_way.pop(key)
        self._bytes[was.live] -= was.size
        self._live_under_way -= was.live
        return was

    def acked(self, ack: Ack, now: float) -> None:
        """The region has something."""
        latest = 0
        for first, last in ack.ranges():
            if last - first < len(self._under_way):
                keys = [key for key in range(first, last + 1) if key in self._under_way]
            else:
                keys = [key for key in self._under_way if first <= key <= last]
            latest = max([latest, *(self._forget(key).turn for key in keys)])
        if not latest:
            return
        self._heard_at, self._patience_s = now, _PATIENCE_S
        lost = []
        for key, was in self._under_way.items():
            if was.turn > latest:
                break
            lost.append(key)
        for key in lost:
            self.again(key)

    def again(self, key: int) -> None:
        """Send one again that is under way, in its turn."""
        if key in self._under_way:
            self._forget(key)
            self.rewind(key)

    def probe(self, now: float) -> bool:
        """If nothing has been heard for long, have one sent again. Returns: whether it did."""
        if not self._under_way or now - max(self._heard_at, self._asked_at) < self._patience_s:
            return False
        self._send_probe(now)
        self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
        return True
