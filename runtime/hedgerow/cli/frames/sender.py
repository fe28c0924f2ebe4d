"""Sends a tool's frames to the broker in order, over as many connections as that takes.

Rules:
- QoS 1: frames not acknowledged when the connection was lost are sent again unchanged, before newer ones, so that a
  receiver recognises duplicates by their id.
- QoS 0: nothing is sent twice. Frames in flight when the connection was lost, and frames due until it was back, are lost
  and counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import aiomqtt
from paho.mqtt.properties import Properties

from hedgerow.cli.base.client import Connection
from hedgerow.cli.base.connection import BrokerUnavailable, connected
from hedgerow.cli.base.console import echo, plural
from hedgerow.config import BrokerSection

_MAX_IN_FLIGHT: Final = 20
"""QoS 1 messages in flight at most: Mosquitto's default limit per client."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True, eq=False)
class OutgoingFrame:
    """A frame to send.

    Attributes:
        due: when to send it, by `time.monotonic()`; None: as soon as possible.
        attempted: whether it was passed to a connection.
    """

    topic: str
    payload: bytes
    properties: Properties
    due: float | None
    attempted: bool = False


class Sender:
    """Sends frames, and reconnects when the broker becomes unavailable.

    Args:
        frames: the frames; the next one is requested only when it can be sent.
        give_up_after_s: longest outage to wait for; 0: do not wait.
        advance: called after each frame.
    Attributes:
        sent: frames sent to the broker; with QoS 1, those it acknowledged.
        lost: frames the broker did not receive, or never acknowledged.
        bytes: bytes of payload in the frames sent.
        reasons: acknowledgements received, by reason code.
    """

    def __init__(
        self,
        frames: AsyncIterator[OutgoingFrame],
        qos: int,
        give_up_after_s: float,
        advance: Callable[[], None],
    ) -> None:
        self.sent = 0
        self.lost = 0
        self.bytes = 0
        self.reasons: Counter[int] = Counter()
        self._frames = frames
        self._qos = qos
        self._advance = advance
        self._retries = _Retries(give_up_after_s)
        self._unsent: dict[OutgoingFrame, None] = {}  # oldest first
        self._in_flight: set[asyncio.Task[None]] = set()
        self._reconnected_at: float | None = None

    async def run(self, broker: BrokerSection) -> None:
        """Send everything.

        Raises:
            BusError: the broker cannot be reached the first time, refuses, or stays unavailable for too long.
            ConfigError: a certificate or password file cannot be read.
        """
        connected_before = False
        while True:
            try:
                async with connected(broker) as client:
                    if connected_before:
                        echo(f"reconnected, {plural(len(self._unsent), 'frame')} to send again", err=True)
                        self._reconnected_at = time.monotonic()
                    connected_before = True
                    try:
                        await self._send_all(client)
                    finally:
                        self.reasons.update(client.reasons)
                    return
            except BrokerUnavailable:
                pause_s = self._retries.pause_s(self.sent) if connected_before else None
                if pause_s is None:
                    self.lost += len(self._unsent)
                    raise
                if self._retries.first:
                    echo("broker unavailable, retrying…", err=True)
                await asyncio.sleep(pause_s)

    async def _send_all(self, client: Connection) -> None:
        try:
            for frame in list(self._unsent):
                await self._start_sending(client, frame)
            async for frame in self._frames:
                if (
                    self._qos == 0
                    and frame.due is not None
                    and self._reconnected_at is not None
                    and frame.due < self._reconnected_at
                ):
                    self.lost += 1
                    continue
                self._unsent[frame] = None
                client.raise_if_lost()  # lost while waiting for the frame, which the next connection then sends
                await self._start_sending(client, frame)
                self._advance()
            await self._wait_for_all()
        except aiomqtt.MqttError:
            if self._qos == 0:
                unattempted = {frame: None for frame in self._unsent if not frame.attempted}
                self.lost += len(self._unsent) - len(unattempted)
                self._unsent = unattempted
            raise
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            self._in_flight.clear()

    async def _start_sending(self, client: Connection, frame: OutgoingFrame) -> None:
        frame.attempted = True
        self._in_flight.add(asyncio.create_task(self._send_one(client, frame)))
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            await self._wait_for(asyncio.FIRST_COMPLETED)

    async def _wait_for_all(self) -> None:
        if self._in_flight:
            await self._wait_for(asyncio.FIRST_EXCEPTION)

    async def _wait_for(self, when: str) -> None:
        done, _ = await asyncio.wait(self._in_flight, return_when=when)
        for task in done:
            task.result()
        self._in_flight -= done

    async def _send_one(self, client: Connection, frame: OutgoingFrame) -> None:
        await client.send(frame.topic, frame.payload, qos=self._qos, properties=frame.properties)
        del self._unsent[frame]
        self.sent += 1
        self.bytes += len(frame.payload)


class _Retries:
    """Decides how long to wait before connecting again, and when to give up.

    Attributes:
        first: whether the next attempt is the first of this outage.
    """

    def __init__(self, give_up_after_s: float) -> None:
        self.first = False
        self._give_up_after_s = give_up_after_s
        self._since = 0.0
        self._sent: int | None = None
        self._next_s = _FIRST_PAUSE_S

    def pause_s(self, sent: int) -> float | None:
        """Return the seconds until the next attempt; None: give up.

        Args:
            sent: frames sent so far. A broker that accepts connections but no frames counts as unavailable.
        """
        now = time.monotonic()
        self.first = sent != self._sent
        if self.first:
            self._since, self._sent, self._next_s = now, sent, _FIRST_PAUSE_S
        left_s = self._since + self._give_up_after_s - now
        if left_s <= 0:
            return None
        pause_s, self._next_s = min(self._next_s, left_s), min(self._next_s * 2, _LONGEST_PAUSE_S)
        return pause_s
