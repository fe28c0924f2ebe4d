"""Child processes of tests, benchmarks and demos: all start here, as from a terminal, and come to an end, whatever happens.

- A signal that this process ignores has its default effect on the child. A shell lets what it starts in the background
  ignore Ctrl-C, `nohup` lets it ignore hangups, and children inherit that.
- When this process ends, even by SIGKILL, the kernel kills the child. What the child has started is for the child to end.

Both need Linux. Elsewhere these are `subprocess` and nothing more.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from os import PathLike
from typing import Any

Part = str | PathLike[str]

_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)  # Python itself restores SIGPIPE


def start(command: Sequence[Part], **options: Any) -> subprocess.Popen[Any]:
    """Start a process.

    Args:
        command: the program and its arguments.
        options: those of `subprocess.Popen`.
    """

    def popen() -> subprocess.Popen[Any]:
        return subprocess.Popen(_tied(command), **options)  # noqa: S603 - what to run is the caller's to know

    return popen() if threading.current_thread() is threading.main_thread() else _starter().submit(popen).result()


async def start_async(command: Sequence[Part], **options: Any) -> asyncio.subprocess.Process:
    """Start a process that asyncio waits for.

    Args:
        command: the program and its arguments.
        options: those of `asyncio.create_subprocess_exec`.
    """
    return await asyncio.create_subprocess_exec(*_tied(command), **options)


def run(command: Sequence[Part], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a process to its end.

    Args:
        command: the program and its arguments.
        options: those of `subprocess.run`.
    """
    return subprocess.run(_tied(command), **options)  # noqa: S603, PLW1510 - what and how is the caller's to know


def end(process: subprocess.Popen[Any], patience_s: float = 20.0, how: signal.Signals = signal.SIGTERM) -> None:
    """Ask a process to end; kill it if it takes long. One that has ended already is no error.

    Args:
        patience_s: how long it may take.
        how: by which signal it is asked.
    """
    process.send_signal(how)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tied(command: Iterable[Part]) -> list[Part]:
    # Small programs that replace themselves by the next, and so keep the process id. A function for the child to call
    # (`preexec_fn`) would need a copy of all this process's memory tables: a fifth of a second where models are loaded.
    return [*_dying_with_parent(), *_default_signals(), *command]


@cache
def _dying_with_parent() -> tuple[str, ...]:
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


def _default_signals() -> tuple[str, ...]:
    ignored = [number.name.removeprefix("SIG") for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    env = shutil.which("env") if ignored and sys.platform == "linux" else None
    return (env, f"--default-signal={','.join(ignored)}") if env else ()


@cache
def _starter() -> ThreadPoolExecutor:
    # To the kernel the parent is the thread that starts the child, so that must be one that stays as long as we do.
    return ThreadPoolExecutor(1, thread_name_prefix="starter")
