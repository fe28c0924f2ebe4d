"""Loops written by hand, as each library's author would: one message at a time, each result as a small JSON message.

Settings are those of each library's manual: MQTT 5; no limit on queued messages, and `loop_forever`, its quickest loop,
for paho ("Client", network loop); several workers on one client for aiomqtt ("The message queue"); uvloop for gmqtt and
for FastStream, whose README and whose command line take it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from benchmarks.peers.answers import Answer


def paho(answer: Answer, options: dict[str, Any]) -> None:
    """One thread: paho's own loop, inference and publishing within `on_message`."""
    import paho.mqtt.client as library
    from paho.mqtt.enums import CallbackAPIVersion

    qos, results = options["qos"], options["results"]
    client = library.Client(CallbackAPIVersion.VERSION2, protocol=library.MQTTv5)
    client.max_inflight_messages_set(1000)
    client.max_queued_messages_set(0)

    def on_message(client: library.Client, _: Any, message: library.MQTTMessage) -> None:
        given = getattr(message.properties, "UserProperty", ())
        frame = next((value for name, value in given if name == "id"), "")
        result = answer(message.topic, message.payload, frame)
        if result is not None:
            client.publish(results, result, qos=qos)

    def without_delay(_: library.Client, __: Any, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def on_connect(client: library.Client, *_: Any) -> None:
        client.subscribe(options["frames"], qos=qos)

    client.on_socket_open = without_delay
    client.on_message = on_message
    client.on_connect = on_connect
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.connect("127.0.0.1", options["port"])
    client.loop_forever()


def aiomqtt(answer: Answer, options: dict[str, Any]) -> None:
    """Workers that share one client, so that waiting for an acknowledgement holds up one of them alone."""
    import aiomqtt as library

    qos, results = options["qos"], options["results"]

    async def work(client: library.Client) -> None:
        async for message in client.messages:
            given = getattr(message.properties, "UserProperty", ())
            frame = next((value for name, value in given if name == "id"), "")
            result = answer(str(message.topic), message.payload, frame)
            if result is not None:
                await client.publish(results, result, qos=qos)

    async def main() -> None:
        async with library.Client(
            "127.0.0.1",
            options["port"],
            protocol=library.ProtocolVersion.V5,
            max_inflight_messages=1000,
            max_queued_outgoing_messages=0,
        ) as client:
            client.pending_calls_threshold = 1000  # it warns above 10
            await client.subscribe(options["frames"], qos=qos)
            print("ready", flush=True)
            async with asyncio.TaskGroup() as workers:
                for _ in range(options.get("workers", 1)):
                    workers.create_task(work(client))

    asyncio.run(main())


def gmqtt(answer: Answer, options: dict[str, Any]) -> None:
    """A plain callback on uvloop, as in its README: within it the result is made and handed to the transport."""
    import gmqtt as library
    import uvloop

    qos, results = options["qos"], options["results"]

    def on_message(client: Any, topic: str, payload: bytes, _: int, properties: dict[str, Any]) -> int:
        frame = next((value for name, value in properties.get("user_property", ()) if name == "id"), "")
        result = answer(topic, payload, frame)
        if result is not None:
            client.publish(results, result, qos=qos)
        return 0

    async def main() -> None:
        client = library.Client("", receive_maximum=1000)
        client.on_connect = lambda client, *_: client.subscribe(options["frames"], qos=qos)
        client.on_subscribe = lambda *_: print("ready", flush=True)
        client.on_message = on_message
        await client.connect("127.0.0.1", options["port"])
        await asyncio.Event().wait()

    uvloop.run(main())


def faststream(answer: Answer, options: dict[str, Any]) -> None:
    """A subscriber of its MQTT broker, on uvloop, with nothing between the message and the handler that may be left out.

    That is, by its manual: no check and cast of arguments (`apply_types=False`; "Getting started, dependencies"), no
    guess at the payload (a decoder of one's own; "Serialization, custom decoder"), no log line for each message
    (`logger=None`; "Observability, logging"). One handler at a time (`max_workers=1`): nothing in it waits, and more
    handlers at a time would leave the order of a stream to chance.
    """
    import uvloop
    from faststream import FastStream
    from faststream.mqtt import MQTTBroker, MQTTMessage, QoS

    qos, results = QoS(options["qos"]), options["results"]

    async def undecoded(message: MQTTMessage) -> MQTTMessage:
        return message

    broker = MQTTBroker(f"mqtt://127.0.0.1:{options['port']}", apply_types=False, logger=None, decoder=undecoded)
    app = FastStream(broker, logger=None)

    async def handle(message: MQTTMessage) -> None:
        result = answer(message.raw_message.topic, message.body, message.headers.get("id", ""))
        if result is not None:
            await broker.publish(result, results, qos=qos)

    async def tell() -> None:
        print("ready", flush=True)

    broker.subscriber(options["frames"], qos=qos, no_reply=True)(handle)
    app.after_startup(tell)
    uvloop.run(app.run())
