"""Requested and granted subscriptions of a session.

Pure except for the futures that callers await: no clock, no link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from hedgerow.bus.outgoing import MAX_PUBLISH_ID
from hedgerow.bus.packets import Acked, encode_subscribe, encode_unsubscribe

Refused: TypeAlias = dict[str, int]
"""Failure reason codes by topic filter."""


class Subscriptions:
    """Tracks which subscriptions are requested, pending and granted.

    Attributes:
        requested: maximum QoS by topic filter.
        refused: reason codes of the subscriptions that the broker refused last time, by topic filter.
    """

    def __init__(self) -> None:
        self.requested: dict[str, int] = {}
        self.refused: Refused = {}
        self._granted: dict[str, int] = {}
        self._pending: dict[int, tuple[Callable[[Acked], Refused], asyncio.Future[Refused]]] = {}
        self._next_id = MAX_PUBLISH_ID

    def reconcile(self) -> list[tuple[bytes, asyncio.Future[Refused]]]:
        """Return the requests that bring the session's subscriptions in line with `requested`, and their replies."""
        surplus = [name for name in self._granted if name not in self.requested]
        missing = {name: qos for name, qos in self.requested.items() if self._granted.get(name) != qos}
        requests = [self.unsubscribe(surplus)] if surplus else []
        if missing:
            requests.append(self.subscribe(missing))
        return requests

    def subscribe(self, filters: Mapping[str, int]) -> tuple[bytes, asyncio.Future[Refused]]:
        """Encode a request to subscribe. Returns: the packet, and a future of the refusals; a lost link refuses nothing."""

        def apply(acked: Acked) -> Refused:
            refused: Refused = {}
            for (name, qos), reason in zip(filters.items(), acked.reasons, strict=False):
                if reason >= 0x80:
                    refused[name] = reason
                else:
                    self._granted[name] = qos
                    self.refused.pop(name, None)
            self.refused |= refused
            return refused

        packet_id, reply = self._request(apply)
        return encode_subscribe(packet_id, filters), reply

    def remove(self, name: str) -> None:
        """Stop requesting a filter. `unsubscribe` or `reconcile` then ends a granted subscription."""
        self.requested.pop(name, None)
        self.refused.pop(name, None)

    def unsubscribe(self, names: Sequence[str]) -> tuple[bytes, asyncio.Future[Refused]]:
        """Encode a request to unsubscribe. Returns: the packet, and a future of the reply; nothing is refused."""

        def apply(_: Acked) -> Refused:
            for name in names:
                self._granted.pop(name, None)
            return {}

        packet_id, reply = self._request(apply)
        return encode_unsubscribe(packet_id, names), reply

    def on_ack(self, acked: Acked) -> None:
        """Apply a SUBACK or UNSUBACK."""
        if pending := self._pending.pop(acked.packet_id, None):
            apply, reply = pending
            refused = apply(acked)
            if not reply.done():
                reply.set_result(refused)

    def link_lost(self) -> None:
        """Resolve pending requests: no reply will follow."""
        pending, self._pending = self._pending, {}
        for _, reply in pending.values():
            if not reply.done():
                reply.set_result({})

    def session_lost(self) -> None:
        """Forget granted subscriptions: the broker no longer has them."""
        self._granted.clear()

    def _request(self, apply: Callable[[Acked], Refused]) -> tuple[int, asyncio.Future[Refused]]:
        while True:
            self._next_id = MAX_PUBLISH_ID + 1 if self._next_id >= 65_535 else self._next_id + 1
            if self._next_id not in self._pending:
                break
        reply: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._pending[self._next_id] = apply, reply
        return self._next_id, reply
