"""Fixtures of the bus tests: a client that records its messages, on a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import pytest

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.errors import HedgerowError


class Listener(Client):
    """A client that records its messages and acknowledges them unless `acks` is false."""

    def __init__(self, options: ClientOptions, *, acks: bool = True) -> None:
        super().__init__(options, self._on_messages, self._on_state)
        self.messages: list[Message] = []
        self.states: list[tuple[bool, str]] = []
        self.acks = acks

    def _on_messages(self, messages: list[Message]) -> None:
        self.messages.extend(messages)
        if self.acks:
            for message in messages:
                self.ack(message)

    def _on_state(self, connected: bool, reason: str) -> None:
        self.states.append((connected, reason))

    @property
    def payloads(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.messages]

    async def receive(self, count: int) -> list[bytes]:
        """Wait for this many messages. Returns: their payloads."""
        await eventually(lambda: len(self.messages) >= count, lambda: f"{len(self.messages)} of {count} messages")
        return self.payloads

    async def failure(self) -> HedgerowError:
        """Wait for an attempt to connect that fails. Returns: its error, as `wait_connected` raises it."""
        await eventually(lambda: self._session.last_error is not None)
        with pytest.raises(HedgerowError) as caught:
            await self.wait_connected(0)
        return caught.value

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self


async def eventually(
    condition: Callable[[], bool], what: Callable[[], str] = lambda: "it", timeout_s: float = 60
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what()} after {timeout_s} s"
        await asyncio.sleep(0.002)


@pytest.fixture
def listener() -> Callable[..., Listener]:
    def make(url: str, *, acks: bool = True, **options: Any) -> Listener:
        options = {"min_backoff_s": 0.02, "max_backoff_s": 0.1, **options}
        return Listener(ClientOptions(url=url, **options), acks=acks)

    return make


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually
