"""Frames from a tool to the broker: in order, and over as many connections as it takes.

Rules:
- QoS 1: what was not acknowledged when the broker went away goes out again, before anything newer and as it was, so
  that a receiver can tell by the id what came twice.
- QoS 0: nothing is sent twice. What was under way when the broker went away, and what fell due until it was back, is
  lost and counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import aiomqtt
import typer
from paho.mqtt.properties import Properties

from hedgerow.cli.base.client import Connection
from hedgerow.cli.base.connection import BrokerUnavailable, connected
from hedgerow.cli.base.console import plural
from hedgerow.config import BrokerSection

_IN_FLIGHT: Final = 20
"""QoS 1 messages under way at once: what Mosquitto grants a client unless told otherwise."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True, eq=False)
class OutgoingFrame:
    """A frame on its way.

    Attributes:
        due: when it is to go out, in the time of `time.monotonic()`; None: whenever it can.
        handed_over: whether a connection has got it.
    """

    topic: str
    payload: bytes
    properties: Properties
    due: float | None
    handed_over: bool = False


class Sender:
    """Sends frames as they come, and stays at it while the broker is away.

    Args:
        frames: what to send. A frame is asked for when there is room for it.
        give_up_after_s: longest time without the broker; 0: none at all.
        advance: called after each frame.
    Attributes:
        sent: frames handed to the broker; with QoS 1, those it acknowledged.
        lost: frames that the broker did not get, or never acknowledged.
        bytes: of the payloads of the frames sent.
        reasons: how often each reason code came with an acknowledgement.
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
        self._patience = _Patience(give_up_after_s)
        self._waiting: dict[OutgoingFrame, None] = {}  # not sent yet, oldest first
        self._under_way: set[asyncio.Task[None]] = set()
        self._back_at: float | None = None

    async def run(self, broker: BrokerSection) -> None:
        """Send everything.

        Raises:
            BusError: the broker cannot be reached at first, refuses, or stays away for too long.
            ConfigError: a certificate or password file cannot be read.
        """
        was_there = False
        while True:
            try:
                async with connected(broker) as client:
                    if was_there:
                        typer.echo(f"broker back, {plural(len(self._waiting), 'frame')} to send again", err=True)
                        self._back_at = time.monotonic()
                    was_there = True
                    try:
                        await self._send_all(client)
                    finally:
                        self.reasons.update(client.reasons)
                    return
            except BrokerUnavailable:
                pause_s = self._patience.pause_s(self.sent) if was_there else None
                if pause_s is None:
                    self.lost += len(self._waiting)
                    raise
                if self._patience.fresh:
                    typer.echo("broker away, trying again…", err=True)
                await asyncio.sleep(pause_s)

    async def _send_all(self, client: Connection) -> None:
        try:
            for frame in list(self._waiting):
                await self._hand_over(client, frame)
            async for frame in self._frames:
                if self._qos == 0 and frame.due is not None and self._back_at is not None and frame.due < self._back_at:
                    self.lost += 1
                    continue
                self._waiting[frame] = None
                client.raise_if_lost()  # while we waited for the frame: it is not lost, then, but goes to the next
                await self._hand_over(client, frame)
                self._advance()
            await self._wait_for_all()
        except aiomqtt.MqttError:
            if self._qos == 0:
                kept = {frame: None for frame in self._waiting if not frame.handed_over}
                self.lost += len(self._waiting) - len(kept)
                self._waiting = kept
            raise
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._under_way.clear()

    async def _hand_over(self, client: Connection, frame: OutgoingFrame) -> None:
        frame.handed_over = True
        self._under_way.add(asyncio.create_task(self._send_one(client, frame)))
        if len(self._under_way) >= _IN_FLIGHT:
            await self._wait_for(asyncio.FIRST_COMPLETED)

    async def _wait_for_all(self) -> None:
        if self._under_way:
            await self._wait_for(asyncio.FIRST_EXCEPTION)

    async def _wait_for(self, when: str) -> None:
        done, _ = await asyncio.wait(self._under_way, return_when=when)
        for task in done:
            task.result()
        self._under_way -= done

    async def _send_one(self, client: Connection, frame: OutgoingFrame) -> None:
        await client.send(frame.topic, frame.payload, qos=self._qos, properties=frame.properties)
        del self._waiting[frame]
        self.sent += 1
        self.bytes += len(frame.payload)


class _Patience:
    """How long to wait for a broker that is away, and when to give up.

    Attributes:
        fresh: whether it has gone away just now.
    """

    def __init__(self, give_up_after_s: float) -> None:
        self.fresh = False
        self._give_up_after_s = give_up_after_s
        self._since = 0.0
        self._sent: int | None = None
        self._next_s = _FIRST_PAUSE_S

    def pause_s(self, sent: int) -> float | None:
        """Seconds until the next attempt; None: enough.

        Args:
            sent: frames that got through so far. A broker that takes connections and no frames counts as away.
        """
        now = time.monotonic()
        self.fresh = sent != self._sent
        if self.fresh:
            self._since, self._sent, self._next_s = now, sent, _FIRST_PAUSE_S
        left_s = self._since + self._give_up_after_s - now
        if left_s <= 0:
            return None
        pause_s, self._next_s = min(self._next_s, left_s), min(self._next_s * 2, _LONGEST_PAUSE_S)
        return pause_s
