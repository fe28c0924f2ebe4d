"""Requested and granted subscriptions of a session.

Pure except for the futures that callers await: no clock, no link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from hedgerow.bus.outgoing import MAX_PUBLISH_ID
from hedgerow.bus.packets import QOS_NOT_SUPPORTED, Acked, encode_subscribe, encode_unsubscribe
from hedgerow.bus.properties import MalformedPacket

Refused: TypeAlias = dict[str, int]
"""Failure reason codes by topic filter."""


class Subscriptions:
    """Tracks which subscriptions are requested, pending and granted.

    Args:
        refuse_lower_qos: whether a subscription that is granted with a lower QoS than requested counts as refused.
    Attributes:
        requested: maximum QoS by topic filter.
        refused: reason codes of the subscriptions that the broker refused last time, by topic filter.
        lowered: granted QoS of the subscriptions that have a lower one than requested, by topic filter.
    """

    def __init__(self, *, refuse_lower_qos: bool = False) -> None:
        self.requested: dict[str, int] = {}
        self.refused: Refused = {}
        self.lowered: dict[str, int] = {}
        self._refuse_lower_qos = refuse_lower_qos
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
            if len(acked.reasons) != len(filters):
                raise MalformedPacket(f"SUBACK with {len(acked.reasons)} reason codes for {len(filters)} topic filters")
            refused: Refused = {}
            for (name, qos), reason in zip(filters.items(), acked.reasons, strict=True):
                self.lowered.pop(name, None)
                if reason >= 0x80:
                    refused[name] = reason
                elif reason < qos and self._refuse_lower_qos:
                    refused[name] = QOS_NOT_SUPPORTED
                    self._granted[name] = reason
                else:
                    self._granted[name] = qos
                    self.refused.pop(name, None)
                    if reason < qos:
                        self.lowered[name] = reason
            self.refused |= refused
            return refused

        packet_id, reply = self._request(apply)
        return encode_subscribe(packet_id, filters), reply

    def remove(self, name: str) -> None:
        """Stop requesting a filter. `unsubscribe` or `reconcile` then ends a granted subscription."""
        self.requested.pop(name, None)
        self.refused.pop(name, None)
        self.lowered.pop(name, None)

    def unsubscribe(self, names: Sequence[str]) -> tuple[bytes, asyncio.Future[Refused]]:
        """Encode a request to unsubscribe. Returns: the packet, and a future of the reply; nothing is refused."""

        def apply(_: Acked) -> Refused:
            for name in names:
                self._granted.pop(name, None)
            return {}

        packet_id, reply = self._request(apply)
        return encode_unsubscribe(packet_id, names), reply

    def on_ack(self, acked: Acked) -> list[str]:
        """Apply a SUBACK or UNSUBACK. Returns: granted filters to unsubscribe, because they count as refused."""
        pending = self._pending.get(acked.packet_id)
        if pending is None:
            return []
        apply, reply = pending
        refused = apply(acked)
        del self._pending[acked.packet_id]
        if not reply.done():
            reply.set_result(refused)
        return [name for name, reason in refused.items() if reason == QOS_NOT_SUPPORTED and name in self._granted]

    def link_lost(self) -> None:
        """Resolve pending requests: no reply will follow."""
        pending, self._pending = self._pending, {}
        for _, reply in pending.values():
            if not reply.done():
                reply.set_result({})

    def session_lost(self) -> list[str]:
        """Forget granted subscriptions: the broker no longer has them. Returns: those with QoS 1."""
        lost = [name for name, qos in self._granted.items() if qos]
        self._granted.clear()
        return lost

    def _request(self, apply: Callable[[Acked], Refused]) -> tuple[int, asyncio.Future[Refused]]:
        while True:
            self._next_id = MAX_PUBLISH_ID + 1 if self._next_id >= 65_535 else self._next_id + 1
            if self._next_id not in self._pending:
                break
        reply: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._pending[self._next_id] = apply, reply
        return self._next_id, reply
