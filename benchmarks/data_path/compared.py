"""Voice activity, 64 microphones: the node beside its alternatives.

Hand-written loops on three MQTT clients, a framework, and two servers: loaded natively, bypassing the broker, and
behind a thin MQTT adapter. All run in one session, in turns. A peer that cannot be installed or fails is reported with
its error, and the others continue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from subprocess import SubprocessError
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena, Contender, costs, cpu_ratio
from benchmarks.harness.cells import Cell, Options, ratio
from benchmarks.harness.raw import VAD, path_of
from benchmarks.peers import environment

_LOOPS = {
    "paho": "loop_forever, its fastest loop; model and publishing in on_message",
    "gmqtt": "a plain callback, on uvloop",
    "aiomqtt": "the model inside `async for`",
}
_FASTSTREAM = "on uvloop; no argument casts, no payload guessing, no log line per message"
_SERVERS = {
    "litserve": ("http", "batches up to 64 within 1 ms, fast_queue, two API servers"),
    "mlserver": ("grpc", "one streaming call per microphone, parallel_workers=0, no metrics"),
}
Turns = list[tuple[Contender, str, dict[str, Any]]]
"""Contenders with a note on their settings and their options of the load."""


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0. A smoke run skips peers that need their own environment."""
    options = replace(options, seconds=min(options.seconds, 1.0))
    failed: dict[str, str] = {}
    with Arena() as arena:
        node = arena.add_node("node", vad.PIPELINE, {"vad": vad.MODEL})
        payloads = arena.payloads(vad.sound())
        turns = [(node, "", {}), *_loops(arena)]
        if not options.smoke:
            with _noting(failed, "FastStream, LitServe, MLServer"):
                environment.make()
                turns += _servers(arena)
        for contender, _, _ in turns:
            with _noting(failed, contender.name):
                contender.process.wait()
                _for_children(contender, psutil.Process.suspend)
        for _ in range(options.repeats):
            for contender, _, spec in (each for each in turns if each[0].name not in failed):
                with _noting(failed, contender.name):
                    _for_children(contender, psutil.Process.resume)
                    arena.load(contender, vad.STREAMS, payloads, options, window=vad.WINDOW, **spec)
                    _for_children(contender, psutil.Process.suspend)
    if node.name in failed:
        raise RuntimeError(failed[node.name])
    cells = costs("peers", node)
    for peer, note, _ in turns[1:]:
        if peer.name not in failed:
            cells += costs("peers", peer)
            cells.append(ratio(f"peers.node_per_{peer.name}", f"node ÷ {peer.name}", node.rates, peer.rates, note))
            cells.append(cpu_ratio(f"peers.cpu_{peer.name}_per_node", peer, node))
    if failed:
        note = "; ".join(f"{name}: {error}" for name, error in failed.items())
        cells.append(Cell("peers.failed", "peers that failed", len(failed), "peers", 0, len(failed), note))
    return cells


@contextmanager
def _noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """Record why a peer fails: the last error in its output."""
    try:
        yield
    except (OSError, RuntimeError, SubprocessError, psutil.Error) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        failed[name] = next((line for line in reversed(lines) if "rror" in line), lines[-1]).strip(" |")


def _for_children(contender: Contender, suspend_or_resume: Callable[[psutil.Process], None]) -> None:
    """Suspend or resume the server below an adapter: outside its turn LitServe would use an eighth of a core."""
    for each in psutil.Process(contender.process.pid).children(recursive=True):
        suspend_or_resume(each)


def _loops(arena: Arena) -> Turns:
    return [(arena.add_peer(name, f"vad-{name}"), note, {}) for name, note in _LOOPS.items()]


def _servers(arena: Arena) -> Turns:
    """Start the peers that have their own environment."""
    options: dict[str, Any] = {"model": path_of(VAD), "python": environment.PYTHON}
    note = f"FastStream {environment.version('faststream')}: {_FASTSTREAM}"
    turns: Turns = [(arena.add_peer("faststream", "vad-faststream", **options), note, {})]
    for name, (protocol, settings) in _SERVERS.items():
        port = arena.port()
        adapter = arena.add_peer(f"{name}-mqtt", f"vad-{name}", server_port=port, **options)
        native = Contender(f"{name}-{protocol}", adapter.process, "", native_server=name)
        note = f"{name} {environment.version(name)}: {settings}; one frame in flight per stream"
        turns += [(native, note, {"port": port}), (adapter, note, {})]
    return turns
