"""Queue of outgoing publishes; QoS 1 is resent after a reconnect.

Rules:
- QoS 0 is finished once written, and fails if the link is lost. All other rules are about QoS 1.
- No more are in flight than the broker's Receive Maximum; the rest queues in order.
- After a lost link, everything in flight is resent first, in its order: with DUP and the same packet identifier if the
  broker still has the session (MQTT-4.4.0-1), as new if not. Delivery is at least once; nothing is lost.
- A broker may end the link over one message, each time it is resent, and nothing behind it would ever get through. So what was
  in flight when the peer ended two links is *in doubt*: it is sent alone, in its order, on a link that has just answered. If
  that link ends too, twice, the message is set aside. Where the broker itself ended each time, that is more likely the broker's
  own fault, so such a message is set aside only after many more.

Pure: no clock, no link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hedgerow.bus.causes import packet_too_large
from hedgerow.bus.packets import DUP
from hedgerow.bus.properties import decode_varint

MAX_PUBLISH_ID: Final = 65_000
"""Higher packet identifiers are reserved for subscriptions."""

_ENDS_UNTIL_DOUBT: Final = 2
_ENDS_ALONE: Final = 2
_RESTARTS_ALONE: Final = 6

Done = Callable[[Exception | None], None]
"""Called once: with None when the broker has the message, else with the error."""


class Outgoing:
    """An unfinished publish: QoS 0 not written, or QoS 1 not acknowledged; or several of QoS 0, see `joined`."""

    __slots__ = ("done", "ends", "head", "messages", "payload", "restarts")

    def __init__(self, head: bytes, payload: bytes | memoryview, done: Done | None, messages: int = 1) -> None:
        self.head = head  # the packet before its payload, with packet identifier 0
        self.payload = payload
        self.done = done
        self.messages = messages
        self.ends = 0  # links that the peer ended with this in flight, and went on
        self.restarts = 0  # likewise, when it ended itself

    @property
    def topic(self) -> str:
        """Its topic, read from the packet."""
        at = _after_fixed_header(self.head)
        return self.head[at + 2 : at + 2 + (self.head[at] << 8 | self.head[at + 1])].decode("utf-8", "replace")

    @property
    def raw_properties(self) -> bytes:
        """Its properties as encoded, without their length prefix."""
        at = _after_fixed_header(self.head)
        at += 2 + (self.head[at] << 8 | self.head[at + 1]) + (2 if self.head[0] & 0x06 else 0)
        return self.head[decode_varint(self.head, at)[1] :]

    @property
    def in_doubt(self) -> bool:
        """Whether the peer may have ended links over it."""
        return self.ends + self.restarts >= _ENDS_UNTIL_DOUBT


def joined(heads: Sequence[bytes], payloads: Sequence[bytes]) -> Outgoing:
    """Return publishes of QoS 0 as one, whose payload is all that follows the first head. Each must fit into a packet."""
    parts = [part for both in zip(heads, payloads, strict=True) for part in both]
    return Outgoing(parts[0], b"".join(parts[1:]), None, len(heads))


class Outbound:
    """All unfinished publishes.

    Args:
        reject: called with a publish that cannot be sent, and the error.
    Attributes:
        payload_bytes: total payload size.
        max_packet_bytes: the broker's Maximum Packet Size; 0 before the first connection.
        answered: whether the broker has answered a ping on this link. Set it; what is in doubt waits for it.
    """

    def __init__(self, reject: Callable[[Outgoing, Exception], None]) -> None:
        self._reject = reject
        self.payload_bytes = 0
        self._qos0: deque[Outgoing] = deque()
        self._qos0_messages = 0
        self._queued: deque[Outgoing] = deque()
        self._to_resend: deque[tuple[int, Outgoing]] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._window = 0
        self.max_packet_bytes = 0
        self.answered = False
        self._alone: Outgoing | None = None  # in flight, in doubt
        self._ended: list[Outgoing] = []  # in flight when the peer ended the last link
        self._ended_alone = False
        self._dup = False
        self._next_id = 0

    def __len__(self) -> int:
        return self._qos0_messages + self.unacknowledged

    @property
    def unacknowledged(self) -> int:
        """QoS 1 publishes not yet acknowledged, queued ones included."""
        return len(self._queued) + len(self._to_resend) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        """QoS 1 publishes sent and not acknowledged."""
        return len(self._to_resend) + len(self._in_flight)

    @property
    def in_doubt(self) -> bool:
        """Whether the next message is to be sent alone, after the broker has answered a ping."""
        return bool(self._to_resend) and self._to_resend[0][1].in_doubt

    def add(self, publish: Outgoing) -> None:
        """Queue a publish."""
        if publish.head[0] & 0x06:
            self._queued.append(publish)
        else:
            self._qos0.append(publish)
            self._qos0_messages += publish.messages
        self.payload_bytes += len(publish.payload)

    def link_up(self, *, session_present: bool, receive_maximum: int, max_packet_bytes: int) -> None:
        """Start sending within the broker's limits; publishes in flight are resent first."""
        self._window = min(receive_maximum, MAX_PUBLISH_ID)
        self.max_packet_bytes = max_packet_bytes
        self._dup = session_present
        self.answered = False

    def peer_ended(self) -> None:
        """Call it when the peer has ended the link, before `link_lost`: what was in flight may be the reason."""
        self._ended = list(self._in_flight.values())
        self._ended_alone = self._alone is not None

    def take_guilty(self, *, restarted: bool) -> Outgoing | None:
        """Call it on the next link, before `link_up`, when it is known whether the peer itself had ended.

        Returns: the message over which it certainly ended the link, removed from the queue; usually None.
        """
        ended, self._ended = self._ended, []
        for publish in ended:
            publish.ends += not restarted
            publish.restarts += restarted
        if not self._ended_alone or not ended:
            return None
        (guilty,) = ended
        if guilty.ends < _ENDS_UNTIL_DOUBT + _ENDS_ALONE and guilty.ends + guilty.restarts < (
            _ENDS_UNTIL_DOUBT + _RESTARTS_ALONE
        ):
            return None
        self._to_resend = deque(entry for entry in self._to_resend if entry[1] is not guilty)
        self.payload_bytes -= len(guilty.payload)
        return guilty

    def link_lost(self) -> list[Outgoing]:
        """Stop sending. Returns: the QoS 0 publishes, which fail."""
        self._window = 0
        self._alone = None
        # Everything sent on this link precedes what it had not yet resent.
        self._to_resend = deque([*self._in_flight.items(), *self._to_resend])
        self._in_flight.clear()
        failed = list(self._qos0)
        self._qos0.clear()
        self._qos0_messages = 0
        self.payload_bytes -= sum(len(publish.payload) for publish in failed)
        return failed

    def take(self) -> tuple[bytes, bytes | memoryview, Outgoing | None] | None:
        """Return the next packet to send; None if nothing may be sent now.

        Returns: head and payload of the packet, and the publish if it is finished once written (QoS 0).
        """
        if self._alone is not None:
            return None
        if self.in_doubt:
            return self._take_alone()
        while self._qos0 and self._window:
            publish = self._qos0.popleft()
            self._qos0_messages -= publish.messages
            if self._fits(publish):
                self.payload_bytes -= len(publish.payload)
                return publish.head, publish.payload, publish
        while len(self._in_flight) < self._window:
            if self._to_resend:
                packet_id, publish = self._to_resend.popleft()
                dup = self._dup
            elif self._queued:
                packet_id, publish, dup = self._free_id(), self._queued.popleft(), False
            else:
                return None
            if self._fits(publish):
                self._in_flight[packet_id] = publish
                return _with_id(publish.head, packet_id, dup), publish.payload, None
        return None

    def _take_alone(self) -> tuple[bytes, bytes | memoryview, Outgoing | None] | None:
        """Return the next message, which is in doubt, if nothing else is in flight and the link works."""
        if self._in_flight or not self._window or not self.answered:
            return None
        packet_id, publish = self._to_resend.popleft()
        if not self._fits(publish):
            return self.take()
        self._alone = self._in_flight[packet_id] = publish
        return _with_id(publish.head, packet_id, self._dup), publish.payload, None

    def acked(self, packet_id: int) -> Outgoing | None:
        """Remove and return the publish that a PUBACK answers; None if the identifier is unknown."""
        publish = self._in_flight.pop(packet_id, None)
        if publish is not None:
            self.payload_bytes -= len(publish.payload)
            self._alone = None
        return publish

    def clear(self) -> list[Outgoing]:
        """Drop everything. Returns: the unfinished publishes, oldest first."""
        publishes = [
            *self._in_flight.values(),
            *(publish for _, publish in self._to_resend),
            *self._queued,
            *self._qos0,
        ]
        self._qos0.clear()
        self._qos0_messages = 0
        self._in_flight.clear()
        self._to_resend.clear()
        self._queued.clear()
        self._ended.clear()
        self._alone = None
        self.payload_bytes = 0
        return publishes

    def _fits(self, publish: Outgoing) -> bool:
        size = len(publish.head) + len(publish.payload)
        if size <= self.max_packet_bytes or publish.messages > 1:  # each of several fits
            return True
        self.payload_bytes -= len(publish.payload)
        self._reject(publish, packet_too_large(size, self.max_packet_bytes))
        return False

    def _free_id(self) -> int:
        while True:
            self._next_id = self._next_id % MAX_PUBLISH_ID + 1
            if self._next_id not in self._in_flight:
                return self._next_id


def _with_id(head: bytes, packet_id: int, dup: bool) -> bytes:
    at = _after_fixed_header(head)
    at += 2 + (head[at] << 8 | head[at + 1])
    first = bytes((head[0] | DUP,)) if dup else head[:1]
    return first + head[1:at] + packet_id.to_bytes(2, "big") + head[at + 2 :]


def _after_fixed_header(head: bytes) -> int:
    at = 2  # the shortest fixed header
    while head[at - 1] > 127:
        at += 1
    return at
