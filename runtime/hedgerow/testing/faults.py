"""A TCP proxy that fails on demand: what a network does to a link, done to a test's link.

    with FaultProxy("127.0.0.1", broker.port) as proxy:
        ...  # connect to proxy.url
        proxy.cut()

It runs in a thread of its own, so tests may be synchronous or asynchronous; every method may be called from any thread
and has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from hedgerow.testing.ports import held_port

_CHUNK: Final = 64 * 1024


class FaultProxy:
    """A proxy in front of one TCP address.

    Args:
        host, port: where it passes connections on to.
        record: keep every byte that passed, in `up` and `down`.
    Attributes:
        port: where it listens, on 127.0.0.1.
        up: bytes from clients to the server, all connections in the order they came, if recorded.
        down: bytes from the server to clients, likewise.
        connections: how many were accepted so far.
    """

    def __init__(self, host: str, port: int, *, record: bool = False) -> None:
        self.port = 0
        self.up = bytearray()
        self.down = bytearray()
        self.connections = 0
        self._target = host, port
        self._record = record
        self._delay_s = 0.0
        self._bytes_per_s = 0.0
        self._swallow = False
        self._refuse = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """The proxy as a broker's address."""
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._stack.enter_context(held_port())  # its own while it is cut as well
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._stack.close()

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for this long, in both directions."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Let no more than this through, each direction of each connection; 0 for no limit."""
        self._bytes_per_s = bytes_per_s

    def half_open(self) -> None:
        """Swallow all bytes from now on; connections stay open and silent, as behind a dead router."""
        self._swallow = True

    def cut(self) -> None:
        """End all connections and refuse new ones, as where nobody listens."""
        self._refuse = True
        self._do(self._stop_listening)

    def drop(self) -> None:
        """End all connections; new ones are welcome."""
        self._do(self._end_all)

    def reset(self) -> None:
        """End all connections with a TCP reset; new ones are welcome."""
        self._do(self._reset_all)

    def restore(self) -> None:
        """Let everything through again. What was swallowed is gone, and so are connections that were cut."""
        self._delay_s = self._bytes_per_s = 0.0
        self._swallow = False
        if self._refuse:
            self._refuse = False
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def _do(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        done.wait()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)

    async def _shut(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:  # it came with the cut
            writer.transport.abort()
            return
        self.connections += 1
        upstream: asyncio.StreamWriter | None = None
        self._writers.add(writer)
        try:
            server_reader, upstream = await asyncio.open_connection(*self._target)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, upstream, self.up))
                pumps.create_task(self._pump(server_reader, writer, self.down))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            while data:
                rate = self._bytes_per_s  # asked each time: it may change on the way
                size = max(1, int(rate / 20)) if rate else len(data)
                piece, data = data[:size], data[size:]
                if rate:
                    await asyncio.sleep(len(piece) / rate)
                await self._pass(piece, writer, kept)
        raise ConnectionResetError  # one end has gone: so shall the other

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        if self._swallow:
            return
        if self._record:
            kept += data
        writer.write(data)
        await writer.drain()

    def _stop_listening(self) -> None:
        self._server.close()
        self._end_all()

    def _end_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _reset_all(self) -> None:
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
