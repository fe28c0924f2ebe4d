"""Operations that are cancelled at each of their awaits: nothing is left half done, and the next call mends the rest.

Each attempt is (operation, moment): expected is that what the attempt asserts holds after every cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.cancelling import MOMENTS, Cancelling, Moment, cancel_at_every_place
from trial_site import until

from hedgerow.bus import Client, ClientOptions
from hedgerow.testing import Mosquitto

Attempt = Callable[[Cancelling], Awaitable[None]]


def links() -> int:
    """Return the number of tasks that keep a link to a broker."""
    return sum(task.get_name() == "link" for task in asyncio.all_tasks())


# The client


class Listener:
    """A client that records its messages."""

    def __init__(self, url: str, **options: Any) -> None:
        self.payloads: list[bytes] = []
        self.client = Client(ClientOptions(url=url, min_backoff_s=0.01, **options), self._receive)

    def _receive(self, messages: list[Any]) -> None:
        for message in messages:
            self.payloads.append(bytes(message.payload))
            self.client.ack(message)

    async def check(self, topic: str) -> None:
        """Check that it still publishes, and receives what it publishes."""
        count = len(self.payloads)
        await self.client.wait_connected(60)
        self.client.publish(topic, b"after", qos=1)
        await until(lambda: b"after" in self.payloads[count:], lambda: "a message after the cancellation")


@contextlib.asynccontextmanager
async def listening(broker: Mosquitto, topic: str) -> AsyncIterator[Listener]:
    listener = Listener(broker.url)
    async with listener.client as client:
        await client.subscribe({topic: 1})
        await client.wait_connected(60)
        yield listener
    assert links() == 0


async def close(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """Closed with a publish outstanding: the link is gone, and the publish has its answer."""
    listener, outcomes = Listener(broker.url), []
    listener.client.resume()
    await listener.client.wait_connected(60)
    listener.client.publish(topic, bytes(200_000), qos=1, done=outcomes.append)

    await cancelling.run(listener.client.close())

    assert links() == 0
    assert len(outcomes) == 1
    assert not listener.client.connected
    await listener.client.close()
    listener.client.resume()
    await listener.client.wait_connected(60)
    await listener.client.close()


async def close_while_connecting(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    client = Listener("mqtt://127.0.0.1:1").client
    client.resume()
    await asyncio.sleep(0)

    await cancelling.run(client.close())

    assert links() == 0


async def renew(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """Renewed with a publish outstanding, which holds the renewal up."""
    async with listening(broker, topic) as listener:
        listener.client.publish(topic, bytes(200_000), qos=1)

        await cancelling.run(listener.client.renew())

        await listener.check(topic)
        await listener.client.renew()
        await listener.check(topic)


async def pause(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.pause())

        assert links() == 0
        listener.client.resume()
        await listener.check(topic)


async def subscribe(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, f"{topic}/other") as listener:
        await cancelling.run(listener.client.subscribe({topic: 1}))

        await listener.client.subscribe({topic: 1})
        await listener.check(topic)


async def unsubscribe(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.unsubscribe([topic]))

        await listener.client.subscribe({topic: 1})
        await listener.check(topic)


async def publish(cancelling: Cancelling, broker: Mosquitto, topic: str) -> None:
    """A QoS 1 message is on its way, whether its sender waits or not."""
    async with listening(broker, topic) as listener:
        await cancelling.run(listener.client.publish_and_wait(topic, b"first"))

        await listener.check(topic)
        assert listener.payloads == [b"first", b"after"]
        assert not listener.client.outstanding


CLIENT = (close, close_while_connecting, renew, pause, subscribe, unsubscribe, publish)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("operation", CLIENT, ids=lambda each: f"client-{each.__name__}")
async def test_a_client(operation: Any, moment: Moment, broker: Mosquitto, topic_prefix: str) -> None:
    places = await cancel_at_every_place(lambda cancelling: operation(cancelling, broker, topic_prefix), moment)

    assert places
