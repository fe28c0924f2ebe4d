"""When to acknowledge to an outbox: after so many, when it asks, or soon, and to quiet ones in turn. Pure: no clock, no link.

An outbox that fills a good part of its window asks for an acknowledgement with the record that does, and has it at once: so
a busy one, and one that catches up, never waits. (If the question is lost, so many records do as well.) All others lose
nothing by waiting: their records stay on their disks a little longer. So they are answered within a second where there
are few, and where there are many, so many a second, the one that has waited longest first; what acknowledgements cost does
not grow with the number of outboxes.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from hedgerow.bus.outbox.records import Ack

MAX_RECORDS: Final = 64
"""Records after which an acknowledgement goes at once."""
DELAY_S: Final = 0.5
"""Seconds after which it goes anyway, where few are owed;"""
MAX_ACKS_PER_S: Final = 100
"""where more are, no more than about so many of these go in a second,"""
MAX_DELAY_S: Final = 10.0
"""but none later than this: after 30 s an outbox that hears nothing sends again."""

TICK_S: Final = 0.25
"""These are looked at so often, so that those that are due leave together."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _PendingAck:
    ack: Ack
    records: int
    since: float


class AckPacing(Generic[Key]):
    """What is owed, by outbox and epoch; a newer acknowledgement says all that an older one said."""

    def __init__(self) -> None:
        self._pending: dict[Key, _PendingAck] = {}  # the oldest debt first
        self._urgent: dict[Key, None] = {}
        self._in_flight: set[Key] = set()
        self._next_tick_at = float("-inf")

    def __len__(self) -> int:
        """Acknowledgements owed, and those under way."""
        return len(self._pending) + len(self._in_flight)

    @property
    def delay_s(self) -> float:
        """Seconds that a quiet outbox waits now."""
        return min(MAX_DELAY_S, max(DELAY_S, len(self._pending) / MAX_ACKS_PER_S))

    def add(self, key: Key, ack: Ack, records: int, now: float, *, urgent: bool = False) -> None:
        """Something was stored, or came again.

        Args:
            asked: whether the outbox wants to hear of it at once.
        """
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _PendingAck(ack, records, now)
        else:
            pending.ack = ack
            pending.records += records
        if urgent or pending.records >= MAX_RECORDS:
            self._urgent[key] = None

    def due(self, now: float, *, flush: bool = False) -> list[tuple[Key, Ack]]:
        """What to publish now; until `sent`, nothing more goes to the same one."""
        keys = list(self._urgent)
        if flush or now >= self._next_tick_at:
            self._next_tick_at = now + TICK_S
            since = now if flush else now - self.delay_s
            keys += itertools.takewhile(lambda key: self._pending[key].since <= since, self._pending)
        due = []
        for key in keys:
            if key in self._in_flight:
                continue
            due.append((key, self._pending.pop(key).ack))
            self._urgent.pop(key, None)
            self._in_flight.add(key)
        return due

    def sent(self, key: Key) -> None:
        """The broker has it, or will not take it: what is lost on the way is asked for again by the outbox."""
        self._in_flight.discard(key)
