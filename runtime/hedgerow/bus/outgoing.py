"""Publishes on their way: waiting, sent, acknowledged; with QoS 1 sent again when the link comes back.

Rules:
- QoS 0 is done with once it is written, and fails with the link. The rest is about QoS 1.
- Never more under way than the broker's Receive Maximum; the rest waits, in order.
- After a link was lost everything under way is sent again, first and in its old order: with DUP and the same packet
  identifier if the session is still there (MQTT-4.4.0-1), as new if it is not. At least once; never lost.

Pure: no clock, no link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from hedgerow.bus.causes import packet_too_large
from hedgerow.bus.packets import DUP

MAX_PUBLISH_ID: Final = 65_000
"""Packet identifiers above this one are for subscriptions."""

Done = Callable[[Exception | None], None]
"""Called once: with None when a message is safe at the broker, else with what happened to it."""


class Outgoing:
    """A publish that is not done with: QoS 0 not written, QoS 1 not acknowledged."""

    __slots__ = ("done", "head", "payload")

    def __init__(self, head: bytes, payload: bytes | memoryview, done: Done | None) -> None:
        self.head = head  # the packet before its payload, with packet identifier 0
        self.payload = payload
        self.done = done

    @property
    def topic(self) -> str:
        """Where it is to go."""
        at = _after_fixed_header(self.head)
        return self.head[at + 2 : at + 2 + (self.head[at] << 8 | self.head[at + 1])].decode("utf-8", "replace")


class Outbound:
    """The publishes not done with.

    Args:
        tell: is called with one that cannot be sent, and why.
    Attributes:
        payload_bytes: payload bytes of all of them.
        max_packet_bytes: bytes a packet to this broker may have; 0 as long as it has not been reached.
    """

    def __init__(self, tell: Callable[[Outgoing, Exception], None]) -> None:
        self._tell = tell
        self.payload_bytes = 0
        self._fleeting: deque[Outgoing] = deque()  # QoS 0
        self._waiting: deque[Outgoing] = deque()
        self._again: deque[tuple[int, Outgoing]] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._window = 0
        self.max_packet_bytes = 0
        self._dup = False
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._fleeting) + self.unacknowledged

    @property
    def unacknowledged(self) -> int:
        """Those of QoS 1."""
        return len(self._waiting) + len(self._again) + len(self._sent)

    @property
    def under_way(self) -> int:
        """Those of QoS 1 that the broker may have, without having said so."""
        return len(self._again) + len(self._sent)

    def add(self, publish: Outgoing) -> None:
        """Enter a publish."""
        (self._waiting if publish.head[0] & 0x06 else self._fleeting).append(publish)
        self.payload_bytes += len(publish.payload)

    def link_up(self, *, session_present: bool, receive_maximum: int, max_packet_bytes: int) -> None:
        """There is a link, with these limits of the broker: what was under way goes again, before all else."""
        self._window = min(receive_maximum, MAX_PUBLISH_ID)
        self.max_packet_bytes = max_packet_bytes
        self._dup = session_present

    def link_lost(self) -> list[Outgoing]:
        """The link is gone: nothing more can be taken. Returns: the QoS 0 ones, which fail."""
        self._window = 0
        # What was sent on this link came before what was still to be sent again only if that was never reached.
        self._again = deque([*self._sent.items(), *self._again])
        self._sent.clear()
        failed = list(self._fleeting)
        self._fleeting.clear()
        self.payload_bytes -= sum(len(publish.payload) for publish in failed)
        return failed

    def take(self) -> tuple[bytes, bytes | memoryview, Outgoing | None] | None:
        """The next one to send; None if nothing may be sent now.

        Returns: the head and the payload of its packet, and itself if it is done with once they are written.
        """
        while self._fleeting and self._window:
            publish = self._fleeting.popleft()
            if self._fits(publish):
                self.payload_bytes -= len(publish.payload)
                return publish.head, publish.payload, publish
        while len(self._sent) < self._window:
            if self._again:
                packet_id, publish = self._again.popleft()
                dup = self._dup
            elif self._waiting:
                packet_id, publish, dup = self._free_id(), self._waiting.popleft(), False
            else:
                return None
            if self._fits(publish):
                self._sent[packet_id] = publish
                return _with_id(publish.head, packet_id, dup), publish.payload, None
        return None

    def acked(self, packet_id: int) -> Outgoing | None:
        """The broker has answered for one; it is off the table. None: there was none of that identifier."""
        publish = self._sent.pop(packet_id, None)
        if publish is not None:
            self.payload_bytes -= len(publish.payload)
        return publish

    def clear(self) -> list[Outgoing]:
        """Give up on everything. Returns: what had not been acknowledged."""
        publishes = [*self._sent.values(), *(publish for _, publish in self._again), *self._waiting, *self._fleeting]
        self._fleeting.clear()
        self._sent.clear()
        self._again.clear()
        self._waiting.clear()
        self.payload_bytes = 0
        return publishes

    def _fits(self, publish: Outgoing) -> bool:
        size = len(publish.head) + len(publish.payload)
        if size <= self.max_packet_bytes:
            return True
        self.payload_bytes -= len(publish.payload)
        self._tell(publish, packet_too_large(size, self.max_packet_bytes))
        return False

    def _free_id(self) -> int:
        while True:
            self._next_id = self._next_id % MAX_PUBLISH_ID + 1
            if self._next_id not in self._sent:
                return self._next_id


def _with_id(head: bytes, packet_id: int, dup: bool) -> bytes:
    at = _after_fixed_header(head)
    at += 2 + (head[at] << 8 | head[at + 1])
    first = bytes((head[0] | DUP,)) if dup else head[:1]
    return first + head[1:at] + packet_id.to_bytes(2, "big") + head[at + 2 :]


def _after_fixed_header(head: bytes) -> int:
    at = 2  # after the shortest one
    while head[at - 1] > 127:
        at += 1
    return at
