"""Client ids with a token that nobody can guess, and the move from the ids of before."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.causes import refused
from hedgerow.bus.identity import moving_client
from hedgerow.bus.identity.client_ids import FILE, client_id, client_token, former_client_id
from hedgerow.bus.identity.moving_client import FormerSession, MovingClient, connect_or_move
from hedgerow.testing import Mosquitto

OLD = "hedgerow/r/s/n/p"
TOPIC = "hedgerow/v1/r/s/n/reply/move-p"
Eventually = Callable[..., Awaitable[None]]


class Frames:
    """A client that records payloads, and acknowledges them unless told not to."""

    def __init__(self, url: str, folder: Path, *, acks: bool = True, former: FormerSession | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.messages: list[Message] = []
        self.acks = acks
        options = ClientOptions(
            url=url,
            client_id=client_id("r/s/n", client_token(folder), "p"),
            session_file=folder / "links" / "p",
            receive_maximum=8,
            min_backoff_s=0.02,
            max_backoff_s=0.1,
        )
        former = former or FormerSession(OLD, folder / "sessions" / "p", TOPIC)
        self.client = connect_or_move(options, former, self._take, on_event=lambda *event: self.events.append(event))

    def _take(self, messages: list[Message]) -> None:
        self.messages += messages
        if self.acks:
            for message in messages:
                self.client.ack(message)

    @property
    def payloads(self) -> list[str]:
        return [bytes(message.payload).decode() for message in self.messages]

    def moved(self) -> bool:
        return isinstance(self.client, MovingClient) and not self.client.moving


async def leave_session(url: str, folder: Path, filters: dict[str, int] | None = None, count: int = 20) -> None:
    """Do what an earlier version did: leave a session with waiting messages, and its note."""
    options = ClientOptions(url=url, client_id=OLD, session_file=folder / "sessions" / "p")
    async with Client(options, lambda _: None) as client:
        await client.subscribe(filters or {"frames/#": 1})
        await client.wait_connected(60)
    await publish(url, range(count))


async def publish(url: str, numbers: range, topic: str = "frames/a") -> None:
    async with Client(ClientOptions(url=url), lambda _: None) as sender:
        for number in numbers:
            await sender.publish_and_wait(topic, b"%d" % number)


def test_a_token_is_made_once_private_and_kept(tmp_path: Path) -> None:
    token = client_token(tmp_path / "state")
    path = tmp_path / "state" / FILE
    assert len(bytes.fromhex(token)) == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert client_token(tmp_path / "state") == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert client_token(tmp_path / "other") != token


def test_a_damaged_token_is_replaced_and_one_that_cannot_be_stored_lasts_as_long_as_the_process(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("short")
    token = client_token(tmp_path)
    assert client_token(tmp_path) == token != "short"
    (tmp_path / "file").touch()
    assert client_token(tmp_path / "file") == client_token(tmp_path / "file")


def test_a_token_that_could_not_be_stored_is_stored_later(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    token = client_token(tmp_path / "state")
    (tmp_path / "state").unlink()
    assert client_token(tmp_path / "state") == token
    assert (tmp_path / "state" / FILE).read_text().strip() == token


async def test_a_token_that_is_lost_takes_its_session_along_and_that_is_told(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    for kinds in ([], ["session-lost"], []):
        frames = Frames(mosquitto.url, tmp_path)
        async with frames.client:
            await frames.client.subscribe({"frames/#": 1})
            await frames.client.wait_connected(60)
        assert [kind for kind, _ in frames.events] == kinds
        if not kinds:
            (tmp_path / FILE).write_text("")


def test_errors_do_not_show_the_token(tmp_path: Path) -> None:
    token = client_token(tmp_path)
    for reason in (0x85, 0x86, 0x87):
        error = refused("broker", reason, "", None if reason == 0x86 else "u", client_id("r/s/n", token, "p"))
        assert "hedgerow/r/s/n/p/…" in error.remedy
        assert token not in f"{error}{error.remedy}"
    assert former_client_id("r/s/n", "p") == OLD


async def test_the_note_of_a_session_is_private(mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually) -> None:
    frames = Frames(mosquitto.url, tmp_path)
    async with frames.client:
        await frames.client.wait_connected(60)
    assert stat.S_IMODE((tmp_path / "links" / "p").stat().st_mode) == 0o600


async def test_what_waits_in_the_former_session_comes_once_and_in_order(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    """Queued before the upgrade, and published during it."""
    await leave_session(mosquitto.url, tmp_path)
    frames = Frames(mosquitto.url, tmp_path)
    sending = asyncio.create_task(publish(mosquitto.url, range(20, 400)))
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(frames.moved)
        await sending
        await publish(mosquitto.url, range(400, 420))
        await eventually(lambda: len(frames.messages) >= 420)
        assert frames.payloads == [str(number) for number in range(420)]
    assert not (tmp_path / "sessions" / "p").exists()
    assert frames.events == []

    await publish(mosquitto.url, range(420, 440))  # wait in the own session
    again = Frames(mosquitto.url, tmp_path)
    assert type(again.client) is Client
    async with again.client:
        await again.client.subscribe({"frames/#": 1})
        await eventually(lambda: len(again.messages) >= 20)
    assert again.payloads == [str(number) for number in range(420, 440)]
    intruder = Client(ClientOptions(url=mosquitto.url, client_id=OLD), lambda _: None)
    async with intruder:
        await intruder.wait_connected(60)
        assert intruder.received == 0


async def test_equal_messages_are_neither_lost_nor_repeated(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    """A sensor that sends the same bytes again: messages cannot be told apart by their content."""
    await leave_session(mosquitto.url, tmp_path, count=0)
    frames = Frames(mosquitto.url, tmp_path)

    async def send() -> None:
        async with Client(ClientOptions(url=mosquitto.url), lambda _: None) as sender:
            for _ in range(300):
                await sender.publish_and_wait("frames/a", b"1")

    sending = asyncio.create_task(send())
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await sending
        await eventually(frames.moved)
        await publish(mosquitto.url, range(2, 3))
        await eventually(lambda: "2" in frames.payloads)
    assert frames.payloads == ["1"] * 300 + ["2"]


async def test_messages_published_while_the_former_ones_are_processed_come_once(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    """The former session lasts until its messages are acknowledged, and receives everything meanwhile."""
    await leave_session(mosquitto.url, tmp_path, count=4)
    frames = Frames(mosquitto.url, tmp_path, acks=False)
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(lambda: frames.client.sent > 0 and len(frames.messages) >= 4)
        frames.acks = True
        await publish(mosquitto.url, range(4, 40))
        await eventually(lambda: len(frames.messages) >= 40)
        assert not frames.moved()
        for message in frames.messages[:4]:
            frames.client.ack(message)
        await eventually(frames.moved)
        await publish(mosquitto.url, range(40, 41))
        await eventually(lambda: len(frames.messages) >= 41)
    assert frames.payloads == [str(number) for number in range(41)]


async def test_messages_behind_slow_ones_are_not_given_up(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 8 fill the Receive Maximum and take longer than a marker may; 12 more wait behind them."""
    monkeypatch.setattr(moving_client, "_MARKER_S", 0.01)
    monkeypatch.setattr(moving_client, "_WAITS", 2)
    await leave_session(mosquitto.url, tmp_path)
    frames = Frames(mosquitto.url, tmp_path, acks=False)
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(lambda: len(frames.messages) >= 8)
        sent = frames.client._former.sent  # type: ignore[attr-defined]
        await eventually(lambda: frames.client._former.sent > sent + 6)  # type: ignore[attr-defined]
        assert not frames.moved()
        frames.acks = True
        for message in frames.messages[:8]:
            frames.client.ack(message)
        await eventually(frames.moved)
    assert frames.payloads == [str(number) for number in range(20)]


