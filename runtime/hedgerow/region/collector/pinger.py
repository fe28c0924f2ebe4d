"""Pings every node through all bridges and back, to find paths that are connected but forward nothing.

A ping is the node's command `ping` with a reply topic that bridges carry up. It expires in brokers, so that none pile up
behind a stuck bridge.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hedgerow.bus.client import Client
from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError, FrameError
from hedgerow.region.config import PingSection
from hedgerow.region.store.records import PingRecord
from hedgerow.topics import Address, Channel, parse, upward
from hedgerow.wire.messages import JSON

COMMAND: Final = "ping"
REPLY: Final = upward("region", "region-ping")
"""Tail of the topic on which nodes reply."""
_OLD_REPLIES: Final = ("region-ping", "region-canary")
"""The tails before; a session at the broker may still deliver replies on them."""
_TICK_S: Final = 0.25


@dataclass(slots=True)
class _NodePing:
    """Ping state of one node. Times are monotonic.

    Attributes:
        due_at: time of the next ping.
        sent_at: time of the ping in flight; None if there is none.
        correlation: distinguishes its reply from those to earlier pings.
    """

    due_at: float
    sent_at: float | None = None
    correlation: bytes = b""


class Pinger:
    """Pings the nodes of a region.

    Args:
        region: name of the region.
        config: interval and timeout; `every_s` must be set.
        client: connection to the region's broker.
        report: called with the outcome of each ping.
    Attributes:
        stray_replies: number of replies to unknown or expired pings.
    """

    def __init__(self, region: str, config: PingSection, client: Client, report: Callable[[PingRecord], None]) -> None:
        self.stray_replies = 0
        self._every_s = config.every_s or 0.0
        self._timeout_s = config.timeout_s
        self._client = client
        self._report = report
        self._states: dict[Address, _NodePing] = {}
        self.filters = {Address(region, "+", "+").topic(Channel.REPLY, REPLY): 1}

    def add(self, nodes: Iterable[Address], *, at_once: bool) -> None:
        """Start pinging nodes.

        Args:
            nodes: those already known are ignored.
            at_once: send the first ping within a second; otherwise spread it over one interval.
        """
        now = time.monotonic()
        within_s = min(1.0, self._every_s) if at_once else self._every_s
        for node in nodes:
            self._states.setdefault(node, _NodePing(now + random.random() * within_s))

    def keep(self, nodes: Collection[Address]) -> None:
        """Ping these nodes only: others were forgotten or renamed."""
        self._states = {node: state for node, state in self._states.items() if node in nodes}
        self.add(nodes, at_once=False)

    async def keep_pinging(self) -> None:
        """Send pings until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            if self._client.connected:
                self._tick(time.monotonic())

    def take(self, message: Message) -> bool:
        """Handle a message if it is a reply to a ping, even an old one. Returns: whether it is."""
        parsed = parse(message.topic)
        if parsed is None or parsed.channel is not Channel.REPLY or parsed.tail not in (REPLY, *_OLD_REPLIES):
            return False
        state = self._states.get(parsed.address)
        correlation = None
        with suppress(FrameError):
            correlation = message.properties.correlation_data
        if state is None or state.sent_at is None or correlation != state.correlation:
            self.stray_replies += 1
            return True
        round_trip_s = time.monotonic() - state.sent_at
        state.sent_at = None
        now = time.time()
        at = _clock_of(message)
        # As in NTP: the node's clock at the halfway point, minus the midpoint of ours.
        offset_s = None if at is None else at - (now - round_trip_s / 2)
        self._report(PingRecord(parsed.address, 0, now, True, round_trip_s, offset_s))
        return True

    def _tick(self, now: float) -> None:
        for address, state in self._states.items():
            if state.sent_at is not None and now - state.sent_at > self._timeout_s:
                state.sent_at = None
                self._report(PingRecord(address, 0, time.time(), True, None, None))
            if state.sent_at is None and now >= state.due_at:
                state.due_at = now + self._every_s * random.uniform(0.8, 1.2)  # spreads nodes that arrived together
                self._ping(address, state, now)

    def _ping(self, address: Address, state: _NodePing, now: float) -> None:
        state.sent_at, state.correlation = now, uuid.uuid4().bytes
        properties = encode_properties(
            [
                (Property.EXPIRY, max(1, round(self._timeout_s))),
                (Property.CONTENT_TYPE, JSON),
                (Property.RESPONSE_TOPIC, address.topic(Channel.REPLY, REPLY)),
                (Property.CORRELATION_DATA, state.correlation),
            ]
        )

        def published(error: Exception | None) -> None:
            if isinstance(error, BusError) and state.sent_at == now:
                state.sent_at = now - self._timeout_s  # the next tick reports it as unanswered

        self._client.publish(address.topic(Channel.COMMAND, COMMAND), b"", qos=1, properties=properties, done=published)


def _clock_of(message: Message) -> float | None:
    """Return the node's clock from a reply; None if the reply has none."""
    try:
        value: Any = orjson.loads(message.payload)["value"]["at"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e11 else None
