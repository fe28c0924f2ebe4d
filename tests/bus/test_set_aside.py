"""A message over which a real broker ends the link is set aside, and everything behind it flows on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.wire import unchecked

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outgoing import Outgoing
from hedgerow.bus.packets import encode_publish_head
from hedgerow.bus.properties import Property
from hedgerow.bus.set_aside import messages as set_aside
from hedgerow.bus.set_aside import restarts
from hedgerow.bus.set_aside.messages import MessageSetAside
from hedgerow.errors import BusError
from hedgerow.testing import Mosquitto

BAD = {
    "escape in an id": [(Property.USER, ("id", "\x1b[2J"))],
    "control in a content type": [(Property.CONTENT_TYPE, "a/\x85")],
    "non-character in a name": [(Property.USER, ("\ufdd0", "x"))],
    "surrogate": [(Property.USER, ("id", "\ud800"))],
}


@pytest.mark.parametrize("pairs", BAD.values(), ids=BAD)
async def test_a_message_that_ends_the_link_is_set_aside_and_those_around_it_arrive(
    broker: Mosquitto, topic_prefix: str, tmp_path: Path, pairs: list[Any]
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    received: list[bytes] = []
    arrived = asyncio.Event()

    def receive(messages: list[Message]) -> None:
        received.extend(bytes(each.payload) for each in messages)
        if len(set(received)) == 6:
            arrived.set()

    outcomes: dict[int, Exception | None] = {}
    options = ClientOptions(
        url=broker.url, client_id=f"{topic_prefix}-out", min_backoff_s=0.01, set_aside_folder=tmp_path / "aside"
    )
    reader = ClientOptions(url=broker.url, client_id=f"{topic_prefix}-in")
    async with (
        Client(reader, receive) as into,
        Client(options, lambda _: None, on_event=lambda kind, detail: events.append((kind, detail))) as out,
    ):
        await into.subscribe({f"{topic_prefix}/#": 1})
        await into.wait_connected(30)
        await out.wait_connected(30)
        for number in range(7):
            raw = unchecked.properties(pairs) if number == 3 else b""
            out.publish(
                f"{topic_prefix}/{number}", b"%d" % number, qos=1, properties=raw,
                done=lambda error, number=number: outcomes.__setitem__(number, error),  # type: ignore[misc]
            )  # fmt: skip
        await out.flush(30)
        async with asyncio.timeout(30):
            await arrived.wait()
        assert (out.set_aside, out.outstanding, out.outstanding_bytes) == (1, 0, 0)

    first = list(dict.fromkeys(received))
    assert first == [b"0", b"1", b"2", b"4", b"5", b"6"], "in order"
    assert isinstance(outcomes.pop(3), MessageSetAside)
    assert outcomes == dict.fromkeys((0, 1, 2, 4, 5, 6))
    ((kind, detail),) = [event for event in events if event[0] == "publish-set-aside"]
    assert detail["remedy"]
    assert str(detail).isprintable()
    (file,) = (tmp_path / "aside").iterdir()
    assert (kind, detail["kept_as"], file.stat().st_mode & 0o777) == ("publish-set-aside", str(file), 0o600)
    kept = orjson.loads(file.read_bytes())
    assert base64.b64decode(kept["properties_base64"]) == unchecked.properties(pairs)
    assert (kept["topic"], base64.b64decode(kept["payload_base64"])) == (f"{topic_prefix}/3", b"3")


async def test_a_broker_that_dies_again_and_again_costs_no_message(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """Each time with messages in flight."""
    options = ClientOptions(url=mosquitto.url, client_id=topic_prefix, min_backoff_s=0.01, max_backoff_s=0.05)
    done: list[Exception | None] = []
    async with Client(options, lambda _: None) as out:
        await out.wait_connected(30)
        for _ in range(4):
            mosquitto.kill()
            for number in range(5):
                out.publish(f"{topic_prefix}/{number}", b"x" * 1000, qos=1, done=done.append)
            mosquitto.start()
            await out.wait_connected(30)
        await out.flush(30)
    assert (done, out.set_aside) == ([None] * 20, 0)


class FallingBroker:
    """Answers as a broker does, and ends itself, with all connections, at each of the first publishes."""

    def __init__(self, port: int, falls: int) -> None:
        self.port = port
        self.falls = falls
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.fell = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first = (await reader.readexactly(1))[0]
                body = await reader.readexactly((await reader.readexactly(1))[0])  # all packets here are short
                if first >> 4 == 1:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif first >> 4 == 12:
                    writer.write(b"\xd0\x00")
                elif first >> 4 == 3 and self.falls:
                    self.falls -= 1
                    self.end()
                elif first >> 4 == 3:
                    at = 2 + int.from_bytes(body[:2], "big")
                    writer.write(b"\x40\x02" + body[at : at + 2])

    def end(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.fell.set()


@pytest.mark.parametrize(("falls", "is_set_aside"), [(7, False), (8, True)])
async def test_a_broker_that_falls_with_the_same_message_in_flight_is_not_taken_for_one_that_refuses_it(
    held_port: int, eventually: Callable[..., Awaitable[None]], falls: int, is_set_aside: bool
) -> None:
    """It does not listen between: that tells a broker that has ended. After eight times, the message may be what ends it."""
    broker = FallingBroker(held_port, falls)
    await broker.start()
    options = ClientOptions(url=f"mqtt://127.0.0.1:{broker.port}", min_backoff_s=0.001, max_backoff_s=0.002)
    outcome: list[Exception | None] = []
    async with Client(options, lambda _: None) as out:
        await out.wait_connected(30)
        out.publish("t", b"x", qos=1, done=outcome.append)
        for _ in range(falls):
            async with asyncio.timeout(30):
                await broker.fell.wait()
            await eventually(lambda: "refused" in str(out._session.last_error))
            out._session.last_error = None
            await broker.start()
        await out.flush(30)
        assert out.set_aside == is_set_aside
    assert [type(each) for each in outcome] == [MessageSetAside if is_set_aside else type(None)]
    broker.end()


def test_the_folder_of_messages_set_aside_is_bounded(tmp_path: Path) -> None:
    publish = Outgoing(encode_publish_head("t", 1, qos=1), b"x", None)
    kept = [set_aside.keep(tmp_path, publish, BusError("closed", remedy="-")) for _ in range(105)]

    assert kept.count(None) == 5
    assert set_aside.count(tmp_path) == 100
    assert set_aside.keep(tmp_path / "0" / "1", publish, BusError("closed", remedy="-")) is not None
    assert set_aside.keep(None, publish, BusError("closed", remedy="-")) is None


URL = "mqtt://h"


@pytest.mark.parametrize(
    ("others", "refused_at", "is_restart"),
    [
        ([], 0.0, False),
        ([], 10.05, True),
        ([], 9.0, False),
        ([(5.0, None)], 0.0, False),
        ([(5.0, 10.1)], 0.0, True),
        ([(5.0, 9.9)], 0.0, True),
        ([(5.0, 9.0)], 0.0, False),
        ([(5.0, 10.1), (5.0, None)], 0.0, False),
        ([(5.0, 10.9)], 0.0, False),
        ([(10.3, None)], 0.0, True),
        ([(10.3, None), (5.0, 7.0)], 0.0, True),
    ],
)
def test_a_broker_has_ended_if_it_is_not_there_or_no_link_lived_on(
    others: list[tuple[float, float | None]], refused_at: float, is_restart: bool
) -> None:
    """The link in question ends at 10.0."""
    for number, (up, ended) in enumerate([(5.0, 10.0), *others]):
        restarts.link_up(URL, number, up)
        if ended is not None:
            restarts.link_ended(URL, number, ended)
    if refused_at:
        restarts.connection_failed(URL, ConnectionRefusedError(111, "refused"), refused_at)
    assert restarts.restarted(URL, 0, 10.0) is is_restart
    for number in range(len(others) + 1):
        restarts.session_left(URL, number)
    assert URL not in restarts._brokers
