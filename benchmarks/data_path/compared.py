"""Voice activity, 64 microphones: the node beside what else one could build it on.

Hand-written loops on three MQTT clients, a framework for them, and two servers: asked natively, past the broker, and
each behind one thin MQTT adapter. All in one session, in turns. A peer that cannot be installed or does not run is
named in the report with the error, and the rest go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from subprocess import SubprocessError
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena, Contender, cheaper, costs
from benchmarks.harness.cells import Cell, Options, ratio
from benchmarks.harness.raw import VAD, path_of
from benchmarks.peers import environment

_LOOPS = {
    "paho": "loop_forever, its quickest loop; model and publishing within on_message",
    "gmqtt": "a plain callback, on uvloop",
    "aiomqtt": "the model within `async for`",
}
_FASTSTREAM = "on uvloop; no casts, no guess at the payload, no log line a message"
_SERVERS = {
    "litserve": ("http", "batches up to 64 within 1 ms, fast_queue, two API servers"),
    "mlserver": ("grpc", "a streaming call for each microphone, parallel_workers=0, no metrics"),
}
Turns = list[tuple[Contender, str, dict[str, Any]]]
"""Of each: a note on its settings, and what is particular about the load."""


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0. A smoke run has only those peers that need no environment of their own."""
    options = replace(options, seconds=min(options.seconds, 1.0))
    failed: dict[str, str] = {}
    with Arena() as arena:
        node = arena.add_node("node", vad.PIPELINE, {"vad": vad.MODEL})
        payloads = arena.payloads(vad.sound())
        turns = [(node, "", {}), *_loops(arena)]
        if not options.smoke:
            with _noting(failed, "FastStream, LitServe, MLServer"):
                environment.make()
                turns += _strangers(arena)
        for contender, _, _ in turns:
            with _noting(failed, contender.name):
                contender.process.wait()
                _below(contender, psutil.Process.suspend)
        for _ in range(options.repeats):
            for contender, _, spec in (each for each in turns if each[0].name not in failed):
                with _noting(failed, contender.name):
                    _below(contender, psutil.Process.resume)
                    arena.load(contender, vad.STREAMS, payloads, options, window=vad.WINDOW, **spec)
                    _below(contender, psutil.Process.suspend)
    if node.name in failed:
        raise RuntimeError(failed[node.name])
    cells = costs("peers", node)
    for peer, note, _ in turns[1:]:
        if peer.name not in failed:
            cells += costs("peers", peer)
            cells.append(ratio(f"peers.node_per_{peer.name}", f"node ÷ {peer.name}", node.rates, peer.rates, note))
            cells.append(cheaper(f"peers.cpu_{peer.name}_per_node", peer, node))
    if failed:
        note = "; ".join(f"{name}: {error}" for name, error in failed.items())
        cells.append(Cell("peers.failed", "peers that did not run", len(failed), "peers", 0, len(failed), note))
    return cells


@contextmanager
def _noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note what keeps this one from running: the last error in what it said."""
    try:
        yield
    except (OSError, RuntimeError, SubprocessError, psutil.Error) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        failed[name] = next((line for line in reversed(lines) if "rror" in line), lines[-1]).strip(" |")


def _below(contender: Contender, suspend_or_resume: Callable[[psutil.Process], None]) -> None:
    """Servers, which are below their adapters, run only when it is their turn: LitServe idles on an eighth of a core."""
    for each in psutil.Process(contender.process.pid).children(recursive=True):
        suspend_or_resume(each)


def _loops(arena: Arena) -> Turns:
    return [(arena.add_peer(name, f"vad-{name}"), note, {}) for name, note in _LOOPS.items()]


def _strangers(arena: Arena) -> Turns:
    """The peers that have an environment of their own."""
    given: dict[str, Any] = {"model": path_of(VAD), "python": environment.PYTHON}
    note = f"FastStream {environment.version('faststream')}: {_FASTSTREAM}"
    turns: Turns = [(arena.add_peer("faststream", "vad-faststream", **given), note, {})]
    for name, (protocol, settings) in _SERVERS.items():
        port = arena.port()
        adapter = arena.add_peer(f"{name}-mqtt", f"vad-{name}", server_port=port, **given)
        native = Contender(f"{name}-{protocol}", adapter.process, "", past=name)
        note = f"{name} {environment.version(name)}: {settings}; one frame of a stream under way"
        turns += [(native, note, {"port": port}), (adapter, note, {})]
    return turns
