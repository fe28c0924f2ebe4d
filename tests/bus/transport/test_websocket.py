"""MQTT over WebSocket, with Mosquitto; and with a server that frames as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve

from hedgerow.bus import ClientOptions
from hedgerow.bus.connect import parse_broker_url
from hedgerow.bus.properties import encode_varint
from hedgerow.testing import Mosquitto

MakeListener = Callable[..., Any]


@pytest.fixture
def websockets(held_port: int) -> Iterator[tuple[str, Mosquitto]]:
    """A broker with a WebSocket listener: its URL, and the broker."""
    with Mosquitto(config=[f"listener {held_port}", "protocol websockets", "allow_anonymous true"]) as broker:
        yield f"ws://127.0.0.1:{held_port}", broker


@pytest.mark.parametrize("path", ["", "/", "/mqtt", "/some/where"])
async def test_messages_of_any_size_arrive_in_order(
    websockets: tuple[str, Mosquitto], listener: MakeListener, path: str
) -> None:
    sizes = [0, 1, 125, 126, 65_000, 5]
    async with listener(websockets[0] + path) as client:
        await client.wait_connected(60)
        await client.subscribe({"a": 1})
        for size in sizes:
            client.publish("a", bytes([size % 251]) * size, qos=1)
        payloads = await client.receive(len(sizes))

    assert payloads == [bytes([size % 251]) * size for size in sizes]


async def test_large_messages_are_sent(websockets: tuple[str, Mosquitto], listener: MakeListener) -> None:
    """To a client without WebSocket: Mosquitto 2.0.11 delivers nothing above 64 KiB over one."""
    sizes = [65_535, 65_536, 3_000_000, 1]
    url, broker = websockets
    async with listener(url) as client, listener(broker.url) as witness:
        await client.wait_connected(60)
        await witness.wait_connected(60)
        await witness.subscribe({"a": 1})
        for size in sizes:
            await client.publish_and_wait("a", b"x" * size)
        assert [len(payload) for payload in await witness.receive(len(sizes))] == sizes


async def test_a_session_survives_restarts_of_the_broker(
    websockets: tuple[str, Mosquitto], listener: MakeListener, eventually: Callable[..., Any]
) -> None:
    url, broker = websockets
    async with listener(url, client_id="node") as client:
        await client.subscribe({"a": 1})
        await client.wait_connected(60)
        for number in range(3):
            broker.restart()
            client.publish("a", bytes([number]), qos=1)
            assert await client.receive(number + 1) == [bytes([each]) for each in range(number + 1)]
        assert client.reconnects >= 3


async def test_a_keep_alive_is_answered(
    websockets: tuple[str, Mosquitto], listener: MakeListener, eventually: Callable[..., Any]
) -> None:
    async with listener(websockets[0], keepalive_s=2) as client:
        await client.wait_connected(60)
        before = client.bytes_received
        await eventually(lambda: client.bytes_received >= before + 4)  # two replies to pings
        assert client.reconnects == 0


async def test_with_tls_the_authority_is_checked(tmp_path: Path, held_port: int, listener: MakeListener) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    server = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    config = [
        f"listener {held_port}",
        "protocol websockets",
        f"certfile {tmp_path}/cert.pem",
        f"keyfile {tmp_path}/key.pem",
    ]
    url = f"wss://localhost:{held_port}/mqtt"
    with Mosquitto(config=[*config, "allow_anonymous true"]):
        async with listener(url, ca_file=tmp_path / "ca.pem") as client:
            await client.wait_connected(60)
            await client.subscribe({"a": 1})
            await client.publish_and_wait("a", b"x" * 100_000)
            assert await client.receive(1) == [b"x" * 100_000]
        async with listener(url, ca_file=tmp_path / "stranger.pem") as client:
            assert "is not trusted" in str(await client.failure())


CONNACK = b"\x20\x03\x00\x00\x00"
PUBLISH = b"\x30\x06\x00\x01a\x00hi"


@asynccontextmanager
async def framing(send: Callable[[ServerConnection], Any]) -> AsyncIterator[str]:
    """A server that replies to CONNECT in frames of its own choice. Yields: its URL."""

    async def handle(connection: ServerConnection) -> None:
        await connection.recv()
        await send(connection)
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0, subprotocols=["mqtt"]) as server:  # type: ignore[list-item]
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/mqtt"


async def byte_by_byte(connection: ServerConnection) -> None:
    for byte in CONNACK + PUBLISH:
        await connection.send(bytes([byte]))


async def all_at_once(connection: ServerConnection) -> None:
    await connection.send(CONNACK + PUBLISH)


async def fragmented(connection: ServerConnection) -> None:
    await connection.send([CONNACK[:2], CONNACK[2:] + PUBLISH[:3], b"", PUBLISH[3:]])


async def with_pings(connection: ServerConnection) -> None:
    await connection.send(CONNACK + PUBLISH[:4])
    await (await connection.ping(b"alive?"))
    await connection.send(PUBLISH[4:])


async def test_large_messages_are_received(listener: MakeListener) -> None:
    body = b"\x00\x01a\x00" + b"x" * 3_000_000

    async def send(connection: ServerConnection) -> None:
        await connection.send(CONNACK + b"\x30" + encode_varint(len(body)) + body)

    async with framing(send) as url, listener(url) as client:
        assert [len(payload) for payload in await client.receive(1)] == [3_000_000]


@pytest.mark.parametrize("send", [byte_by_byte, all_at_once, fragmented, with_pings])
async def test_frames_are_a_byte_stream(listener: MakeListener, send: Callable[[ServerConnection], Any]) -> None:
    async with framing(send) as url, listener(url) as client:
        assert await client.receive(1) == [b"hi"]


async def test_a_close_by_the_server_is_a_lost_connection(
    listener: MakeListener, eventually: Callable[..., Any]
) -> None:
    async def accept_and_close(connection: ServerConnection) -> None:
        await connection.send(CONNACK)
        await connection.close()

    async with framing(accept_and_close) as url, listener(url) as client:
        await eventually(lambda: client.reconnects >= 2)
        assert any("closed the connection" in reason for _, reason in client.states)


async def test_text_instead_of_bytes_is_no_mqtt(listener: MakeListener, eventually: Callable[..., Any]) -> None:
    async def send_text(connection: ServerConnection) -> None:
        await connection.send("hello")

    async with framing(send_text) as url, listener(url, connect_timeout_s=0.5) as client:
        await eventually(lambda: any(not up for up, _ in client.states))
        assert not client.connected


async def test_a_server_that_ends_the_handshake_is_reported(listener: MakeListener) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, listener(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        assert "closed the connection" in str(await client.failure())


@pytest.mark.parametrize(
    ("url", "port"),
    [("ws://host", 80), ("wss://host", 443), ("wss://host/path", 443), ("ws://host:9001/mqtt", 9001)],
)
def test_addresses(url: str, port: int) -> None:
    assert parse_broker_url(ClientOptions(url=url).url) == ("host", port)
