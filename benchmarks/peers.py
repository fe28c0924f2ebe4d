"""The peers: good loops written by hand, each in a process of its own.

    echo '{"port": 1883, …}' | python -m benchmarks.peers vad-paho

They do what their author would: one message at a time, hidden state by stream, each result as a small JSON message.
They do less than the node, and are not made to do more: no queue bounded in age, no lineage, no health, no dead letters,
no acknowledgement held back until the result is safe. Settings are those of each library's manual: MQTT 5, no limit on
queued messages, `loop_forever` for paho (its quickest loop), several workers on one client for aiomqtt.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Answer = Callable[[str, Any, str], bytes | None]
"""From topic, payload and the frame's id to a result; None: there is none."""


def vad(_: dict[str, Any]) -> Answer:
    """Silero VAD on ONNX Runtime; its author's window: 64 samples of the one before and 512 new ones."""
    from benchmarks.raw import vad_session

    session = vad_session(threads=1)
    states: dict[str, tuple[Any, Any]] = {}
    nothing = np.zeros((1, 64), np.float32), np.zeros((2, 1, 128), np.float32)

    def answer(topic: str, payload: Any, frame: str) -> bytes:
        context, state = states.get(topic, nothing)
        samples = np.frombuffer(payload, "<i2").astype(np.float32)[np.newaxis] * np.float32(1 / 32768)
        window = np.concatenate((context, samples), axis=1)
        probability, state = session.run(None, {"input": window, "state": state})
        states[topic] = window[:, -64:], state
        return json.dumps({"id": frame, "topic": topic, "probability": float(probability[0, 0])}).encode()

    return answer


def text(options: dict[str, Any]) -> Answer:
    """Text detection on the backend that is the quickest here; what follows the model is the plugin's own code."""
    import simplejpeg

    from benchmarks.raw import text_runner
    from hedgerow_vision.detect_text import find_quads

    run = text_runner(options["backend"], threads=options["threads"])
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    factor, offset = (1 / 255 / std)[:, None, None], (-mean / std)[:, None, None]

    def answer(topic: str, payload: Any, frame: str) -> bytes:
        image = simplejpeg.decode_jpeg(payload, colorspace="BGR")
        tensor = image.transpose(2, 0, 1) * factor + offset
        heat = run(np.ascontiguousarray(tensor[np.newaxis]))[0, 0]
        quads, scores = find_quads(heat, 0.3, 0.5, 1.6, 1000)
        texts = [{"score": s, "box": q} for s, q in zip(scores.tolist(), quads.tolist(), strict=True)]
        return json.dumps({"id": frame, "topic": topic, "texts": texts}).encode()

    return answer


def noop(_: dict[str, Any]) -> Answer:
    """The size of the payload."""
    return lambda _, payload, frame: json.dumps({"id": frame, "bytes": len(payload)}).encode()


def count(options: dict[str, Any]) -> Answer:
    """Nothing, but for every n-th frame a sign of life."""
    numbers, each = itertools.count(1), options["each"]
    return lambda *_: None if next(numbers) % each else b"{}"


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


PEERS: dict[str, tuple[Callable[[Answer, dict[str, Any]], None], Callable[[dict[str, Any]], Answer]]] = {
    "vad-paho": (paho, vad),
    "text-paho": (paho, text),
    "noop-paho": (paho, noop),
    "count-paho": (paho, count),
    "count-aiomqtt": (aiomqtt, count),
}


def main() -> None:
    """Run the peer that is named, until it is ended."""
    options = json.load(sys.stdin)
    loop, make = PEERS[sys.argv[1]]
    loop(make(options), options)


if __name__ == "__main__":
    main()
