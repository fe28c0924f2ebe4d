"""Runs contenders side by side: one broker, all contenders up, the load on one at a time, in turns.

An idle contender costs almost nothing, so none is restarted between turns, and other work on the machine affects all
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from benchmarks.harness.cells import Cell, Options, cell, ratio
from benchmarks.harness.load import Measured, Spec
from benchmarks.harness.node import RESULTS, node
from benchmarks.harness.process import Started, measure, peer
from benchmarks.harness.region import region
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.ports import held_port


@dataclass(slots=True)
class Contender:
    """A contender and its measurements.

    Attributes:
        name: in the report; also the topic prefix of its frames.
        process: its process.
        results: topic of its results.
        native_server: server to load directly instead, bypassing the broker.
        runs: measurements, one per repeat.
    """

    name: str
    process: Started
    results: str
    native_server: str = ""
    runs: list[Measured] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Results per second, by repeat."""
        return [run.rate for run in self.runs]

    def cpu_us(self, *roles: str) -> list[float]:
        """Return CPU time per result of these processes together, in µs, by repeat."""
        return [sum(run.cpu_s[role] for role in roles) / max(run.results, 1) * 1e6 for run in self.runs]


class Arena:
    """A broker and the contenders on it."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.broker = self._stack.enter_context(Mosquitto())
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="hedgerow-bench-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def port(self) -> int:
        """Reserve a port until the arena ends."""
        return self._stack.enter_context(held_port())

    def add_peer(self, name: str, peer_name: str, qos: int = 0, **options: Any) -> Contender:
        """Start a peer."""
        results = f"out/{name}"
        options |= {"frames": f"{name}/#", "results": results, "qos": qos}
        started = self._stack.enter_context(peer(peer_name, self.broker.port, **options))
        return Contender(name, started, results)

    def add_node(
        self, name: str, pipeline: dict[str, Any], models: dict[str, Any] | None = None, **sections: Any
    ) -> Contender:
        """Start a node that runs one pipeline."""
        pipelines = {"main": {"subscribe": f"{name}/#", **pipeline}}
        started = self._stack.enter_context(node(name, self.broker, self.folder, pipelines, models, **sections))
        return Contender(name, started, RESULTS.format(node=name, pipeline="main"))

    def add_region(self) -> None:
        """Start a region's service, and wait until it stores what nodes send."""
        self._stack.enter_context(region(self.broker, self.folder)).wait()

    def payloads(self, contents: Sequence[bytes]) -> list[str]:
        """Write payloads to files, for the load to read."""
        folder = self.folder / f"payloads-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / f"{number:04}").write_bytes(content)
        return [str(path) for path in sorted(folder.iterdir())]

    def load(self, contender: Contender, streams: int, payloads: list[str], options: Options, **spec: Any) -> Measured:
        """Run the load on a contender, and append the measurement to its `runs`."""
        if not contender.runs:
            contender.process.wait()  # not earlier, so that all start in parallel
        defaults: dict[str, Any] = {
            "port": self.broker.port,
            "topics": [f"{contender.name}/{stream}" for stream in range(streams)],
            "payloads": payloads,
            "results": contender.results,
            "warmup_s": options.warmup_s,
            "seconds": options.seconds,
            "pids": self._pids(contender),
        }
        measured = measure(Spec(**(defaults | spec)), contender.process.read_log, contender.native_server)
        contender.runs.append(measured)
        return measured

    def load_broker(self, streams: int, payloads: list[str], options: Options, rate: float, **spec: Any) -> Measured:
        """Run the load on the broker alone: it receives its own frames."""
        return measure(
            Spec(
                port=self.broker.port,
                topics=[f"echo/{stream}" for stream in range(streams)],
                payloads=payloads,
                results="echo/#",
                rate=rate,
                warmup_s=options.warmup_s,
                seconds=options.seconds,
                **spec,
            )
        )

    def _pids(self, contender: Contender) -> dict[str, int]:
        assert self.broker.pid is not None
        return {"contender": contender.process.pid, "broker": self.broker.pid}


def costs(id: str, contender: Contender, case: str = "") -> list[Cell]:
    """Return rate and CPU time of a contender. `case` distinguishes the cases of one suite."""
    key, name = contender.name, f"{case}{contender.name}"
    stalls = sum(run.stalls for run in contender.runs)
    note = f"{stalls} stalls" if stalls else ""
    return [
        cell(f"{id}.rate.{key}", f"{name}: results", contender.rates, "frames/s", note),
        cell(f"{id}.cpu.{key}", f"{name}: CPU time per frame", contender.cpu_us("contender"), "µs"),
        cell(
            f"{id}.cpu_all.{key}",
            f"{name}: CPU time per frame, with broker and load",
            contender.cpu_us("contender", "broker", "load"),
            "µs",
        ),
    ]


def cpu_ratio(id: str, loop: Contender, node: Contender) -> Cell:
    """Return a peer's CPU time per frame ÷ the node's; more telling than rates if cores are contended."""
    name = f"CPU time per frame, {loop.name} ÷ {node.name}"
    return ratio(id, name, loop.cpu_us("contender"), node.cpu_us("contender"))
