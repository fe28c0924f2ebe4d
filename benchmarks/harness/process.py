"""Processes of the benchmarks' own: started, waited for, and gone when a benchmark ends, however it ends."""

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
    """A process that is on its way up.

    Attributes:
        pid: its id.
        wait: returns when it takes frames. Raises: RuntimeError: it does not.
        said: what it has logged so far.
        config: of a node.
    """

    pid: int
    wait: Callable[[], None]
    said: Callable[[], str] = str
    config: dict[str, Any] = field(default_factory=dict)


@contextmanager
def peer(
    name: str, port: int, *, module: str = "benchmarks.peers", python: str = sys.executable, **options: Any
) -> Iterator[Started]:
    """A peer of that module in a process of its own."""
    with TemporaryFile() as log, ended(process := _python(module, name, {"port": port, **options}, python, log)):

        def said() -> str:
            return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")

        @cache
        def wait() -> None:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"The peer {name} did not subscribe:\n{said()[-3000:]}")

        yield Started(process.pid, wait, said)


def measure(spec: Spec, said: Callable[[], str] = str, past: str = "") -> Measured:
    """One run of the load.

    Args:
        said: what the process that was loaded has logged.
        past: the peers' server that is asked natively, past the broker.
    Raises: RuntimeError: no result came at all.
    """
    load = (
        ("benchmarks.peers.native", past, asdict(spec), PYTHON)
        if past
        else ("benchmarks.harness.load", "", asdict(spec))
    )
    with ended(process := _python(*load)):
        out, _ = process.communicate(timeout=spec.warmup_s + spec.seconds + 2 * PATIENCE_S + _ANSWER_S)
    if process.returncode:
        raise RuntimeError(f"The load ended with {process.returncode}\n{said()[-3000:]}")
    measured = Measured(**orjson.loads(out))
    if not measured.results:
        raise RuntimeError(f"No result came on {spec.results}\n{said()[-3000:]}")
    return measured


def raw(case: str, seconds: float, **options: Any) -> dict[str, Any]:
    """What a backend does alone (`raw.py`)."""
    with ended(process := _python("benchmarks.harness.raw", case, {"seconds": seconds, **options})):
        out, _ = process.communicate(timeout=_ANSWER_S)
    measured: dict[str, Any] = orjson.loads(out)
    return measured


def _python(
    module: str, argument: str, given: Mapping[str, Any], python: str = sys.executable, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """A module of ours as a process that finds what it is given on its standard input."""
    process = processes.start(
        [python, "-m", module, *([argument] if argument else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        env=os.environ.copy(),
    )
    assert process.stdin is not None
    process.stdin.write(orjson.dumps(given))
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    return process


@dataclass(slots=True)
class Company:
    """How many cores were taken by work that is none of ours while the block ran. Known when it has ended.

    All of the machine's time, less that of this process and of those it started and has seen end.
    """

    cores: float = 0.0
    _began: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._began = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        at, busy, ours = (now - then for now, then in zip(self._now(), self._began, strict=True))
        self.cores = max(busy - ours, 0.0) / at

    @staticmethod
    def _now() -> tuple[float, float, float]:
        whole = psutil.cpu_times()
        busy = sum(whole) - whole.idle - getattr(whole, "iowait", 0.0) - getattr(whole, "guest", 0.0)
        return time.monotonic(), busy, sum(os.times()[:4])
