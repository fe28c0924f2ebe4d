"""Incremental parser of the broker's byte stream: the hot path.

Rules:
- A payload is copied at most once in user space. Small messages are copied out of a reused buffer; the kernel reads a large
  one straight into its own buffer.
- A payload above the limit is skipped as it arrives, so memory stays bounded whatever the broker sends.
- A stream that cannot be parsed raises `MalformedPacket`; the link is then unusable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hedgerow.bus.acknowledgements import Acknowledgements
from hedgerow.bus.message import Message
from hedgerow.bus.packets import PUBLISH
from hedgerow.bus.properties import MalformedPacket, decode_varint
from hedgerow.text import refusal, visible

BUFFER_BYTES: Final = 128 * 1024
"""Size of the reused buffer; the longest topic fits twice."""

LARGE_BYTES: Final = 16 * 1024
"""Larger packets get their own buffer unless they are already complete."""

MAX_PROPERTIES_BYTES: Final = 32 * 1024
"""Limit on the properties of a message; with the longest topic they still fit in the buffer."""

_MAX_CONTROL_BYTES: Final = 64 * 1024
_MAX_TOPICS: Final = 16_384
_MAX_TOPICS_BYTES: Final = 2 * 2**20


class Reader:
    """Splits a byte stream into packets. The owner fills `buffer()` and calls `advance` with the number of bytes.

    Args:
        acknowledgements: table for QoS 1 messages; redeliveries it discards are not delivered.
        max_payload_bytes: a larger payload is skipped and its message marked `oversized`.
        on_packet: called with the type (high nibble) and body of every packet other than PUBLISH.
    """

    def __init__(
        self,
        acknowledgements: Acknowledgements,
        max_payload_bytes: int,
        on_packet: Callable[[int, bytes], None],
    ) -> None:
        self._acknowledgements = acknowledgements
        self._max_payload_bytes = max_payload_bytes
        self._on_packet = on_packet
        self._messages: list[Message] = []
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._end = 0  # the buffer holds unparsed bytes from 0 to here
        self._large: memoryview | None = None  # body of a large packet, being filled
        self._large_first = 0
        self._filled = 0
        self._skip = 0  # bytes still to discard
        self._topics: dict[bytes, str] = {}
        self._topics_bytes = 0

    def buffer(self) -> memoryview:
        """Return the buffer for the next bytes."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._view[self._end :]

    def advance(self, count: int) -> None:
        """Parse the bytes written to `buffer()`.

        Raises: MalformedPacket: the bytes are not MQTT 5; `take` still returns the messages before them.
        """
        if self._large is None:
            self._parse(self._end + count)
            return
        self._filled += count
        if self._filled == len(self._large):
            body, self._large = self._large, None
            self._publish(self._large_first, body, 0, len(body), time.monotonic(), own=True)

    def take(self) -> list[Message]:
        """Remove and return the complete messages, in order."""
        messages, self._messages = self._messages, []
        return messages

    def _parse(self, end: int) -> None:
        buffer, view, now = self._buffer, self._view, time.monotonic()
        position = 0
        if self._skip:
            position = min(self._skip, end)
            self._skip -= position
        while end - position >= 2:
            first = buffer[position]
            size = buffer[position + 1]
            body = position + 2
            if size > 127:  # a longer length (§1.5.5), of up to four bytes
                known = min(end, position + 5)
                while body < known and buffer[body - 1] > 127:
                    size += (buffer[body] - 1) << 7 * (body - position - 1)
                    body += 1
                if buffer[body - 1] > 127:
                    if body == position + 5:
                        raise MalformedPacket("A packet length is longer than four bytes")
                    break
            stop = body + size
            if stop > end:
                if size > LARGE_BYTES and self._start_large(first, body, stop, end, now):
                    position = end
                break
            if first & 0xF0 == PUBLISH:
                self._publish(first, view, body, stop, now, own=False)
            else:
                self._on_packet(first & 0xF0, view[body:stop].tobytes())
            position = stop
        self._end = end - position
        if position and self._end:
            view[: self._end] = view[position:end]

    def _publish(self, first: int, body: memoryview, start: int, stop: int, now: float, *, own: bool) -> None:
        head = _publish_head(first, body, start, stop)
        if head is None or head[3] > stop:
            raise MalformedPacket("PUBLISH is truncated")
        after_topic, packet_id, at, after = head
        if stop - after > self._max_payload_bytes or after - at > MAX_PROPERTIES_BYTES:
            self._publish_without_payload(first, body, start, stop, head, now)
            return
        self._message(
            first,
            body[start + 2 : after_topic].tobytes(),
            body[after:stop].toreadonly() if own else body[after:stop].tobytes(),
            packet_id,
            now,
            body[at:after].tobytes() if after != at else b"",
        )

    def _publish_without_payload(
        self, first: int, body: memoryview, start: int, stop: int, head: tuple[int, int, int, int], now: float
    ) -> None:
        after_topic, packet_id, at, after = head
        too_long = after - at > MAX_PROPERTIES_BYTES
        raw = b"" if too_long else body[at:after].tobytes()
        message = self._message(first, body[start + 2 : after_topic].tobytes(), b"", packet_id, now, raw)
        if message is not None:
            if too_long:
                message.malformed = f"its properties are {after - at} bytes long (at most {MAX_PROPERTIES_BYTES})"
            if stop - after > self._max_payload_bytes:
                message.oversized = stop - after

    def _message(
        self, first: int, topic_bytes: bytes, payload: bytes | memoryview, packet_id: int, now: float, raw: bytes
    ) -> Message | None:
        unacked = None
        if first & 0x06:
            unacked = self._acknowledgements.received(packet_id, first & 0x08 != 0)
            if unacked is None:
                return None
        topic = self._topics.get(topic_bytes)
        problem = None
        if topic is None:
            topic, problem = _decode_topic(topic_bytes)
            if problem is None:
                self._remember(topic_bytes, topic)
        message = Message(topic, payload, first, packet_id, now, raw, unacked)
        message.malformed = problem
        self._messages.append(message)
        return message

    def _remember(self, topic_bytes: bytes, topic: str) -> None:
        self._topics_bytes += len(topic_bytes)
        if len(self._topics) >= _MAX_TOPICS or self._topics_bytes > _MAX_TOPICS_BYTES:
            self._topics.clear()
            self._topics_bytes = len(topic_bytes)
        self._topics[topic_bytes] = topic

    def _start_large(self, first: int, start: int, stop: int, end: int, now: float) -> bool:
        """Give an incomplete packet its own buffer, or skip it. Returns: False if its head is incomplete."""
        view = self._view
        if first & 0xF0 != PUBLISH:
            if stop - start > _MAX_CONTROL_BYTES:
                raise MalformedPacket(
                    f"A packet of type {first >> 4} is {stop - start} bytes long (at most {_MAX_CONTROL_BYTES})"
                )
            return False
        head = _publish_head(first, view, start, end)
        if head is None:
            return False
        _, _, at, after = head
        if after > stop:
            raise MalformedPacket("PUBLISH is truncated")
        too_long = after - at > MAX_PROPERTIES_BYTES
        if after > end and not too_long:
            return False
        if too_long or stop - after > self._max_payload_bytes:
            self._publish_without_payload(first, view, start, stop, head, now)
            self._skip = stop - end
            return True
        self._large = memoryview(bytearray(stop - start))
        self._large[: end - start] = view[start:end]
        self._large_first = first
        self._filled = end - start
        return True


