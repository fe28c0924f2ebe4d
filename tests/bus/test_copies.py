"""A large payload is not copied between the socket and the message handler."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto

SIZE = 8_000_000


async def test_a_large_payload_is_not_copied(
    broker: Mosquitto,
    topic_prefix: str,
    tmp_path: Path,
    listener: Callable[..., Any],
    eventually: Callable[..., Awaitable[None]],
) -> None:
    """A copy would exist beside the original, so peak memory would show it."""
    (tmp_path / "payload").write_bytes(bytes(SIZE))
    async with listener(broker.url) as client:
        await client.wait_connected(60)
        await client.subscribe({topic_prefix: 1})
        tracemalloc.start()
        try:
            sender = await processes.start_async(
                ["mosquitto_pub", "-p", str(broker.port), "-t", topic_prefix, "-q", "1", "-f", tmp_path / "payload"]
            )
            await eventually(lambda: client.messages, timeout_s=60)
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert await sender.wait() == 0

    (message,) = client.messages
    assert len(message.payload) == SIZE
    assert now > SIZE, "the receive buffer was not traced"
    assert peak < 1.5 * SIZE
