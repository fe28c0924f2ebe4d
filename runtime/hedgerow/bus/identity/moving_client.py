"""Client that moves from a session with a client id that others can guess to one of its own, without losing a frame.

    former session   waiting frames … ─▶ │ marker │
    own session            (held, dropped) marker │ frames … ─▶

A broker queues each message for all its subscribers in one step. So a message to both sessions, the marker, cuts both streams
at the same point: what came before it is taken from the former session, what came after it from the own one. Until the cut is
known, the own session's messages are held and not acknowledged, so nothing is lost if someone ends the former session meanwhile.
If this process ends meanwhile, the next run begins again: what the former session still has comes twice then, as QoS 1 allows.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from hedgerow import tasks
from hedgerow.bus.acknowledgements import Unacked
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.diagnosis import diagnose
from hedgerow.bus.message import Message
from hedgerow.errors import HedgerowError
from hedgerow.topics import matches

log = structlog.get_logger(__name__)

_MARKER_S: Final = 3.0
"""How long a marker may take when no message arrives before it."""
_WAITS: Final = 20
"""How often a marker is waited for while messages arrive or are processed, before the next one: a full queue drops markers too."""
_MARKERS: Final = 4
"""Markers sent in vain before the broker counts as not delivering them, for example because its rules forbid the topic."""
_MOST_RECONNECTS: Final = 5
"""Reconnects to the former session before it is left: somebody else uses its id too."""


@dataclass(frozen=True, slots=True)
class FormerSession:
    """A session to leave.

    Attributes:
        client_id: its id.
        mark: the note that the broker has it; removed when it has ended.
        marker_topic: a topic on which this client may publish and receive, and that nobody else uses.
    """

    client_id: str
    mark: Path
    marker_topic: str

    def exists(self, url: str) -> bool:
        """Whether an earlier run left this session at a broker."""
        return ClientOptions(url=url, client_id=self.client_id, session_file=self.mark).session_exists()


class _Left(NamedTuple):
    """Why a former session was left without a cut, and whether it is ended all the same."""

    why: str
    forget: bool


class MovingClient(Client):
    """A client that first takes what waits in a former session, and then ends it. See the module.

    Args:
        options, on_messages, on_state, on_event: as for `Client`; further event: `session-left`, when the former session could not
            be emptied.
        former: the session to leave.
    Attributes:
        moving: whether the former session may still deliver messages.
    """

    def __init__(
        self,
        options: ClientOptions,
        former: FormerSession,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[bool, str], None] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(options, self._from_own, on_state, on_event)
        self._take = on_messages
        self._on_event = on_event
        self._topic = former.marker_topic
        old = replace(options, client_id=former.client_id, session_file=former.mark, will=None, refuse_lower_qos=False)
        self._former = Client(old, self._from_former, on_event=on_event)
        self._filters: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.moving = True
        self._own_started = False
        self._paused = True
        self._taken = self._foreign = 0
        self._heard = 0  # messages of the former session, of any kind
        self._unacked: set[Unacked] = set()  # taken from the former session, not yet acknowledged
        self._settled = asyncio.Event()  # set when none of them is left
        self._nonce = secrets.token_hex(8).encode()
        self._markers = 0
        self._marker_seen = asyncio.Event()  # in the former session
        self._first_cut: int | None = None  # the first marker that cuts
        self._cut_link = 0  # the link of the former session, counted, on which it must arrive
        self._cut: int | None = None
        self._passes = asyncio.Event()  # the own session's messages go to `on_messages`
        self._held: list[Message] = []

    # As a client

    @property
    def connected(self) -> bool:
        """Whether messages can arrive, from the one session or the other."""
        return super().connected or (self.moving and self._former.connected)

    @property
    def sessions_lost(self) -> int:
        """Times the broker had forgotten one of the sessions."""
        return super().sessions_lost + self._former.sessions_lost

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until messages can arrive. Raises: BusError: it took longer."""
        await (self._former.wait_connected(timeout_s) if self.moving else super().wait_connected(timeout_s))

    async def subscribe(self, filters: Mapping[str, int]) -> None:
        """Subscribe in both sessions; see `Client`. The first call, after `resume`, begins the move."""
        self._filters |= filters
        if self.moving:
            self._connect()
            await self._former.subscribe(filters)
        await super().subscribe(filters)

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe in both sessions."""
        names = list(filters)
        for name in names:
            self._filters.pop(name, None)
        if self.moving:
            await self._former.unsubscribe(names)
        await super().unsubscribe(names)

    def ack(self, message: Message) -> None:
        """Acknowledge a message to the session that delivered it."""
        if message.unacked in self._unacked:
            self._unacked.discard(message.unacked)
            self._former.ack(message)
            if not self._unacked:
                self._settled.set()
        else:
            super().ack(message)

    def resume(self) -> None:
        """Connect: first as the former client, then as this one."""
        self._paused = False
        if self.moving:
            self._connect()
        else:
            super().resume()

    async def pause(self) -> None:
        """Disconnect but keep both sessions."""
        self._paused = True
        if self.moving:
            await self._former.pause()
        await super().pause()

    async def renew(self) -> None:
        """Reconnect with the current certificates."""
        if self.moving:
            await self._former.renew()
        await super().renew()

    async def close(self, *, send_will: bool = False, forget_session: bool = False, timeout_s: float = 5.0) -> None:
        """Disconnect for good. The next run goes on with the move."""
        if self._task is not None:
            await tasks.cancel(self._task)
        if self.moving:
            await self._former.close(forget_session=forget_session, timeout_s=timeout_s)
        await super().close(send_will=send_will, forget_session=forget_session, timeout_s=timeout_s)

    # The move

    async def _move(self) -> None:
        left: _Left | None
        try:
            left = await self._empty_former()
        except Exception as error:
            log.exception("session-move-failed")
            left = _Left(f"it could not be emptied: {error!r}", forget=False)
        if not self._own_started:
            self._start_own()
        await super().wait_connected()  # until then, only the former session receives
        if left is not None:
            self._report(left.why)
            self._pass_held()
        while not self._passes.is_set():  # the marker may not have fitted into the own session's queue
            with suppress(TimeoutError):
                async with asyncio.timeout(_MARKER_S):
                    await self._passes.wait()
                break
            self._publish_marker(self)
        forget = left is None or left.forget
        while self._unacked and forget:
            self._settled.clear()
            await self._settled.wait()
        await self._former.close(forget_session=forget)
        self.moving = False
        log.info("session-moved", messages=self._taken, foreign=self._foreign)
        await super().unsubscribe([self._topic])

    async def _empty_former(self) -> _Left | None:
        """Take what the former session has, up to the cut. Returns: None, or why there is no cut."""
        await self._former.subscribe({self._topic: 1})
        if refused := await self._connect_former():
            return _Left(f"the broker refuses its id, {refused}", forget=False)
        if left := await self._send_marker(self._former):  # when it arrives, what waited has arrived
            return left
        await super().subscribe({self._topic: 1})
        self._cut_link = self._former.reconnects
        self._start_own()
        await super().wait_connected()
        if any(name.startswith("$share/") for name in self._filters):
            self._pass_held()  # each message goes to one of the two sessions: nothing to drop
            await self._former.unsubscribe(self._filters)
            return await self._send_marker(self._former)
        self._first_cut = self._markers + 1
        left = await self._send_marker(self)
        if left is None and self._cut is None:
            why = "its link was lost at the wrong moment, perhaps to another client, so some messages may come twice"
            return _Left(why, forget=True)
        return left

    async def _connect_former(self) -> str:
        """Connect as the former client. Returns: why the broker refuses that client only, or ""."""
        while True:
            try:
                await self._former.wait_connected(_MARKER_S)
            except HedgerowError as error:
                if not getattr(error, "transient", True) and await diagnose(self.options) is None:
                    return str(error)
            else:
                return ""

    async def _send_marker(self, client: Client) -> _Left | None:
        """Send markers until the former session has received one. Returns: None, or why it never will."""
        vain = 0
        while vain < _MARKERS:
            await self._former.wait_connected()
            link = self._former.reconnects
            if link > _MOST_RECONNECTS:
                return _Left("another client uses its id too", forget=False)
            self._marker_seen.clear()
            self._publish_marker(client)
            for _ in range(_WAITS):
                heard = self._heard
                with suppress(TimeoutError):
                    async with asyncio.timeout(_MARKER_S):
                        await self._marker_seen.wait()
                    return None
                if self._former.reconnects != link:
                    break
                if heard == self._heard and not self._unacked:  # nothing is under way, so the marker is lost
                    vain += 1
                    break
        return _Left(f"messages to {self._topic} do not come back, so some messages may come twice", forget=True)

    def _publish_marker(self, client: Client) -> None:
        self._markers += 1
        client.publish(self._topic, self._nonce + b"%d" % self._markers, qos=1)

    def _connect(self) -> None:
        if self._paused or not self._filters:  # without filters, it is not known which messages are wanted
            return
        self._former.resume()
        if self._own_started:
            super().resume()
        if self._task is None:
            self._task = tasks.start(self._move(), "move to another session")

    def _start_own(self) -> None:
        self._own_started = True
        if not self._paused:
            super().resume()

    def _from_former(self, messages: list[Message]) -> None:
        self._heard += len(messages)
        taken: list[Message] = []
        for message in messages:
            if message.topic == self._topic:
                self._former.ack(message)
                self._marker_arrived(self._number(message))
            elif self._cut is not None:
                continue  # the own session has it too; unacknowledged here in case this process ends now
            elif message.malformed is not None or any(matches(name, message.topic) for name in self._filters):
                if message.unacked is not None:
                    self._unacked.add(message.unacked)
                taken.append(message)
            else:  # a subscription that somebody else made under this id
                self._foreign += 1
                self._former.ack(message)
        if taken:
            self._taken += len(taken)
            self._take(taken)

    def _marker_arrived(self, number: int) -> None:
        if not number or number < (self._first_cut or 0):
            return
        if self._cut is None and self._first_cut is not None and self._cut_link == self._former.reconnects:
            self._cut = number
            self._drop_held()
        self._marker_seen.set()

    def _number(self, message: Message) -> int:
        """Return the number of one of this run's markers; 0: it is none."""
        if message.topic != self._topic or bytes(message.payload[: len(self._nonce)]) != self._nonce:
            return 0
        return int(bytes(message.payload[len(self._nonce) :]))

    def _from_own(self, messages: list[Message]) -> None:
        if self._passes.is_set():
            if any(message.topic == self._topic for message in messages):
                messages = self._without_markers(messages)
            if messages:
                self._take(messages)
            return
        self._held += messages
        self._drop_held()

    def _drop_held(self) -> None:
        """Once the cut is known, drop what came before it, which the former session has delivered, and pass on the rest."""
        if self._cut is None:
            return
        for count, message in enumerate(self._held, 1):
            super().ack(message)
            if self._number(message) >= self._cut:
                del self._held[:count]
                self._pass_held()
                return
        self._held.clear()

    def _pass_held(self) -> None:
        self._passes.set()
        held, self._held = self._held, []
        if held:
            self._from_own(held)

    def _without_markers(self, messages: list[Message]) -> list[Message]:
        for message in messages:
            if message.topic == self._topic:
                super().ack(message)
        return [message for message in messages if message.topic != self._topic]

    def _report(self, why: str) -> None:
        detail = {
            "error": f"The session that an earlier version left at the broker could not be taken over in order: {why}",
            "remedy": "Read the broker's log: who else connects as this client, and what is refused? What still waits in that session "
            "expires there; the next start tries again.",
        }
        if self._on_event is None:
            log.warning("session-left", **detail)
        else:
            self._on_event("session-left", detail)


def connect_or_move(
    options: ClientOptions,
    former: FormerSession | None,
    on_messages: Callable[[list[Message]], None],
    on_state: Callable[[bool, str], None] | None = None,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> Client:
    """Return a client; if an earlier run left the former session at this broker, one that moves."""
    if former is not None and former.exists(options.url):
        return MovingClient(options, former, on_messages, on_state, on_event)
    return Client(options, on_messages, on_state, on_event)
