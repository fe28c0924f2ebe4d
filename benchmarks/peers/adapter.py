"""Thin adapter between MQTT and a server: receives frames, calls the server, publishes the results.

The server is a child process. Streams are processed in parallel, each with one frame in flight, so frames stay in order
and no batch has two frames of one stream. The native load (`native.py`) calls the same server.
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

from benchmarks.peers.server_clients import CLIENTS

_READY_S = 60.0
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER`, see prctl(2)."""


def run(server: str, options: dict[str, Any]) -> None:
    """Run a server and its adapter until terminated."""
    import uvloop

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # until the event loop handles it
    with _running(server, options) as process, contextlib.suppress(asyncio.CancelledError):
        uvloop.run(_adapt(server, options, process))


@contextlib.contextmanager
def _running(server: str, options: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server and its child processes during the block."""
    arguments = [str(options["server_port"]), options["model"]]
    command = [sys.executable, "-m", f"benchmarks.peers.on_{server}", *arguments]
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # so that CPU time of the server's ended children counts as ours
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
    await _wait_ready(server, port, process)
    waiting: dict[str, asyncio.Queue[tuple[str, bytes]]] = {}

    async def serve(topic: str, frames: asyncio.Queue[tuple[str, bytes]]) -> None:
        infer = await CLIENTS[server](port)
        while True:
            frame, payload = await frames.get()
            result = {"id": frame, "topic": topic, "probability": await infer(topic, payload)}
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


async def _wait_ready(server: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server replies. Raises: TimeoutError: it does not within a minute; SystemExit: it exited."""
    async with asyncio.timeout(_READY_S):
        while process.poll() is None:
            try:
                infer = await CLIENTS[server](port)
                await infer("ready", bytes(1024))
            except Exception:  # noqa: BLE001  # the type depends on the server's protocol
                await asyncio.sleep(0.2)
            else:
                return
    raise SystemExit(f"{server} exited while starting; see its output above")
