"""A small client of MQTT 5 that sends what it is told, allowed or not, and tells what comes back."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Iterator
from typing import Self

TIMEOUT_S = 60

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 13, 14
DENIED = 0x87
FOREVER = 0xFFFF_FFFF


def length(number: int) -> bytes:
    out = b""
    while True:
        number, low = number >> 7, number & 127
        out += bytes((low | (128 if number else 0),))
        if not number:
            return out


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def packet(head: int, body: bytes) -> bytes:
    return bytes((head,)) + length(len(body)) + body


def connect(
    client: str,
    *,
    session_s: int = 0,
    keepalive_s: int = 60,
    clean: bool = True,
    will: tuple[str, bytes] | None = None,
    will_qos: int = 1,
    properties: bytes = b"",
) -> bytes:
    if session_s:
        properties += b"\x11" + struct.pack("!I", session_s)
    flags = (2 if clean else 0) | (4 | will_qos << 3 if will else 0)
    body = text("MQTT") + bytes((5, flags)) + struct.pack("!H", keepalive_s) + length(len(properties)) + properties
    body += text(client)
    return packet(0x10, body + (b"\0" + text(will[0]) + text(will[1]) if will else b""))


def publish(topic: str, payload: bytes, number: int = 0, *, retain: bool = False, properties: bytes = b"") -> bytes:
    """QoS 1 with a number, else 0."""
    head = 0x30 | (2 if number else 0) | (1 if retain else 0)
    count = struct.pack("!H", number) if number else b""
    return packet(head, text(topic) + count + length(len(properties)) + properties + payload)


def respond_to(topic: str) -> bytes:
    """Return the property of a response topic."""
    return b"\x08" + text(topic)


def subscribe(number: int, *filters: str, qos: int = 1) -> bytes:
    return packet(0x82, struct.pack("!H", number) + b"\0" + b"".join(text(one) + bytes((qos,)) for one in filters))


class Raw:
    """A connection, and everything received on it.

    Attributes:
        received: payloads by topic, of messages.
        pubacks: reason codes by packet number.
        closed: whether the broker has closed it.
        disconnect: its reason code, if it gave one.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, acknowledges: bool = True
    ) -> None:
        self.reader, self.writer = reader, writer
        self.received: list[tuple[str, bytes]] = []
        self.pubacks: dict[int, int] = {}
        self.suback: bytes = b""
        self.connack: bytes = b""
        self.disconnect: int | None = None
        self.closed = False
        self._acknowledges = acknowledges
        self._pongs = 0
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls, port: int, tls: ssl.SSLContext | None, first: bytes, *, acknowledges: bool = True, wait: bool = True
    ) -> Self:
        """Connect, send the first packets, and wait for the CONNACK."""
        host = "localhost" if tls is not None else "127.0.0.1"
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        made = cls(reader, writer, acknowledges=acknowledges)
        writer.write(first)
        if wait:
            await made.until(lambda: bool(made.connack) or made.closed)
        return made

    def send(self, *packets: bytes) -> None:
        self.writer.write(b"".join(packets))

    async def until(self, happened: object) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not happened():  # type: ignore[operator]
                self._changed.clear()
                await self._changed.wait()

    async def settle(self) -> None:
        """Wait until the broker has handled all that was sent, and all that it had for this client has arrived."""
        before = self._pongs
        self.send(b"\xc0\0")
        await self.until(lambda: self._pongs > before or self.closed)

    async def end(self) -> None:
        """Cut the connection."""
        self._task.cancel()
        self.writer.transport.abort()

    async def leave(self) -> None:
        """Disconnect in order; a session stays."""
        self.send(b"\xe0\0")
        await self.until(lambda: self.closed)
        await self.end()

    async def _read(self) -> None:
        buffer = b""
        try:
            while data := await self.reader.read(1 << 16):
                buffer += data
                for head, body in (parts := list(_packets(buffer))):
                    self._take(head, body)
                buffer = buffer[sum(1 + len(length(len(body))) + len(body) for _, body in parts) :]
                self._changed.set()
        except OSError:
            pass
        finally:
            self.closed = True
            self._changed.set()

    def _take(self, head: int, body: bytes) -> None:
        match head >> 4:
            case 2:
                self.connack = body
            case 3:
                size = struct.unpack_from("!H", body)[0]
                topic, at = body[2 : 2 + size].decode(), 2 + size
                if head & 6:
                    number, at = body[at : at + 2], at + 2
                    if self._acknowledges:
                        self.send(packet(0x40, number))
                more, at = _length_at(body, at)
                self.received.append((topic, body[at + more :]))
            case 4:
                self.pubacks[struct.unpack_from("!H", body)[0]] = body[2] if len(body) > 2 else 0
            case 9:
                self.suback += body[3:]
            case 13:
                self._pongs += 1
            case 14:
                self.disconnect = body[0] if body else 0


def _length_at(data: bytes, at: int) -> tuple[int, int]:
    """Return a length, and the position after it; -1 if it is not complete."""
    number = shift = 0
    while at < len(data):
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 128:
            return number, at
    return -1, at


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size, start = _length_at(data, at + 1)
        if size < 0 or start + size > len(data):
            return
        yield data[at], data[start : start + size]
        at = start + size
