"""TCP proxy that injects network faults on demand, for tests.

    with FaultProxy("127.0.0.1", broker.port) as proxy:
        ...  # connect to proxy.url
        proxy.cut()

It runs in its own thread, so tests may be synchronous or asynchronous. Every method may be called from any thread, and
has taken effect when it returns.
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
        host, port: address it forwards connections to.
        record: record all forwarded bytes in `up` and `down`.
    Attributes:
        port: port it listens on, on 127.0.0.1.
        up: recorded bytes from clients to the server, of all connections, in the order of arrival.
        down: recorded bytes from the server to clients, likewise.
        connections: number of connections accepted so far.
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
        self._discard = False
        self._refuse = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """URL of the proxy, as of a broker."""
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._stack.enter_context(held_port())  # held, so that it keeps the port while it is cut
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._stack.close()

    def delay(self, seconds: float) -> None:
        """Delay every chunk by this long, in both directions."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Limit each direction of each connection to this rate; 0: no limit."""
        self._bytes_per_s = bytes_per_s

    def half_open(self) -> None:
        """Discard all bytes from now on; connections stay open but silent, as behind a dead router."""
        self._discard = True

    def cut(self) -> None:
        """Close all connections and refuse new ones, as if nothing listened."""
        self._refuse = True
        self._on_loop(self._stop_listening)

    def drop(self) -> None:
        """Close all connections; accept new ones."""
        self._on_loop(self._close_all)

    def reset(self) -> None:
        """Close all connections with a TCP reset; accept new ones."""
        self._on_loop(self._reset_all)

    def restore(self) -> None:
        """Forward everything again. Discarded bytes and closed connections do not come back."""
        self._delay_s = self._bytes_per_s = 0.0
        self._discard = False
        if self._refuse:
            self._refuse = False
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def _on_loop(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        done.wait()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:  # accepted just before the cut
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

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recorded: bytearray) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            while data:
                rate = self._bytes_per_s  # read each time, since it may change
                size = max(1, int(rate / 20)) if rate else len(data)
                piece, data = data[:size], data[size:]
                if rate:
                    await asyncio.sleep(len(piece) / rate)
                await self._forward(piece, writer, recorded)
        raise ConnectionResetError  # one end has closed: close the other too

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, recorded: bytearray) -> None:
        if self._discard:
            return
        if self._record:
            recorded += data
        writer.write(data)
        await writer.drain()

    def _stop_listening(self) -> None:
        self._server.close()
        self._close_all()

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _reset_all(self) -> None:
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
