"""One connection to a broker: bytes in, bytes out, and whether it is alive.

Rules:
- All that is written in one turn of the event loop leaves together.
- Silence for the keep-alive time means the link is dead, whatever the operating system says.
- The broker closes first. A socket closed with bytes unread is reset, and the other side may then never see the
  acknowledgements it was sent last: frames would come twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol, cast

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.message import Message
from hedgerow.bus.packets import PINGREQ_PACKET, encode_disconnect
from hedgerow.bus.properties import MalformedPacket
from hedgerow.bus.reader import Reader

_JOIN_BYTES: Final = 64 * 1024
"""Pieces up to this size are joined into one write; copying a larger one costs more than a system call."""

_LINGER_S: Final = 2.0
"""How long the broker has, after our last packet, to close the connection."""


class Owner(Protocol):
    """Who uses a link."""

    def link_messages(self, messages: list[Message]) -> None:
        """Messages came, at least one."""

    def link_packet(self, link: Link, kind: int, body: bytes) -> None:
        """Another packet came: its type (high nibble) and its body. Raises: MalformedPacket."""

    def link_write(self, link: Link) -> bool:
        """A turn's write is about to be made: `put` into it what waits. Returns: whether more waits."""

    def link_lost(self, link: Link) -> None:
        """The link has ended."""


class Link(asyncio.BufferedProtocol):
    """A connection. `send` queues bytes for this turn of the loop; `closed` is set when it has ended.

    Args:
        acknowledgements, max_payload_bytes: for its `Reader`.
    Attributes:
        closed: set when it has ended.
        error: why it ended; None: we closed it, or the transport gave no reason.
        paused: whether the other side takes too little, so that writing should wait.
        reading: whether bytes are taken; see `read`.
        bytes_received, bytes_sent: on this connection.
    """

    def __init__(self, acknowledgements: Acknowledgements, max_payload_bytes: int, owner: Owner) -> None:
        self._loop = asyncio.get_running_loop()
        self._acknowledgements = acknowledgements
        self._reader = Reader(
            acknowledgements, max_payload_bytes, lambda kind, body: owner.link_packet(self, kind, body)
        )
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes | memoryview] = []
        self._flush_due = False
        self._in_read = False
        self._closing = False
        self._last_received = self._last_sent = time.monotonic()
        self._pinged = False
        self._keepalive_s = 0.0
        self._tick: asyncio.TimerHandle | None = None
        self.error: Exception | None = None
        self.closed = asyncio.Event()
        self.paused = False
        self.reading = True
        self.bytes_received = 0
        self.bytes_sent = 0

    def keep_alive(self, seconds: float) -> None:
        """Watch the link from now on: `seconds` of silence end it."""
        self._keepalive_s = seconds
        if seconds:
            self._tick = self._loop.call_later(seconds / 4, self._watch)

    @property
    def usable(self) -> bool:
        """Whether it is there and nobody is ending it."""
        return self.error is None and self._open

    @property
    def _open(self) -> bool:
        return self._transport is not None and not self._closing and not self._transport.is_closing()

    def read(self, wanted: bool) -> None:
        """Stop or go on taking bytes. While stopped, the other side is believed to be alive."""
        if wanted == self.reading or self._transport is None:
            return
        self.reading = wanted
        if wanted:
            self._last_received = time.monotonic()
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def put(self, data: bytes | memoryview) -> None:
        """Add bytes to the next write."""
        self._out.append(data)

    def send(self, data: bytes | memoryview) -> None:
        """Write bytes, together with all else of this turn of the loop."""
        self._out.append(data)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write in the next turn of the loop, asking the owner first what else waits (`link_write`).

        What is asked for while messages are handed over is written right after that: an acknowledgement, usually.
        """
        if not self._flush_due:
            self._flush_due = True
            if not self._in_read:
                self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write now."""
        self._flush_due = False
        if not self._open:
            self._out.clear()
            return
        if self._owner.link_write(self):
            self.flush_soon()
        out, self._out = self._out, []
        if not out:
            return
        self._last_sent = time.monotonic()
        if len(out) == 1:
            self._write(out[0])
            return
        small: list[bytes | memoryview] = []
        for piece in out:
            if len(piece) <= _JOIN_BYTES:
                small.append(piece)
                continue
            if small:
                self._write(b"".join(small))
                small = []
            self._write(piece)
        if small:
            self._write(b"".join(small))

    def close(self, last: bytes, error: Exception | None = None) -> None:
        """Write what waits and then `last`, a DISCONNECT; whatever comes until the broker closes is thrown away."""
        self.error = self.error or error
        if not self._open:
            return
        self.flush()
        self._write(last)
        self._closing = True
        self.read(True)
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(
            _LINGER_S, self.abort, TimeoutError("the broker did not close the connection")
        )

    def abort(self, error: Exception) -> None:
        """End the connection at once."""
        self.error = self.error or error
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport is not None:
            self.bytes_sent += len(data)
            self._transport.write(data)

    def _watch(self) -> None:
        now = time.monotonic()
        keepalive = self._keepalive_s
        self._tick = self._loop.call_later(keepalive / 4, self._watch)
        silence = now - self._last_received if self.reading else 0.0
        if silence >= keepalive and self._pinged:
            self.abort(TimeoutError(f"no answer for {silence:.0f} s"))
        elif max(silence, now - self._last_sent) >= keepalive / 2 and (not self._pinged or not self.reading):
            self._pinged = True
            self.send(PINGREQ_PACKET)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """(asyncio) The connection is there."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """(asyncio) Where the next bytes belong."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """(asyncio) Bytes came."""
        self._last_received = time.monotonic()
        self._pinged = False
        self.bytes_received += nbytes
        if self._closing:
            return
        flush_due, self._in_read = self._flush_due, True
        try:
            self._reader.advance(nbytes)
        except MalformedPacket as error:
            self.close(encode_disconnect(0x81), error)
        if messages := self._reader.take():
            self._owner.link_messages(messages)
        self._in_read = False
        if self._acknowledgements.ready or (self._flush_due and not flush_due):
            self.flush()

    def eof_received(self) -> None:
        """(asyncio) The broker will send no more."""
        if not self._closing:
            self.error = self.error or ConnectionResetError("the broker closed the connection")

    def pause_writing(self) -> None:
        """(asyncio) The other side takes too little."""
        self.paused = True

    def resume_writing(self) -> None:
        """(asyncio) It takes more again."""
        self.paused = False
        self.flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """(asyncio) The connection is gone."""
        self._transport = None
        if self._tick is not None:
            self._tick.cancel()
        self.closed.set()
        self.error = self.error or exc
        self._owner.link_lost(self)
