"""Table of QoS 1 messages awaiting acknowledgement, in order of arrival.

Rules:
- Acknowledgements are sent in the order in which messages arrived (MQTT-4.6.0-2); an early one waits for its predecessors.
- A message is acknowledged only on a link on which it arrived. After a lost link the broker redelivers it (DUP). If it is
  still being processed, the redelivery is discarded and inherits its state, so the message is not processed twice.
- A packet identifier reused without DUP, or after the session was lost, is a new message; the old one is void.

Pure: no clock, no link.
"""

from __future__ import annotations

from collections import deque


class Unacked:
    """An unacknowledged message: its packet identifier, and whether it is done or void."""

    __slots__ = ("done", "packet_id", "void")

    def __init__(self, packet_id: int) -> None:
        self.packet_id = packet_id
        self.done = False
        self.void = False


class Acknowledgements:
    """Unacknowledged messages, in order.

    Attributes:
        redelivered: redeliveries discarded because the message was still being processed.
    """

    def __init__(self) -> None:
        self.redelivered = 0
        self._current: dict[int, Unacked] = {}
        self._order: deque[Unacked] = deque()  # in order of arrival on this link
        self._earlier: dict[int, Unacked] = {}  # from earlier links of this session, not yet redelivered

    def __len__(self) -> int:
        """Return the number of unacknowledged messages."""
        return len(self._current) + len(self._earlier)

    @property
    def on_link(self) -> int:
        """Unacknowledged messages received on this link."""
        return len(self._current)

    def received(self, packet_id: int, dup: bool) -> Unacked | None:
        """Add a received message.

        Returns: its entry; None: a redelivery of a message still being processed, to be discarded.
        """
        current = self._current.get(packet_id)
        if current is not None:
            if dup:
                self.redelivered += 1
                return None
            current.void = current.done = True
        elif self._earlier:
            earlier = self._earlier.pop(packet_id, None)
            if earlier is not None:
                if dup:
                    self.redelivered += 1
                    self._current[packet_id] = earlier
                    self._order.append(earlier)
                    return None
                earlier.void = True
        unacked = Unacked(packet_id)
        self._current[packet_id] = unacked
        self._order.append(unacked)
        return unacked

    def take_ready(self) -> list[int]:
        """Remove and return the packet identifiers to acknowledge now, in order."""
        ready: list[int] = []
        order = self._order
        while order and order[0].done:
            unacked = order.popleft()
            if not unacked.void:
                del self._current[unacked.packet_id]
                ready.append(unacked.packet_id)
        return ready

    @property
    def ready(self) -> bool:
        """Whether `take_ready` would return any."""
        return bool(self._order) and self._order[0].done

    def link_lost(self) -> None:
        """Hold all acknowledgements until their messages are redelivered."""
        self._earlier.update(self._current)
        self._current.clear()
        self._order.clear()

    def session_lost(self) -> None:
        """Void every entry: the broker no longer has the session."""
        for unacked in (*self._current.values(), *self._earlier.values()):
            unacked.void = True
        self._current.clear()
        self._earlier.clear()
        self._order.clear()
