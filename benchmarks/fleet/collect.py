"""Measures the cost of storing a result: the collector beside a loop with one INSERT and COMMIT per result.

    python benchmarks/fleet/collect.py            # about half a minute
    python benchmarks/fleet/collect.py --smoke    # a few seconds; the numbers mean nothing
    python benchmarks/fleet/collect.py --json

Each runs in its own process with its own Mosquitto and stores queued results into SQLite, with an fsync per commit:
durable, numbered results of a few hundred bytes, from 20 nodes. All are published to the contender's session before it
starts. Measured are the time and its CPU time from the first commit until the last result is on disk. The loop checks
nothing: no ledger, no acknowledgement to outboxes. Repeats are interleaved; the output has medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import structlog

from hedgerow.bus import Client, ClientOptions
from hedgerow.bus.identity.client_ids import client_id, client_token
from hedgerow.bus.outbox.records import Number
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.topics import Address, Channel

REGION, NODES = "bench", 20
FILTER = Address(REGION, "+", "+").topic(Channel.RESULT, "#")
LOOP = "paho, INSERT, COMMIT"
COUNTS = {"ours": (20_000, 500), LOOP: (2_000, 200)}
"""Results per run and per smoke run; the loop is slower and needs fewer."""
_PATIENCE_S = 120.0


def loop(port: int, path: str) -> None:
    """Run the simplest loop that acknowledges to the broker after the commit."""
    import paho.mqtt.client as library
    from paho.mqtt.enums import CallbackAPIVersion

    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE result (ingest INTEGER PRIMARY KEY, topic TEXT, received_at REAL, payload BLOB)")
    client = library.Client(CallbackAPIVersion.VERSION2, client_id="loop", protocol=library.MQTTv5, manual_ack=True)

    def on_message(client: library.Client, _: Any, message: library.MQTTMessage) -> None:
        database.execute("BEGIN")
        row = (message.topic, time.time(), message.payload)
        database.execute("INSERT INTO result (topic, received_at, payload) VALUES (?, ?, ?)", row)
        database.execute("COMMIT")
        client.ack(message.mid, message.qos)

    client.on_message = on_message
    client.on_connect = lambda client, *_: client.subscribe(FILTER, 1)
    client.connect("127.0.0.1", port, clean_start=False, properties=_session())
    client.loop_forever()


def _session() -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 3600
    return properties


async def fill(url: str, session: str, count: int) -> None:
    """Queue results in the session of a client that has not started yet."""
    options = ClientOptions(url=url, client_id=session, session_expiry_s=3600)
    async with Client(options, lambda _: None) as placeholder:
        await placeholder.wait_connected(10)
        await placeholder.subscribe({FILTER: 1})
        await placeholder.pause()
        async with Client(ClientOptions(url=url), lambda _: None) as sender:
            await sender.wait_connected(10)
            for n in range(count):
                address = Address(REGION, f"site-{n % NODES}", "gateway")
                frame = {"id": f"f{n}", "stream": "door", "topic": "door", "sequence": n, "captured_at": time.time()}
                body = {
                    "schema": "hedgerow.result/1",
                    "id": f"f{n}",
                    "at": time.time(),
                    "frame": frame,
                    "result": "x" * 200,
                }
                number = Number("epoch", 0, n // NODES + 1)
                properties = encode_properties(
                    [(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("number", str(number)))]
                )
                sender.publish(
                    address.topic(Channel.RESULT, "doors"), json.dumps(body).encode(), qos=1, properties=properties
                )  # fmt: skip
            await sender.flush(_PATIENCE_S)
        # It disconnects without having received anything; the contender with its client ID gets the results.


def measure(contender: str, count: int) -> dict[str, float]:
    """Return messages per second and CPU time per message of one contender, on its own broker."""
    with Mosquitto() as broker, tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.db"
        if contender == "ours":
            session = client_id(REGION, client_token(Path(folder)), "collector")
            config = {
                "region": {"name": REGION},
                "broker": {"url": broker.url},
                "store": {"url": str(store)},
                "ping": {"every_s": None},
                "metrics": {"enabled": False},
            }
            file = Path(folder) / "region.yaml"
            file.write_text(json.dumps(config))
            command = [sys.executable, "-m", "hedgerow", "region", "run", str(file)]
        else:
            session = "loop"
            command = [sys.executable, __file__, "--loop", str(broker.port), str(store)]
        asyncio.run(fill(broker.url, session, count))
        with processes.start(command, stderr=subprocess.DEVNULL) as process:
            try:
                return _measure(psutil.Process(process.pid), store, count)
            finally:
                process.send_signal(signal.SIGKILL)


def _measure(process: psutil.Process, store: Path, count: int) -> dict[str, float]:
    stored = _counter(store)
    deadline = time.monotonic() + _PATIENCE_S
    while not (first := stored()):
        assert time.monotonic() < deadline, "no result was stored"
        time.sleep(0.001)
    began, cpu = time.perf_counter(), _cpu(process)
    while (now := stored()) < count:
        assert time.monotonic() < deadline, f"only {now} of {count} results were stored"
        time.sleep(0.002)
    seconds = max(time.perf_counter() - began, 1e-3)
    rest = max(count - first, 1)
    used = _cpu(process) - cpu or _cpu(process)  # if all were stored by the first check, include the start-up
    return {"rate": rest / seconds, "cpu_us": used / rest * 1e6}


def _counter(store: Path) -> Callable[[], int]:
    """Return a function that counts the stored results; cheap, because it uses the highest key."""
    connection: list[sqlite3.Connection] = []

    def count() -> int:
        try:
            if not connection:
                connection.append(sqlite3.connect(f"file:{store}?mode=ro", uri=True, isolation_level=None))
            return int(connection[0].execute("SELECT coalesce(max(ingest), 0) FROM result").fetchone()[0])
        except sqlite3.Error:  # not created yet
            return 0

    return count


def _cpu(process: psutil.Process) -> float:
    """Return CPU seconds by the scheduler's clock; accounting in 10 ms ticks is too coarse for a short run."""
    used = 0
    for stat in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            used += int(stat.read_text().split()[0])
    return used / 1e9


def compare(repeats: int, *, smoke: bool) -> dict[str, list[dict[str, float]]]:
    """Return the measurements of each repeat, by contender."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in COUNTS}
    for _ in range(repeats):
        for name, (full, few) in COUNTS.items():
            runs[name].append(measure(name, few if smoke else full))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a short run, to check that it works")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(int(args.loop[0]), args.loop[1])
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    runs = compare(1 if args.smoke else args.repeats, smoke=args.smoke)
    if args.json:
        print(json.dumps(runs, indent=2))
        return
    print(f"{'':24}{'results/s':>12}{'CPU µs/result':>16}{'rate ÷ loop':>14}")
    loops = statistics.median(run["rate"] for run in runs[LOOP])
    for name, measured in runs.items():
        rate, cpu = (statistics.median(run[key] for run in measured) for key in ("rate", "cpu_us"))
        print(f"{name:24}{rate:>12,.0f}{cpu:>16.1f}{rate / loops:>14.1f}")


if __name__ == "__main__":
    main()
