"""One thin adapter between MQTT and a server: takes frames, asks the server, publishes the results.

The server is a process below its own. One frame of a stream is asked for at a time, all streams at once: so frames stay
in order and no batch holds a stream twice. The load that goes past the broker (`native.py`) asks the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.peers.asking import CLIENTS

_READY_S = 60.0
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER`, see prctl(2)."""


def run(server: str, options: dict[str, Any]) -> None:
    """Run a server and the adapter before it, until ended."""
    import uvloop

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # until the loop sees to it
    with _running(server, options) as process, contextlib.suppress(asyncio.CancelledError):
        uvloop.run(_adapt(server, options, process))


@contextlib.contextmanager
def _running(server: str, options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The server, and all processes that it starts, while the block runs."""
    given = [str(options["server_port"]), options["model"]]
    command = [sys.executable, "-m", f"benchmarks.peers.on_{server}", *given]
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # what the server's children took counts as ours when they have ended
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=sys.stderr, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


async def _adapt(server: str, options: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
    import gmqtt

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    port, results, qos = options["server_port"], options["results"], options["qos"]
    await _answering(server, port, process)
    waiting: dict[str, asyncio.Queue[tuple[str, bytes]]] = {}

    async def serve(topic: str, frames: asyncio.Queue[tuple[str, bytes]]) -> None:
        ask = await CLIENTS[server](port)
        while True:
            frame, payload = await frames.get()
            result = {"id": frame, "topic": topic, "probability": await ask(topic, payload)}
            client.publish(results, json.dumps(result).encode(), qos=qos)

    def on_message(_: Any, topic: str, payload: bytes, __: int, properties: dict[str, Any]) -> int:
        frame = next((value for name, value in properties.get("user_property", ()) if name == "id"), "")
        if topic not in waiting:
            waiting[topic] = asyncio.Queue()
            streams.create_task(serve(topic, waiting[topic]))
        waiting[topic].put_nowait((frame, payload))
        return 0

    async with asyncio.TaskGroup() as streams:
        client = gmqtt.Client("", receive_maximum=1000)
        client.on_connect = lambda client, *_: client.subscribe(options["frames"], qos=qos)
        client.on_subscribe = lambda *_: print("ready", flush=True)
        client.on_message = on_message
        await client.connect("127.0.0.1", options["port"])
        await asyncio.Event().wait()


async def _answering(server: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until it does. Raises: TimeoutError: it does not within a minute; SystemExit: it has ended."""
    async with asyncio.timeout(_READY_S):
        while process.poll() is None:
            try:
                ask = await CLIENTS[server](port)
                await ask("ready", bytes(1024))
            except Exception:  # noqa: BLE001  # which one it is depends on the server's protocol
                await asyncio.sleep(0.2)
            else:
                return
    raise SystemExit(f"{server} has ended")  # its own last words say why
