"""Starts the benchmarks' processes, waits for them, and ends them with the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import orjson
import psutil  # type: ignore[import-untyped]

from benchmarks.harness.load import PATIENCE_S, Measured, Spec
from benchmarks.peers.environment import PYTHON
from hedgerow.testing import processes
from hedgerow.testing.processes import end

ROOT = Path(__file__).parents[2]
_END_S = 10.0
_ANSWER_S = 120.0


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process when the block ends."""
    try:
        yield
    finally:
        end(process, _END_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass(frozen=True, slots=True)
class Started:
    """A started process.

    Attributes:
        pid: its id.
        wait: returns when it accepts frames. Raises: RuntimeError: it failed to start.
        read_log: returns its log so far.
        config: of a node.
    """

    pid: int
    wait: Callable[[], None]
    read_log: Callable[[], str] = str
    config: dict[str, Any] = field(default_factory=dict)


@contextmanager
def peer(
    name: str, port: int, *, module: str = "benchmarks.peers", python: str = sys.executable, **options: Any
) -> Iterator[Started]:
    """Run a peer of a module in its own process."""
    with TemporaryFile() as log, ended(process := _python(module, name, {"port": port, **options}, python, log)):

        def read_log() -> str:
            return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")

        @cache
        def wait() -> None:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"The peer {name} did not subscribe:\n{read_log()[-3000:]}")

        yield Started(process.pid, wait, read_log)


def measure(spec: Spec, read_log: Callable[[], str] = str, native_server: str = "") -> Measured:
    """Run the load.

    Args:
        read_log: returns the log of the loaded process.
        native_server: server to load directly, bypassing the broker.
    Raises: RuntimeError: no result arrived.
    """
    load = (
        ("benchmarks.peers.native", native_server, asdict(spec), PYTHON)
        if native_server
        else ("benchmarks.harness.load", "", asdict(spec))
    )
    with ended(process := _python(*load)):
        out, _ = process.communicate(timeout=spec.warmup_s + spec.seconds + 2 * PATIENCE_S + _ANSWER_S)
    if process.returncode:
        raise RuntimeError(f"The load exited with {process.returncode}:\n{read_log()[-3000:]}")
    measured = Measured(**orjson.loads(out))
    if not measured.results:
        raise RuntimeError(f"No result was published on {spec.results}:\n{read_log()[-3000:]}")
    return measured


def raw(case: str, seconds: float, **options: Any) -> dict[str, Any]:
    """Measure a backend alone (`raw.py`)."""
    with ended(process := _python("benchmarks.harness.raw", case, {"seconds": seconds, **options})):
        out, _ = process.communicate(timeout=_ANSWER_S)
    measured: dict[str, Any] = orjson.loads(out)
    return measured


def _python(
    module: str, argument: str, options: Mapping[str, Any], python: str = sys.executable, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a module as a process, with its options as JSON on standard input."""
    process = processes.start(
        [python, "-m", module, *([argument] if argument else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        env=os.environ.copy(),
    )
    assert process.stdin is not None
    process.stdin.write(orjson.dumps(options))
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    return process


@dataclass(slots=True)
class BackgroundLoad:
    """Measures how many cores unrelated processes used during the block.

    That is the machine's CPU time minus that of this process and of its children that have ended.
    """

    cores: float = 0.0
    _start: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._start = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, busy, ours = (now - then for now, then in zip(self._now(), self._start, strict=True))
        self.cores = max(busy - ours, 0.0) / seconds

    @staticmethod
    def _now() -> tuple[float, float, float]:
        whole = psutil.cpu_times()
        busy = sum(whole) - whole.idle - getattr(whole, "iowait", 0.0) - getattr(whole, "guest", 0.0)
        return time.monotonic(), busy, sum(os.times()[:4])
