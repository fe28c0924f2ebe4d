"""Hand-written loops, one per library: one message at a time, each result a small JSON message.

Settings follow each library's manual: MQTT 5; for paho no limit on queued messages and `loop_forever`, its fastest loop
("Client", network loop); for aiomqtt several workers on one client ("The message queue"); uvloop for gmqtt and
FastStream, as in the README of one and the command line of the other.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from benchmarks.peers.handlers import Handler


def paho(handler: Handler, options: dict[str, Any]) -> None:
    """Run paho's loop in one thread, with inference and publishing in `on_message`."""
    import paho.mqtt.client as library
    from paho.mqtt.enums import CallbackAPIVersion

    qos, results = options["qos"], options["results"]
    client = library.Client(CallbackAPIVersion.VERSION2, protocol=library.MQTTv5)
    client.max_inflight_messages_set(1000)
    client.max_queued_messages_set(0)

    def on_message(client: library.Client, _: Any, message: library.MQTTMessage) -> None:
        properties = getattr(message.properties, "UserProperty", ())
        frame = next((value for name, value in properties if name == "id"), "")
        result = handler(message.topic, message.payload, frame)
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


def aiomqtt(handler: Handler, options: dict[str, Any]) -> None:
    """Run workers that share one client, so that waiting for an acknowledgement blocks only one."""
    import aiomqtt as library

    qos, results = options["qos"], options["results"]

    async def work(client: library.Client) -> None:
        async for message in client.messages:
            properties = getattr(message.properties, "UserProperty", ())
            frame = next((value for name, value in properties if name == "id"), "")
            result = handler(str(message.topic), message.payload, frame)
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


def gmqtt(handler: Handler, options: dict[str, Any]) -> None:
    """Run a plain callback on uvloop, as in its README: it infers and publishes."""
    import gmqtt as library
    import uvloop

    qos, results = options["qos"], options["results"]

    def on_message(client: Any, topic: str, payload: bytes, _: int, properties: dict[str, Any]) -> int:
        frame = next((value for name, value in properties.get("user_property", ()) if name == "id"), "")
        result = handler(topic, payload, frame)
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


def faststream(handler: Handler, options: dict[str, Any]) -> None:
    """Run a subscriber of its MQTT broker on uvloop, with all optional steps disabled.

    By its manual: no validation and cast of arguments (`apply_types=False`; "Getting started, dependencies"), no
    payload guessing (a custom decoder; "Serialization, custom decoder"), no log line per message (`logger=None`;
    "Observability, logging"). One handler at a time (`max_workers=1`): it never waits, and parallel handlers would not
    preserve the order of a stream.
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
        result = handler(message.raw_message.topic, message.body, message.headers.get("id", ""))
        if result is not None:
            await broker.publish(result, results, qos=qos)

    async def print_ready() -> None:
        print("ready", flush=True)

    broker.subscriber(options["frames"], qos=qos, no_reply=True)(handle)
    app.after_startup(print_ready)
    uvloop.run(app.run())
