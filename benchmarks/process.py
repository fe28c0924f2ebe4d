"""Processes of the benchmarks' own: started, waited for, and gone when a benchmark ends, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.load import Measured, Spec

_ROOT = Path(__file__).parent.parent
_END_S = 10.0


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process when the block ends."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
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
    """

    pid: int
    wait: Callable[[], None]
    said: Callable[[], str] = str


@contextmanager
def peer(name: str, port: int, **options: Any) -> Iterator[Started]:
    """A peer (`peers.py`) in a process of its own."""
    with ended(process := _python("benchmarks.peers", name, {"port": port, **options})):

        def wait() -> None:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"The peer {name} did not subscribe")

        yield Started(process.pid, wait)


def measure(spec: Spec) -> Measured:
    """One run of the load."""
    with ended(process := _python("benchmarks.load", "", asdict(spec))):
        out, _ = process.communicate(timeout=spec.warmup_s + spec.seconds + 60)
    return Measured(**orjson.loads(out))


def raw(case: str, seconds: float, **options: Any) -> dict[str, Any]:
    """What a backend does alone (`raw.py`)."""
    with ended(process := _python("benchmarks.raw", case, {"seconds": seconds, **options})):
        out, _ = process.communicate(timeout=120)
    measured: dict[str, Any] = orjson.loads(out)
    return measured


def _python(module: str, argument: str, given: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """A module of ours as a process that finds what it is given on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *([argument] if argument else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        env=os.environ.copy(),
    )
    assert process.stdin is not None
    process.stdin.write(orjson.dumps(given))
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    return process