def _publish_head(first: int, body: memoryview, start: int, end: int) -> tuple[int, int, int, int] | None:
    """Locate the parts of a PUBLISH (§3.3.2); None if its head extends beyond `end`.

    Returns: end of the topic, packet identifier, start and end of the properties.
    """
    if start + 2 > end:
        return None
    after_topic = at = start + 2 + (body[start] << 8 | body[start + 1])
    packet_id = 0
    if first & 0x06:
        at += 2
        if at > end:
            return None
        packet_id = body[after_topic] << 8 | body[after_topic + 1]
        if first & 0x06 != 0x02 or not packet_id:
            raise MalformedPacket(
                f"PUBLISH with QoS {first >> 1 & 3} (at most 1 was requested) and identifier {packet_id}"
            )
    if at >= end:
        return None
    size = body[at]
    at += 1
    if size > 127:
        if at + 3 > end and all(byte > 127 for byte in body[at:end]):
            return None
        size, at = decode_varint(body, at - 1)
    return after_topic, packet_id, at, at + size


def _decode_topic(topic: bytes) -> tuple[str, str | None]:
    """Decode a topic. Returns: the text, and what is wrong with it (§4.7), else None."""
    try:
        text = topic.decode()
    except UnicodeDecodeError:
        return visible(topic.decode(errors="backslashreplace")), "its topic is not UTF-8"
    if not text:
        return text, "its topic is empty"
    if "+" in text or "#" in text:
        return visible(text), "its topic contains a wildcard"
    if (why := refusal(text)) is not None:
        return visible(text), f"its topic is not accepted: {why}"
    return text, None
