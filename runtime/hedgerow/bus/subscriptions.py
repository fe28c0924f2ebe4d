"""What we want to hear, and what the broker holds for us.

Pure but for the futures that callers wait on: no clock, no link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from hedgerow.bus.outgoing import MAX_PUBLISH_ID
from hedgerow.bus.packets import Acked, encode_subscribe, encode_unsubscribe

Refused: TypeAlias = dict[str, int]
"""Reason codes by topic filter."""


class Subscriptions:
    """Subscriptions wanted, held by the session, and asked for.

    Attributes:
        wanted: maximum QoS by topic filter.
        refused: the broker's reason codes, by topic filter, for what it did not grant when last asked.
    """

    def __init__(self) -> None:
        self.wanted: dict[str, int] = {}
        self.refused: Refused = {}
        self._held: dict[str, int] = {}
        self._asked: dict[int, tuple[Callable[[Acked], Refused], asyncio.Future[Refused]]] = {}
        self._next_id = MAX_PUBLISH_ID

    def renew(self) -> list[tuple[bytes, asyncio.Future[Refused]]]:
        """The requests that make the session's subscriptions what is wanted."""
        surplus = [name for name in self._held if name not in self.wanted]
        missing = {name: qos for name, qos in self.wanted.items() if self._held.get(name) != qos}
        requests = [self.unsubscribe(surplus)] if surplus else []
        if missing:
            requests.append(self.subscribe(missing))
        return requests

    def subscribe(self, filters: Mapping[str, int]) -> tuple[bytes, asyncio.Future[Refused]]:
        """A request for subscriptions, and the answer to come: what is refused. A lost link refuses nothing."""

        def note(acked: Acked) -> Refused:
            refused: Refused = {}
            for (name, qos), reason in zip(filters.items(), acked.reasons, strict=False):
                if reason >= 0x80:
                    refused[name] = reason
                else:
                    self._held[name] = qos
                    self.refused.pop(name, None)
            self.refused |= refused
            return refused

        packet_id, answer = self._ask(note)
        return encode_subscribe(packet_id, filters), answer

    def forget(self, name: str) -> None:
        """Want a filter no more; what is held of it is given up by `unsubscribe` or `renew`."""
        self.wanted.pop(name, None)
        self.refused.pop(name, None)

    def unsubscribe(self, names: Sequence[str]) -> tuple[bytes, asyncio.Future[Refused]]:
        """A request to end subscriptions, and the answer to come: nothing is refused."""

        def note(_: Acked) -> Refused:
            for name in names:
                self._held.pop(name, None)
            return {}

        packet_id, answer = self._ask(note)
        return encode_unsubscribe(packet_id, names), answer

    def answered(self, acked: Acked) -> None:
        """A SUBACK or UNSUBACK came."""
        if asked := self._asked.pop(acked.packet_id, None):
            note, answer = asked
            refused = note(acked)
            if not answer.done():
                answer.set_result(refused)

    def link_lost(self) -> None:
        """No answer will come any more."""
        asked, self._asked = self._asked, {}
        for _, answer in asked.values():
            if not answer.done():
                answer.set_result({})

    def session_lost(self) -> None:
        """The broker holds nothing any more."""
        self._held.clear()

    def _ask(self, note: Callable[[Acked], Refused]) -> tuple[int, asyncio.Future[Refused]]:
        while True:
            self._next_id = MAX_PUBLISH_ID + 1 if self._next_id >= 65_535 else self._next_id + 1
            if self._next_id not in self._asked:
                break
        answer: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._asked[self._next_id] = note, answer
        return self._next_id, answer
