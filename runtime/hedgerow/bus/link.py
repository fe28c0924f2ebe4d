"""One connection to a broker: coalesced writes, keep-alive, orderly close.

Rules:
- Everything written in one iteration of the event loop goes out together.
- Silence for the keep-alive time means that the link is dead, whatever the operating system reports.
- The broker closes first. Closing a socket with unread bytes resets it, and the broker may then miss the last
  acknowledgements: it would redeliver those frames.
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
"""Buffers up to this size are joined into one write; copying a larger one costs more than a system call."""

_LINGER_S: Final = 2.0
"""Time the broker has to close the connection after our last packet."""


class LinkOwner(Protocol):
    """Callbacks of a link."""

    def link_messages(self, messages: list[Message]) -> None:
        """Handle received messages, at least one."""

    def link_packet(self, link: Link, kind: int, body: bytes) -> None:
        """Handle another packet: its type (high nibble) and body. Raises: MalformedPacket."""

    def link_write(self, link: Link) -> bool:
        """`put` pending data into the write that is about to happen. Returns: whether more is pending."""

    def link_lost(self, link: Link) -> None:
        """Handle the end of the link."""


class Link(asyncio.BufferedProtocol):
    """A connection. `send` queues bytes for the current iteration of the event loop.

    Args:
        acknowledgements, max_payload_bytes: see `Reader`.
        owner: receives messages, packets and events.
    Attributes:
        closed: set when the connection has ended.
        error: why it ended; None: it was closed here, or the transport gave no reason.
        paused: whether the transport's write buffer is full, so that writing should wait.
        reading: whether incoming bytes are read; see `set_reading`.
        bytes_received, bytes_sent: on this connection.
    """

    def __init__(self, acknowledgements: Acknowledgements, max_payload_bytes: int, owner: LinkOwner) -> None:
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
        """End the link after this many seconds of silence, from now on; 0: never."""
        self._keepalive_s = seconds
        if seconds:
            self._tick = self._loop.call_later(seconds / 4, self._check_alive)

    @property
    def usable(self) -> bool:
        """Whether the connection is open and not being closed."""
        return self.error is None and self._open

    @property
    def _open(self) -> bool:
        return self._transport is not None and not self._closing and not self._transport.is_closing()

    @property
    def local_address(self) -> str:
        """The IP address of this machine on the connection; "" if it has none."""
        name = None if self._transport is None else self._transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    def set_reading(self, reading: bool) -> None:
        """Pause or resume reading. While paused, the keep-alive check assumes that the broker is alive."""
        if reading == self.reading or self._transport is None:
            return
        self.reading = reading
        if reading:
            self._last_received = time.monotonic()
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def put(self, data: bytes | memoryview) -> None:
        """Add bytes to the next write."""
        self._out.append(data)

    def send(self, data: bytes | memoryview) -> None:
        """Write bytes, together with everything else of this iteration of the event loop."""
        self._out.append(data)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Flush in the next iteration of the event loop, after asking the owner for pending data (`link_write`).

        While messages are being delivered, the flush follows right after: usually it carries acknowledgements.
        """
        if not self._flush_due:
            self._flush_due = True
            if not self._in_read:
                self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write everything queued now."""
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
        for buffer in out:
            if len(buffer) <= _JOIN_BYTES:
                small.append(buffer)
                continue
            if small:
                self._write(b"".join(small))
                small = []
            self._write(buffer)
        if small:
            self._write(b"".join(small))

    def close(self, last: bytes, error: Exception | None = None) -> None:
        """Write everything queued and then `last`, a DISCONNECT; input is discarded until the broker closes."""
        self.error = self.error or error
        if not self._open:
            return
        self.flush()
        self._write(last)
        self._closing = True
        self.set_reading(True)
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

    def _check_alive(self) -> None:
        now = time.monotonic()
        keepalive = self._keepalive_s
        self._tick = self._loop.call_later(keepalive / 4, self._check_alive)
        silence = now - self._last_received if self.reading else 0.0
        if silence >= keepalive and self._pinged:
            self.abort(TimeoutError(f"no reply for {silence:.0f} s"))
        elif max(silence, now - self._last_sent) >= keepalive / 2 and (not self._pinged or not self.reading):
            self._pinged = True
            self.send(PINGREQ_PACKET)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """(asyncio) Store the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """(asyncio) Return the buffer for the next bytes."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """(asyncio) Parse received bytes and deliver their messages."""
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
        """(asyncio) Note that the broker closed its side."""
        if not self._closing:
            self.error = self.error or ConnectionResetError("the broker closed the connection")

    def pause_writing(self) -> None:
        """(asyncio) Stop writing: the write buffer is full."""
        self.paused = True

    def resume_writing(self) -> None:
        """(asyncio) Resume writing."""
        self.paused = False
        self.flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """(asyncio) Tell the owner that the connection has ended."""
        self._transport = None
        if self._tick is not None:
            self._tick.cancel()
        self.closed.set()
        self.error = self.error or exc
        self._owner.link_lost(self)
