"""What a broker may take from a session: its memory, and the QoS of its subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hedgerow.bus import Client, ClientOptions
from hedgerow.errors import BusError
from hedgerow.testing import Mosquitto

Event = tuple[str, dict[str, Any]]


def make_client(url: str, events: list[Event], **options: Any) -> Client:
    options = {"client_id": "node", "min_backoff_s": 0.02, "max_backoff_s": 0.1, **options}
    return Client(ClientOptions(url=url, **options), print, on_event=lambda kind, detail: events.append((kind, detail)))


async def until_connected(client: Client, reconnects: int, eventually: Callable[..., Any]) -> None:
    await eventually(lambda: client.connected and client.reconnects >= reconnects)


async def test_a_broker_that_forgot_the_session_is_reported(
    mosquitto: Mosquitto, eventually: Callable[..., Any]
) -> None:
    events: list[Event] = []
    async with make_client(mosquitto.url, events) as client:
        await client.subscribe({"a": 1, "b": 0})
        await client.wait_connected(60)
        mosquitto.kill()  # it has written nothing
        mosquitto.start()
        await until_connected(client, 1, eventually)
        assert client.sessions_lost == 1

    ((kind, detail),) = events
    assert (kind, detail["filters"]) == ("session-lost", ["a"])
    assert "QoS 1 messages that have waited there since the link was lost" in detail["error"]
    assert "persistence true" in detail["remedy"]


@pytest.mark.parametrize(
    ("filters", "options"),
    [({"a": 0}, {}), ({}, {}), ({"a": 1}, {"session_expiry_s": 0})],
    ids=["only QoS 0", "no subscription", "no session wanted"],
)
async def test_a_session_in_which_nothing_waited_is_not_reported(
    mosquitto: Mosquitto, filters: dict[str, int], options: dict[str, Any], eventually: Callable[..., Any]
) -> None:
    events: list[Event] = []
    async with make_client(mosquitto.url, events, **options) as client:
        await client.subscribe(filters)
        await client.wait_connected(60)
        mosquitto.kill()
        mosquitto.start()
        await until_connected(client, 1, eventually)

    assert events == []


async def test_a_session_that_was_kept_is_not_reported(mosquitto: Mosquitto, eventually: Callable[..., Any]) -> None:
    events: list[Event] = []
    async with make_client(mosquitto.url, events) as client:
        await client.subscribe({"a": 1})
        await client.wait_connected(60)
        mosquitto.restart()
        await until_connected(client, 1, eventually)

    assert events == []


async def test_a_session_lost_between_two_runs_is_reported(mosquitto: Mosquitto, tmp_path: Path) -> None:
    events: list[Event] = []
    file = tmp_path / "state" / "sessions" / "p"

    async def run(**last: bool) -> None:
        async with make_client(mosquitto.url, events, session_file=file) as client:
            await client.subscribe({"a": 1})
            await client.wait_connected(60)
            await client.close(**last)

    await run()
    await run()
    assert events == [], "the first run had no session before, the second one found it"
    mosquitto.kill()
    mosquitto.start()
    await run()
    ((kind, detail),) = events
    assert (kind, detail["filters"]) == ("session-lost", ["a"])
    assert "since this node last ran" in detail["error"]
    await run(forget_session=True)
    await run()
    assert len(events) == 1, "a session that was given up is not missed"


async def test_a_session_of_another_broker_is_not_missed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "p").write_text("node mqtt://elsewhere:1883")
    async with make_client(mosquitto.url, events, session_file=tmp_path / "p") as client:
        await client.subscribe({"a": 1})
        await client.wait_connected(60)

    assert events == []


async def test_a_state_folder_that_cannot_be_written_does_no_harm(mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with make_client(mosquitto.url, [], session_file=tmp_path / "file" / "p") as client:
        await client.subscribe({"a": 1})
        await client.wait_connected(60)


async def test_without_a_listener_a_lost_session_is_logged(
    mosquitto: Mosquitto, eventually: Callable[..., Any]
) -> None:
    options = ClientOptions(url=mosquitto.url, client_id="node", min_backoff_s=0.02, max_backoff_s=0.1)
    with capture_logs() as logs:
        async with Client(options, print) as client:
            await client.subscribe({"a": 1})
            await client.wait_connected(60)
            mosquitto.kill()
            mosquitto.start()
            await until_connected(client, 1, eventually)

    assert [entry["filters"] for entry in logs if entry["event"] == "session-lost"] == [["a"]]


async def test_a_broker_with_maximum_qos_0_is_refused(listener: Callable[..., Any]) -> None:
    """It would end the connection at the first QoS 1 message, again and again."""
    with Mosquitto(config=["max_qos 0"]) as broker:
        async with listener(broker.url) as client:
            error = await client.failure()

    assert "QoS 0 only" in str(error)
    assert "max_qos 0" in error.remedy


@asynccontextmanager
async def fake_broker(granted: list[int]) -> AsyncIterator[tuple[str, list[int]]]:
    """Accept a client, and grant its n-th subscription with the n-th of these QoS. Yields: its URL, and packet types."""
    packets: list[int] = []
    replies = iter(granted)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, length = await reader.readexactly(2)
                body = await reader.readexactly(length)
                packets.append(kind >> 4)
                if kind >> 4 == 1:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif kind >> 4 == 8:
                    writer.write(b"\x90\x04" + body[:2] + b"\x00" + bytes([next(replies)]))
                elif kind >> 4 == 10:
                    writer.write(b"\xb0\x04" + body[:2] + b"\x00\x00")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", packets


async def test_a_lower_qos_is_reported_once(eventually: Callable[..., Any]) -> None:
    events: list[Event] = []
    async with fake_broker([0, 0]) as (url, _), make_client(url, events) as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        assert client.lowered == {"a": 0}
        await client.renew()
        await until_connected(client, 1, eventually)

    lowered = [detail for kind, detail in events if kind == "qos-lowered"]
    assert [detail["filters"] for detail in lowered] == [["a"]]
    assert "a (QoS 0)" in lowered[0]["error"]


async def test_a_lower_qos_can_be_refused(eventually: Callable[..., Any]) -> None:
    async with fake_broker([0]) as (url, packets), make_client(url, [], refuse_lower_qos=True) as client:
        await client.wait_connected(60)
        with pytest.raises(BusError, match=r"a \(QoS not supported\)"):
            await client.subscribe({"a": 1})
        await eventually(lambda: 10 in packets)
