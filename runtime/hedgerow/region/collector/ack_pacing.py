"""Paces acknowledgements to outboxes. Pure: no clock, no link.

An outbox that has filled a good part of its window requests an acknowledgement with its next record, and gets it at once, so
busy outboxes and those that catch up never wait. (If the request is lost, `MAX_RECORDS` triggers one too.) For all others,
waiting only means that records stay on their disk a little longer. They are acknowledged within a second, or, if there are
many, at a fixed rate, longest wait first. So the cost of acknowledgements does not grow with the number of outboxes.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from hedgerow.bus.outbox.records import Ack

MAX_RECORDS: Final = 64
"""Records that trigger an immediate acknowledgement."""
DELAY_S: Final = 0.5
"""Longest delay of an acknowledgement while few outboxes are waiting."""
MAX_ACKS_PER_S: Final = 100
"""Approximate rate of delayed acknowledgements while many outboxes are waiting."""
MAX_DELAY_S: Final = 10.0
"""Longest delay in any case. An outbox sends again after 30 s without an acknowledgement."""

TICK_S: Final = 0.25
"""Interval between checks for delayed acknowledgements; those due leave together."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _PendingAck:
    ack: Ack
    records: int
    since: float


class AckPacing(Generic[Key]):
    """Pending acknowledgements, by outbox and epoch. Acknowledgements are cumulative, so a newer one replaces an older one,
    and takes over what that says of the results held.
    """

    def __init__(self) -> None:
        self._pending: dict[Key, _PendingAck] = {}  # oldest first
        self._urgent: dict[Key, None] = {}
        self._in_flight: set[Key] = set()
        self._next_tick_at = float("-inf")

    def __len__(self) -> int:
        """Number of acknowledgements pending or in flight."""
        return len(self._pending) + len(self._in_flight)

    @property
    def delay_s(self) -> float:
        """Current delay of acknowledgements that were not requested, in seconds."""
        return min(MAX_DELAY_S, max(DELAY_S, len(self._pending) / MAX_ACKS_PER_S))

    def add(self, key: Key, ack: Ack, records: int, now: float, *, urgent: bool = False) -> None:
        """Note that records were stored or received again.

        Args:
            key: the outbox and epoch.
            ack: acknowledges everything stored so far.
            records: number of records since the last call.
            now: monotonic seconds.
            urgent: acknowledge at once.
        """
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _PendingAck(ack, records, now)
        else:
            pending.ack = ack.after(pending.ack)
            pending.records += records
        if urgent or pending.records >= MAX_RECORDS:
            self._urgent[key] = None

    def due(self, now: float, *, flush: bool = False) -> list[tuple[Key, Ack]]:
        """Return the acknowledgements to publish now. The same outbox gets no other one until `sent` is called."""
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
        """Note that the broker accepted or refused it. The outbox requests a lost acknowledgement again."""
        self._in_flight.discard(key)
