"""Large frames, 1 MB each, QoS 0: a node with the `noop` stage beside mosquitto_sub, and how often it copies a frame.

    python -m benchmarks.data_path.large PORT TOPIC COUNT      # sends frames as fast as the broker accepts them

Time runs from the first frame sent until mosquitto_sub has the last one, or the node's result for it has arrived.
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
from benchmarks.harness.cpu_times import CpuTimes
from benchmarks.harness.load import PATIENCE_S, Connection
from benchmarks.harness.process import ROOT, ended
from hedgerow.backends.cores import cores
from hedgerow.bus.packets import PUBLISH, encode_connect, encode_disconnect, encode_publish_head
from hedgerow.testing import processes

SIZE = 1_000_000
COUNT, FEW = 600, 10
SUB = "mosquitto_sub"


def run(options: Options) -> list[Cell]:
    """Measure rates in turns; then copies, with one frame at a time."""
    count = FEW if options.smoke else COUNT
    rates: dict[str, list[float]] = {SUB: [], "node": []}
    cpu: dict[str, list[float]] = {SUB: [], "node": []}
    with Arena() as arena:
        node = arena.add_node("node", _pipeline("noop"))
        scales = arena.add_node("scales", _pipeline("weigh"))
        node.process.wait()
        _node(arena, node, FEW)  # warm-up
        for _ in range(options.repeats):
            for name in (SUB, "node"):
                seconds, cpu_s = _sub(arena, count) if name == SUB else _node(arena, node, count)
                rates[name].append(count * SIZE / 1e6 / seconds)
                cpu[name].append(cpu_s / count * 1e6)
        copies = _copies(arena, scales, options)
    return [
        *(cell(f"large.rate.{name}", f"{name}: 1 MB frames", values, "MB/s") for name, values in rates.items()),
        *(cell(f"large.cpu.{name}", f"{name}: CPU time per frame", values, "µs") for name, values in cpu.items()),
        ratio("large.node_per_sub", "1 MB frames, node ÷ mosquitto_sub", rates["node"], rates[SUB]),
        cell("large.copies", "copies of a 1 MB payload after receiving it", copies, "copies"),
    ]


def _pipeline(stage: str) -> dict[str, object]:
    queue = {"policy": "fifo", "max_frames_per_stream": COUNT, "max_bytes": COUNT * SIZE * 2}
    return {"stages": [stage], "qos": 0, "publish": {"qos": 0}, "queue": queue}


def _sub(arena: Arena, count: int) -> tuple[float, float]:
    """Return seconds until mosquitto_sub has received all frames, and its CPU time."""
    port, topic = str(arena.broker.port), "sub/frames"
    subprocess.run(["mosquitto_pub", "-p", port, "-t", topic, "-r", "-m", "first"], check=True)
    command = [SUB, "-V", "mqttv5", "-p", port, "-t", topic, "-C", str(count + 1), "-F", "%l"]
    with ended(process := processes.start(command, stdout=subprocess.PIPE)):
        assert process.stdout is not None
        process.stdout.readline()  # the retained message shows that it has subscribed
        began = _send(arena, topic, count)
        usage = os.wait4(process.pid, 0)[2]
        return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def _node(arena: Arena, node: Contender, count: int) -> tuple[float, float]:
    """Return seconds until the node has published all results, and its CPU time."""
    link = Connection(arena.broker.port, node.results, f"large-{time.monotonic_ns()}")
    cpu_times = CpuTimes({"node": node.process.pid})
    before = cpu_times.seconds()
    began = _send(arena, f"{node.name}/0", count)
    received = 0
    while received < count:
        if not select.select([link.socket], [], [], PATIENCE_S)[0]:
            raise RuntimeError(
                f"{count - received} of {count} frames had no result:\n{node.process.read_log()[-3000:]}"
            )
        link.receive()
        received += sum(first & 0xF0 == PUBLISH for first, _, _ in link.packets())
    seconds = time.monotonic() - began
    link.socket.close()
    return seconds, cpu_times.since(before)["node"]


def _send(arena: Arena, topic: str, count: int) -> float:
    """Send frames from another process. Returns: when it began, after all have been sent."""
    command = [sys.executable, "-m", "benchmarks.data_path.large", str(arena.broker.port), topic, str(count)]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def _copies(arena: Arena, scales: Contender, options: Options) -> list[float]:
    """Return the extra memory per frame, in frames; one at a time, each followed by small ones."""
    payloads = arena.payloads([bytes(SIZE), *[bytes(64)] * 4 * cores()])  # each lane retains its last frame
    results = arena.load(scales, 1, payloads, options, window=1, keep=True).payloads
    counts = [orjson.loads(result)["result"]["copies"] for result in results]
    copies = [each for each in counts if each is not None]
    return [statistics.median(copies)]


def main() -> None:
    """Send frames, and print when it began."""
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
