"""Measures the CPU time of receiving a message: our client beside others, on one Mosquitto.

    python benchmarks/data_path/receive.py            # about a minute
    python benchmarks/data_path/receive.py --smoke    # a few seconds; the numbers mean nothing
    python benchmarks/data_path/receive.py --json

A separate process sends pre-encoded PUBLISH packets as fast as the broker accepts them. Each client runs in its own
process and measures its CPU time, user and system, from the subscription to the last message; not the rate, because the
broker is slower than the fast clients. "Busy" blocks the client for 20 ms after every 1000 messages, so that messages
queue in the socket as under load. Repeats are interleaved; the output has medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto

BUSY = "64 B, QoS 0, busy"
CASES: dict[str, tuple[int, int, int, int]] = {  # payload bytes, QoS, messages, messages in a smoke run
    "64 B, QoS 0": (64, 0, 15_000, 2_000),
    BUSY: (64, 0, 15_000, 2_000),
    "64 B, QoS 1": (64, 1, 8_000, 1_000),
    "100 kB, QoS 0": (100_000, 0, 1_000, 50),
    "1 MB, QoS 0": (1_000_000, 0, 150, 10),
}
TOPIC = "plant/line3/camera1/image"


class Meter:
    """Counts messages and prints their cost after the last."""

    def __init__(self, expected: int, *, busy: bool = False) -> None:
        self.expected = expected
        self.busy = busy
        self.count = 0
        self.cpu = self.wall = 0.0

    def ready(self) -> None:
        """Start measuring; to be called when the client has subscribed."""
        self.cpu = time.process_time()
        print("ready", flush=True)

    def add(self, count: int) -> bool:
        """Count messages. Returns: whether all have arrived."""
        if not self.count:
            self.wall = time.perf_counter()
        block = self.busy and (self.count + count) // 1000 > self.count // 1000
        self.count += count
        if self.count < self.expected:
            if block:
                time.sleep(0.02)  # simulates a slow callback
            return False
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        print(json.dumps({"cpu_us": cpu / self.expected * 1e6, "rate": self.expected / wall}), flush=True)
        return True


async def ours(port: int, qos: int, meter: Meter) -> None:
    from hedgerow.bus import Client, ClientOptions, Message

    finished = asyncio.Event()

    def on_messages(messages: list[Message]) -> None:
        if qos:
            for message in messages:
                client.ack(message)
        if meter.add(len(messages)):
            finished.set()

    client = Client(ClientOptions(url=f"mqtt://127.0.0.1:{port}", receive_maximum=1000), on_messages)
    async with client:
        await client.wait_connected(5)
        await client.subscribe({TOPIC: qos})
        meter.ready()
        await finished.wait()


def ours_on_asyncio(port: int, qos: int, meter: Meter) -> None:
    asyncio.run(ours(port, qos, meter))


def ours_on_uvloop(port: int, qos: int, meter: Meter) -> None:
    import uvloop

    uvloop.run(ours(port, qos, meter))


def gmqtt(port: int, qos: int, meter: Meter) -> None:
    import gmqtt as library

    async def main() -> None:
        finished = asyncio.Event()
        client = library.Client("gmqtt", receive_maximum=1000)

        def on_message(*_: Any) -> int:
            if meter.add(1):
                finished.set()
            return 0

        client.on_message = on_message
        client.on_subscribe = lambda *_: meter.ready()
        await client.connect("127.0.0.1", port)
        client.subscribe(TOPIC, qos=qos)
        await finished.wait()

    asyncio.run(main())


def paho(port: int, qos: int, meter: Meter) -> None:
    import paho.mqtt.client as library
    from paho.mqtt.enums import CallbackAPIVersion

    client = library.Client(CallbackAPIVersion.VERSION2, protocol=library.MQTTv5)

    def on_message(client: library.Client, *_: Any) -> None:
        if meter.add(1):
            client.disconnect()

    client.on_message = on_message
    client.on_subscribe = lambda *_: meter.ready()
    client.on_connect = lambda client, *_: client.subscribe(TOPIC, qos=qos)
    client.connect("127.0.0.1", port)
    client.loop_forever()


def aiomqtt(port: int, qos: int, meter: Meter) -> None:
    import aiomqtt as library

    async def main() -> None:
        async with library.Client("127.0.0.1", port, protocol=library.ProtocolVersion.V5) as client:
            await client.subscribe(TOPIC, qos=qos)
            meter.ready()
            async for _ in client.messages:
                if meter.add(1):
                    return

    asyncio.run(main())


CLIENTS: dict[str, Callable[[int, int, Meter], None]] = {
    "ours": ours_on_asyncio,
    "ours, uvloop": ours_on_uvloop,
    "gmqtt": gmqtt,
    "paho": paho,
    "aiomqtt": aiomqtt,
}
SUB = "mosquitto_sub"


def load(port: int, size: int, qos: int, count: int) -> None:
    """Publish as fast as the broker accepts. Uses MQTT 3.1.1, whose PUBACK always has four bytes."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04load")
        line.recv(4)
        topic = len(TOPIC).to_bytes(2, "big") + TOPIC.encode()
        batch = max(1, min(500, 1_000_000 // size, count))
        packets = b"".join(_publish(topic, size, number + 1 if qos else 0) for number in range(batch))
        for _ in range(count // batch):
            line.sendall(packets)
            pubacks = 4 * batch if qos else 0
            while pubacks:
                pubacks -= len(line.recv(pubacks))
        line.sendall(b"\xe0\x00")


def _publish(topic: bytes, size: int, packet_id: int) -> bytes:
    body = topic + (packet_id.to_bytes(2, "big") if packet_id else b"") + b"x" * size
    length, left = bytearray(), len(body)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return bytes((0x32 if packet_id else 0x30,)) + length + body


def measure(client: str, port: int, case: str, count: int) -> dict[str, float]:
    """Run one client and one load, each in its own process."""
    size, qos, *_ = CASES[case]
    numbers = [str(port), str(size), str(qos), str(count)]
    if client == SUB:
        command = [SUB, "-V", "mqttv5", "-p", str(port), "-t", TOPIC, "-q", str(qos), "-C", str(count), "-F", "%l"]
        listener = processes.start(command, stdout=subprocess.DEVNULL)
        time.sleep(0.2)  # it does not report its subscription
        start = time.perf_counter()
        sender = processes.start([sys.executable, __file__, "--load", *numbers])
        usage = os.wait4(listener.pid, 0)[2]
        sender.wait()
        return {
            "cpu_us": (usage.ru_utime + usage.ru_stime) / count * 1e6,
            "rate": count / (time.perf_counter() - start),
        }
    command = [sys.executable, __file__, "--receive", client, case, *numbers]
    with processes.start(command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n", f"{client} did not subscribe"
        processes.run([sys.executable, __file__, "--load", *numbers], check=True)
        result: dict[str, float] = json.loads(receiver.stdout.readline())
        return result


def compare(repeats: int, names: list[str], *, smoke: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return medians of CPU time per message, messages per second and ratio to ours, by case and client."""
    report: dict[str, dict[str, dict[str, float]]] = {}
    with Mosquitto() as broker:
        for case, (size, _, full, few) in CASES.items():
            if case not in names or (smoke and size > 64):
                continue
            count = few if smoke else full
            clients = [*CLIENTS, *([SUB] if size >= 100_000 else [])]
            runs: dict[str, list[dict[str, float]]] = {client: [] for client in clients}
            for _ in range(repeats):
                for client in clients:
                    runs[client].append(measure(client, broker.port, case, count))
            medians = {
                client: {key: statistics.median(run[key] for run in done) for key in ("cpu_us", "rate")}
                for client, done in runs.items()
            }
            report[case] = {
                client: {**median, "ratio": median["cpu_us"] / medians["ours"]["cpu_us"]}
                for client, median in medians.items()
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a short run, to check that it works")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="run only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", nargs=4, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--receive", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(*args.load)
    elif args.receive:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        client, case, port, _, qos, count = args.receive
        CLIENTS[client](int(port), int(qos), Meter(int(count), busy=case == BUSY))
    else:
        report = compare(1 if args.smoke else args.repeats, args.cases, smoke=args.smoke)
        if args.json:
            print(json.dumps(report, indent=2))
            return
        for case, clients in report.items():
            print(f"\n{case:20}{'CPU µs/message':>16}{'ratio':>8}{'messages/s':>13}")
            for client, row in clients.items():
                print(f"{client:20}{row['cpu_us']:>16.1f}{row['ratio']:>8.1f}{row['rate']:>13,.0f}")


if __name__ == "__main__":
    main()
