"""Attempts on the move from a client id that others know to one of its own: killed at every step, strangers, a flood.

Each begins as an earlier version left it: a session with frames that wait. Afterwards each frame has come, in its order; twice
only where the process was killed, as QoS 1 allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.identity.client_ids import client_id, client_token
from hedgerow.bus.identity.moving_client import FormerSession, MovingClient, connect_or_move
from hedgerow.testing import Mosquitto

STEPS = (
    "_connect",
    "_publish_marker",
    "_from_former",
    "_marker_arrived",
    "_start_own",
    "_from_own",
    "_drop_held",
    "_pass_held",
)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


class Upgrade:
    """A client's sessions, before and after the upgrade, on a broker that others use too."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.url, self.folder, self.name = url, folder, name
        self.former = FormerSession(f"hedgerow/{name}", folder / "former", f"{name}/move")
        self.received: list[int] = []
        self.events: list[str] = []

    async def leave(self, count: int) -> None:
        options = ClientOptions(url=self.url, client_id=self.former.client_id, session_file=self.former.mark)
        async with Client(options, lambda _: None) as client:
            await client.subscribe({f"{self.name}/in/#": 1})
            await client.wait_connected(60)
        await self.publish(range(count))

    async def publish(self, numbers: range) -> None:
        async with Client(ClientOptions(url=self.url), lambda _: None) as sender:
            for number in numbers:
                sender.publish(f"{self.name}/in/a", b"%d" % number, qos=1)
            await sender.flush(60)

    def client(self) -> Client:
        def take(messages: list[Message]) -> None:
            self.received += [int(bytes(message.payload)) for message in messages]
            for message in messages:
                client.ack(message)

        options = ClientOptions(
            url=self.url, client_id=client_id(self.name, client_token(self.folder)), session_file=self.folder / "own",
            receive_maximum=8, min_backoff_s=0.01, max_backoff_s=0.05,
        )  # fmt: skip
        client = connect_or_move(options, self.former, take, on_event=lambda kind, _: self.events.append(kind))
        return client

    async def finish(self, count: int) -> None:
        """Run until the move is over, or was over before, and all frames have come."""
        async with self.client() as client:
            await client.subscribe({f"{self.name}/in/#": 1})
            await until(lambda: not getattr(client, "moving", False) and len(set(self.received)) >= count)

    @property
    def firsts(self) -> list[int]:
        return list(dict.fromkeys(self.received))


@pytest.fixture
def upgrade(broker: Mosquitto, topic_prefix: str, tmp_path: Path) -> Upgrade:
    return Upgrade(broker.url, tmp_path, topic_prefix)


def kill(client: Client) -> None:
    """End a client as a killed process does: nothing more is read, written or acknowledged."""
    for session in (client._session, client._former._session):  # type: ignore[attr-defined]
        if session._task is not None:
            session._task.cancel()
        session.on_messages = lambda _: None
        if session.link is not None:
            session.link.abort(ConnectionAbortedError("killed"))
            session.link._out.clear()
    if client._task is not None:  # type: ignore[attr-defined]
        client._task.cancel()  # type: ignore[attr-defined]


@pytest.mark.parametrize("time_of_step", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_move_that_is_killed_at_any_step_loses_nothing(
    upgrade: Upgrade, step: str, before: bool, time_of_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade.leave(12)
    killed = asyncio.Event()
    original = getattr(MovingClient, step)
    calls = 0

    def counted(self: MovingClient, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == time_of_step and before:
            kill(self)
            killed.set()
            return None
        value = original(self, *args)
        if calls == time_of_step:
            kill(self)
            killed.set()
        return value

    monkeypatch.setattr(MovingClient, step, counted)
    first = upgrade.client()
    first.resume()
    subscribing = asyncio.create_task(first.subscribe({f"{upgrade.name}/in/#": 1}))
    await until(lambda: killed.is_set() or not getattr(first, "moving", True))
    subscribing.cancel()
    if not killed.is_set():
        kill(first)
    monkeypatch.undo()
    await upgrade.publish(range(12, 16))

    await upgrade.finish(16)
    assert upgrade.firsts == list(range(16))
    assert "session-left" not in upgrade.events


async def test_a_flood_during_the_move_comes_once_and_in_order(upgrade: Upgrade) -> None:
    await upgrade.leave(50)
    sending = asyncio.create_task(upgrade.publish(range(50, 3000)))
    await upgrade.finish(3000)
    await sending
    assert upgrade.received == list(range(3000))


@pytest.mark.parametrize("payload", [b"", b"1", b"9" * 400, b"\xff", b"0123456789abcdef1"], ids=repr)
async def test_a_stranger_who_publishes_on_the_marker_topic_neither_stops_nor_cuts_the_move(
    upgrade: Upgrade, payload: bytes
) -> None:
    """Markers have a nonce; others are neither frames nor cuts."""
    await upgrade.leave(12)
    strange = True

    async def disturb() -> None:
        async with Client(ClientOptions(url=upgrade.url), lambda _: None) as client:
            while strange:
                await client.publish_and_wait(upgrade.former.marker_topic, payload)

    stranger = asyncio.create_task(disturb())
    sending = asyncio.create_task(upgrade.publish(range(12, 100)))
    await upgrade.finish(100)
    strange = False
    await asyncio.gather(stranger, sending)
    assert upgrade.received == list(range(100))


@pytest.mark.parametrize(("keeps_s", "told"), [(0, ["session-lost"]), (3600, [])], ids=["ends it", "leaves its own"])
async def test_a_stranger_who_ends_the_former_session_takes_only_what_waited_there(
    upgrade: Upgrade, keeps_s: int, told: list[str]
) -> None:
    """What waited is lost, as before the upgrade; what comes later is not. A session put in its place looks like the former one."""
    await upgrade.leave(12)
    options = ClientOptions(
        url=upgrade.url, client_id=upgrade.former.client_id, clean_start=True, session_expiry_s=keeps_s
    )
    async with Client(options, lambda _: None) as thief:
        await thief.wait_connected(60)
    async with upgrade.client() as client:
        await client.subscribe({f"{upgrade.name}/in/#": 1})
        await until(lambda: not getattr(client, "moving", False))
        await upgrade.publish(range(100, 120))
        await until(lambda: len(upgrade.received) >= 20)
    assert upgrade.received == list(range(100, 120))
    assert upgrade.events == told
