"""What is owed to the broker: an acknowledgement for every QoS 1 message, in the order they came.

Rules:
- Acknowledgements leave in the order of the messages (MQTT-4.6.0-2); one that is early waits for those before it.
- An acknowledgement leaves only on a link on which its message came. A link that died before takes nothing with it:
  the broker sends the message again (DUP), and if it is still with us, that redelivery is swallowed and inherits its
  state instead of being processed twice.
- A packet identifier that comes back without DUP, or after the session was lost, is a new message; the old one is void.

Pure: no clock, no link.
"""

from __future__ import annotations

from collections import deque


class Unacked:
    """One message that the broker waits for: its identifier and whether it is done or void."""

    __slots__ = ("done", "packet_id", "void")

    def __init__(self, packet_id: int) -> None:
        self.packet_id = packet_id
        self.done = False
        self.void = False


class Acknowledgements:
    """The ordered table of messages not yet acknowledged.

    Attributes:
        redelivered: messages that came again while still with us, and were swallowed.
    """

    def __init__(self) -> None:
        self.redelivered = 0
        self._here: dict[int, Unacked] = {}
        self._order: deque[Unacked] = deque()  # as they came on this link
        self._before: dict[int, Unacked] = {}  # came on an earlier link of this session, not yet again on this one

    def __len__(self) -> int:
        """Messages not yet acknowledged."""
        return len(self._here) + len(self._before)

    @property
    def on_link(self) -> int:
        """Those that have come on this link."""
        return len(self._here)

    def received(self, packet_id: int, dup: bool) -> Unacked | None:
        """Enter a message that came.

        Returns: its entry, or None if it is one that is still with us: it must be swallowed.
        """
        here = self._here.get(packet_id)
        if here is not None:
            if dup:
                self.redelivered += 1
                return None
            here.void = here.done = True
        elif self._before:
            before = self._before.pop(packet_id, None)
            if before is not None:
                if dup:
                    self.redelivered += 1
                    self._here[packet_id] = before
                    self._order.append(before)
                    return None
                before.void = True
        unacked = Unacked(packet_id)
        self._here[packet_id] = unacked
        self._order.append(unacked)
        return unacked

    def take_ready(self) -> list[int]:
        """Identifiers to acknowledge now, in order; they are off the table with that."""
        ready: list[int] = []
        order = self._order
        while order and order[0].done:
            unacked = order.popleft()
            if not unacked.void:
                del self._here[unacked.packet_id]
                ready.append(unacked.packet_id)
        return ready

    @property
    def ready(self) -> bool:
        """Whether `take_ready` would give anything."""
        return bool(self._order) and self._order[0].done

    def link_lost(self) -> None:
        """The link is gone: nothing may leave until a message has come again."""
        self._before.update(self._here)
        self._here.clear()
        self._order.clear()

    def session_lost(self) -> None:
        """The broker has forgotten us: every entry is void."""
        for unacked in (*self._here.values(), *self._before.values()):
            unacked.void = True
        self._here.clear()
        self._before.clear()
        self._order.clear()
