"""Starts child processes of tests, benchmarks and demos so that they never outlive their parent.

- Signals that this process ignores have their default effect on the child. Background jobs of a shell ignore Ctrl-C,
  and `nohup` ignores hangups; children would inherit that.
- When this process ends, even by SIGKILL, the kernel kills the child, but not the child's own children.

Both need Linux. On other systems these functions only call `subprocess`.
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
        return subprocess.Popen(_tied(command), **options)  # noqa: S603 - the caller decides what to run

    return popen() if threading.current_thread() is threading.main_thread() else _starter().submit(popen).result()


async def start_async(command: Sequence[Part], **options: Any) -> asyncio.subprocess.Process:
    """Start an asyncio subprocess.

    Args:
        command: the program and its arguments.
        options: those of `asyncio.create_subprocess_exec`.
    """
    return await asyncio.create_subprocess_exec(*_tied(command), **options)


def run(command: Sequence[Part], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a process until it ends.

    Args:
        command: the program and its arguments.
        options: those of `subprocess.run`.
    """
    return subprocess.run(_tied(command), **options)  # noqa: S603, PLW1510 - the caller decides


def end(process: subprocess.Popen[Any], timeout_s: float = 20.0, sig: signal.Signals = signal.SIGTERM) -> None:
    """Send a process a signal and wait for its end; kill it after a timeout. It may have ended already.

    Args:
        process: the process.
        timeout_s: time until it is killed.
        sig: the signal.
    """
    process.send_signal(sig)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tied(command: Iterable[Part]) -> list[Part]:
    # These programs replace themselves by the next one, so the process id stays. A `preexec_fn` would make the child
    # copy this process's page tables: 0.2 s where models are loaded.
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
    # The kernel regards the thread that starts a child as its parent, so that thread must live as long as this process.
    return ThreadPoolExecutor(1, thread_name_prefix="starter")
