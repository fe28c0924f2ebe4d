"""Large frames, 1 MB each, QoS 0: a node that does nothing with them beside mosquitto_sub, and how often it copies them.

    python -m benchmarks.data_path.large PORT TOPIC COUNT      # sends them, as fast as the broker takes them

Time runs from the first frame sent until mosquitto_sub has the last one, or until the node's answer to it has come.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import sys
import time

import orjson

from benchmarks.harness.arena import Arena, Contender
from benchmarks.harness.cells import Cell, Options, cell, ratio
from benchmarks.harness.load import PATIENCE_S, Connection
from benchmarks.harness.process import ROOT, ended
from benchmarks.harness.processor import Processor
from hedgerow.backends.cores import cores
from hedgerow.bus.packets import PUBLISH, encode_connect, encode_disconnect, encode_publish_head
from hedgerow.testing import processes

SIZE = 1_000_000
COUNT, FEW = 600, 10
SUB = "mosquitto_sub"


def run(options: Options) -> list[Cell]:
    """Both in turns; then one frame at a time, for the copies."""
    count = FEW if options.smoke else COUNT
    rates: dict[str, list[float]] = {SUB: [], "node": []}
    cpu: dict[str, list[float]] = {SUB: [], "node": []}
    with Arena() as arena:
        node = arena.add_node("node", _pipeline("noop"))
        scales = arena.add_node("scales", _pipeline("weigh"))
        node.process.wait()
        _node(arena, node, FEW)  # the first ones find everything cold
        for _ in range(options.repeats):
            for name in (SUB, "node"):
                seconds, cpu_s = _sub(arena, count) if name == SUB else _node(arena, node, count)
                rates[name].append(count * SIZE / 1e6 / seconds)
                cpu[name].append(cpu_s / count * 1e6)
        copies = _copies(arena, scales, options)
    return [
        *(cell(f"large.rate.{name}", f"{name}: 1 MB frames", values, "MB/s") for name, values in rates.items()),
        *(cell(f"large.cpu.{name}", f"{name}: processor time a frame", values, "µs") for name, values in cpu.items()),
        ratio("large.node_per_sub", "1 MB frames, node ÷ mosquitto_sub", rates["node"], rates[SUB]),
        cell("large.copies", "times that a payload of 1 MB is copied after receive", copies, "copies"),
    ]


def _pipeline(stage: str) -> dict[str, object]:
    queue = {"policy": "fifo", "max_frames_per_stream": COUNT, "max_bytes": COUNT * SIZE * 2}
    return {"stages": [stage], "qos": 0, "publish": {"qos": 0}, "queue": queue}


def _sub(arena: Arena, count: int) -> tuple[float, float]:
    """Seconds until mosquitto_sub had them all, and its processor time."""
    port, topic = str(arena.broker.port), "sub/frames"
    subprocess.run(["mosquitto_pub", "-p", port, "-t", topic, "-r", "-m", "first"], check=True)
    command = [SUB, "-V", "mqttv5", "-p", port, "-t", topic, "-C", str(count + 1), "-F", "%l"]
    with ended(process := processes.start(command, stdout=subprocess.PIPE)):
        assert process.stdout is not None
        process.stdout.readline()  # the retained message: it has subscribed
        began = _send(arena, topic, count)
        usage = os.wait4(process.pid, 0)[2]
        return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def _node(arena: Arena, node: Contender, count: int) -> tuple[float, float]:
    """Seconds until the node had answered them all, and its processor time."""
    link = Connection(arena.broker.port, node.results, f"large-{time.monotonic_ns()}")
    processor = Processor({"node": node.process.pid})
    before = processor.seconds()
    began = _send(arena, f"{node.name}/0", count)
    heard = 0
    while heard < count:
        if not select.select([link.socket], [], [], PATIENCE_S)[0]:
            raise RuntimeError(f"{count - heard} of {count} frames had no answer\n{node.process.said()[-3000:]}")
        link.receive()
        heard += sum(first & 0xF0 == PUBLISH for first, _, _ in link.packets())
    seconds = time.monotonic() - began
    link.socket.close()
    return seconds, processor.since(before)["node"]


def _send(arena: Arena, topic: str, count: int) -> float:
    """Have the frames sent by a process of its own. Returns: when it began, once all have been sent."""
    command = [sys.executable, "-m", "benchmarks.data_path.large", str(arena.broker.port), topic, str(count)]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def _copies(arena: Arena, scales: Contender, options: Options) -> list[float]:
    """How much more memory than its size a frame took, in frames; one at a time, with small ones after each."""
    payloads = arena.payloads([bytes(SIZE), *[bytes(64)] * 4 * cores()])  # each lane holds on to its last frame
    results = arena.load(scales, 1, payloads, options, window=1, keep=True).kept
    told = [orjson.loads(result)["result"]["copies"] for result in results]
    copies = [each for each in told if each is not None]
    return [statistics.median(copies)]


def main() -> None:
    """Send; print when it began."""
    port, topic, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    packet = encode_publish_head(topic, SIZE) + bytes(SIZE)
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(encode_connect(client_id=f"large-{time.monotonic_ns()}", clean_start=True, keepalive_s=0))
        line.recv(1 << 10)
        print(time.monotonic())
        for _ in range(count):
            line.sendall(packet)
        line.sendall(encode_disconnect())


if __name__ == "__main__":
    main()
