"""MQTT over WebSocket (MQTT 5 §6): a transport for `Link`, on top of a TCP or TLS connection.

The framing is that of `websockets`, used without its I/O. Frames carry a byte stream; their boundaries mean nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from hedgerow.bus.causes import malformed, web_server

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def open_websocket(
    url: str, default_path: str, protocol: Callable[[], P], host: str, port: int, tls: ssl.SSLContext | None
) -> P:
    """Open a WebSocket, and connect a protocol to it.

    Args:
        url: ws:// or wss://.
        default_path: path to use if the URL has none.
        protocol: returns an `asyncio.BufferedProtocol`.
    Raises:
        BusError: the server refuses the WebSocket.
        OSError: the connection cannot be made, or ends before the WebSocket is open.
    """
    loop = asyncio.get_running_loop()
    link = protocol()
    whole = url if urlsplit(url).path else url + default_path
    transport, websocket = await loop.create_connection(
        lambda: WebSocket(whole, cast(asyncio.BufferedProtocol, link)), host, port, ssl=tls
    )
    try:
        await websocket.opened
    except BaseException:
        transport.abort()
        raise
    return link


class WebSocket(asyncio.Protocol, asyncio.Transport):
    """A WebSocket: the protocol of its connection, and the transport of what uses it.

    Args:
        url: ws:// or wss://, with a path.
        link: gets the bytes that arrive.
    Attributes:
        opened: resolved when the server has accepted the WebSocket.
    """

    def __init__(self, url: str, link: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._url = url
        self._link = link
        self._connection: asyncio.Transport | None = None
        self._framing = ClientProtocol(parse_uri(url), subprotocols=[Subprotocol("mqtt")], max_size=None)

    # The protocol of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """(asyncio) Request the WebSocket."""
        self._connection = cast(asyncio.Transport, transport)
        self._framing.send_request(self._framing.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """(asyncio) Unwrap what arrived."""
        self._framing.receive_data(data)
        for event in self._framing.events_received():
            if isinstance(event, Response):
                self._answered()
            elif isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.CONT):
                self._deliver(memoryview(event.data))
            elif isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                self._link.eof_received()
        self._flush()  # replies to pings and to the close
        if self._framing.close_expected() and self._connection is not None:
            self._connection.close()

    def eof_received(self) -> None:
        """(asyncio) Pass on that the server closed its side."""
        if self.opened.done():
            self._link.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """(asyncio) Pass on that the connection has ended."""
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("the server closed the connection"))
        elif not self.opened.cancelled() and self.opened.exception() is None:
            self._link.connection_lost(exc)

    def pause_writing(self) -> None:
        """(asyncio) Pass on that the write buffer is full."""
        self._link.pause_writing()

    def resume_writing(self) -> None:
        """(asyncio) Pass on that the write buffer has room again."""
        self._link.resume_writing()

    def _answered(self) -> None:
        error = self._framing.handshake_exc
        if self.opened.done():
            return
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            self.opened.set_exception(web_server(self._url, f"HTTP {status} {error.response.reason_phrase}"))
        elif error is not None:
            self.opened.set_exception(malformed(self._url, error))
        else:
            self._link.connection_made(self)
            self.opened.set_result(None)

    def _deliver(self, data: memoryview) -> None:
        while data:
            buffer = memoryview(self._link.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self._link.buffer_updated(size)
            data = data[size:]

    def _flush(self) -> None:
        if self._connection is not None:
            for data in self._framing.data_to_send():
                if data:
                    self._connection.write(data)

    # The transport of the link

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """(asyncio) Send bytes in one frame."""
        if not self.is_closing():
            self._framing.send_binary(data)
            self._flush()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """(asyncio) Return information on the connection."""
        return default if self._connection is None else self._connection.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """(asyncio) Whether the connection is closing or closed."""
        return self._connection is None or self._connection.is_closing()

    def close(self) -> None:
        """(asyncio) Close the connection after sending what was written."""
        if self._connection is not None:
            self._connection.close()

    def abort(self) -> None:
        """(asyncio) Close the connection at once."""
        if self._connection is not None:
            self._connection.abort()

    def pause_reading(self) -> None:
        """(asyncio) Read no more for now."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume_reading(self) -> None:
        """(asyncio) Read again."""
        if self._connection is not None and not self._connection.is_closing():
            self._connection.resume_reading()
