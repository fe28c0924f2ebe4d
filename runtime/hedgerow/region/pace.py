"""When to acknowledge to an outbox: after so many, or soon, or never too often. Pure but for nothing: no clock, no link.

An outbox sends no more than its window (256) without an acknowledgement. One for each batch stored would be many where
batches are small, one a second would keep a busy outbox waiting: so at once when a good part of a window has come, and
half a second later if not.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from hedgerow.bus.outbox.records import Ack

AFTER: Final = 64
"""Records after which an acknowledgement goes at once."""
LATEST_S: Final = 0.5
"""Seconds after which it goes anyway."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Owed:
    ack: Ack
    records: int
    since: float


class Pace(Generic[Key]):
    """What is owed, by outbox and epoch; a newer acknowledgement says all that an older one said."""

    def __init__(self) -> None:
        self._owed: dict[Key, _Owed] = {}
        self._under_way: set[Key] = set()

    def __len__(self) -> int:
        """Acknowledgements owed or under way."""
        return len(self._owed.keys() | self._under_way)

    def owe(self, key: Key, ack: Ack, records: int, now: float) -> None:
        """Something was stored, or came again."""
        owed = self._owed.get(key)
        if owed is None:
            self._owed[key] = _Owed(ack, records, now)
        else:
            owed.ack = ack
            owed.records += records

    def due(self, now: float, *, all_of_them: bool = False) -> list[tuple[Key, Ack]]:
        """What to publish now; until `sent`, nothing more goes to the same one."""
        due = [
            (key, owed.ack)
            for key, owed in self._owed.items()
            if key not in self._under_way and (all_of_them or owed.records >= AFTER or now - owed.since >= LATEST_S)
        ]
        for key, _ in due:
            del self._owed[key]
            self._under_way.add(key)
        return due

    def sent(self, key: Key) -> None:
        """The broker has it, or will not take it: what is lost on the way is asked for again by the outbox."""
        self._under_way.discard(key)
