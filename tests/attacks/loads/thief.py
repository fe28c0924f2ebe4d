"""A stolen sensor at full speed, as a process of its own: `python thief.py PORT USER OWN_TOPIC OTHER_TOPIC MESSAGES SECONDS`.

Of each five messages one is valid, one is malformed, one is on a topic that it invents below its own, one an envelope that names
another's stream, and one is on another's topic. It waits for acknowledgements only when as many are open as the broker allows.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator

import msgpack

from hedgerow.bus.packets import encode_connect, encode_publish_head
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.wire.codec import ENVELOPE

_AT_ONCE = 500


def messages(own: str, other: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield topics, payloads and properties without end."""
    envelope = msgpack.packb({"payload": b'{"v": [6]}', "content_type": "application/json", "stream": other})
    named = encode_properties([(Property.CONTENT_TYPE, ENVELOPE)])
    number = 0
    while True:
        number += 1
        yield own, b'{"v": [6]}', b""
        yield own, b'{"v": [6', b""
        yield f"{own}/invented-{number}", b'{"v": [6]}', b""
        yield own, envelope, named
        yield other, b'{"v": [6]}', b""


def main(port: int, user: str, own: str, other: str, most: int, seconds: float) -> None:
    sent, end = 0, time.monotonic() + seconds
    attack = messages(own, other)
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(encode_connect(client_id=user, clean_start=True, keepalive_s=600, username=user))
        answers = link.makefile("rb")
        answers.read(answers.read(2)[1])
        while sent < most and time.monotonic() < end:
            packets = bytearray()
            for packet_id in range(1, _AT_ONCE + 1):
                topic, payload, properties = next(attack)
                packets += encode_publish_head(
                    topic, len(payload), qos=1, packet_id=packet_id, retain=False, properties=properties
                )
                packets += payload
            link.sendall(packets)
            sent += _AT_ONCE
            acknowledged = 0
            while acknowledged < _AT_ONCE:
                head = answers.read(2)
                if not head:
                    raise SystemExit(f"the broker closed the link after {sent} messages")
                answers.read(head[1])
                acknowledged += head[0] == 0x40
    print(sent)


if __name__ == "__main__":
    port, user, own, other, most, seconds = sys.argv[1:]
    main(int(port), user, own, other, int(most), float(seconds))