async def test_a_run_that_ends_during_the_move_loses_nothing(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    """The first run acknowledges nothing, so the move cannot end; what it has seen comes again."""
    await leave_session(mosquitto.url, tmp_path)
    first = Frames(mosquitto.url, tmp_path, acks=False)
    async with first.client:
        await first.client.subscribe({"frames/#": 1})
        await eventually(lambda: len(first.messages) >= 8)  # its Receive Maximum
        await publish(mosquitto.url, range(20, 30))
    second = Frames(mosquitto.url, tmp_path)
    async with second.client:
        await second.client.subscribe({"frames/#": 1})
        await eventually(second.moved)
        await publish(mosquitto.url, range(30, 31))
        await eventually(lambda: "30" in second.payloads)
    assert second.payloads == [str(number) for number in range(31)]


async def test_a_session_that_has_expired_is_told_and_does_not_delay(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    await leave_session(mosquitto.url, tmp_path)
    mosquitto.kill()
    mosquitto.start()  # it has forgotten everything
    frames = Frames(mosquitto.url, tmp_path)
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(frames.moved)
        await publish(mosquitto.url, range(5))
        await eventually(lambda: len(frames.messages) >= 5)
    assert frames.payloads == ["0", "1", "2", "3", "4"]
    assert [kind for kind, _ in frames.events] == ["session-lost"]


async def test_subscriptions_of_somebody_else_in_the_former_session_give_no_frames(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually
) -> None:
    await leave_session(mosquitto.url, tmp_path, {"frames/#": 1, "false/#": 1}, count=3)
    await publish(mosquitto.url, range(100, 103), "false/a")
    frames = Frames(mosquitto.url, tmp_path)
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(frames.moved)
    assert frames.payloads == ["0", "1", "2"]


async def test_frames_shared_in_a_group_come_once(mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually) -> None:
    """Each goes to one of the two sessions."""
    await leave_session(mosquitto.url, tmp_path, {"$share/g/frames/#": 1})
    frames = Frames(mosquitto.url, tmp_path)
    sending = asyncio.create_task(publish(mosquitto.url, range(20, 200)))
    async with frames.client:
        await frames.client.subscribe({"$share/g/frames/#": 1})
        await sending
        await eventually(frames.moved)
        await eventually(lambda: len(frames.messages) >= 200)
    assert sorted(map(int, frames.payloads)) == list(range(200))


@pytest.mark.parametrize("clean_start", [True, False])
async def test_whoever_takes_the_former_id_again_and_again_stops_nothing(
    mosquitto: Mosquitto, tmp_path: Path, eventually: Eventually, clean_start: bool
) -> None:
    """What waited is gone, as before; what is published from now on is not."""
    await leave_session(mosquitto.url, tmp_path, count=0)
    frames, attacking = Frames(mosquitto.url, tmp_path), True

    async def attack() -> None:
        while attacking:
            thief = Client(ClientOptions(url=mosquitto.url, client_id=OLD, clean_start=clean_start), lambda _: None)
            async with thief:
                await thief.wait_connected(60)

    attacker = asyncio.create_task(attack())
    async with frames.client:
        await frames.client.subscribe({"frames/#": 1})
        await eventually(frames.moved)
        await publish(mosquitto.url, range(50))
        await eventually(lambda: len(set(frames.payloads)) >= 50)
        attacking = False
        await attacker
    assert {"session-left", "session-lost"} & {kind for kind, _ in frames.events}
