"""Real processes of the command line, each of which kills itself with SIGKILL at a step that the test names.

Importing takes a second, so a server process imports once and forks for each command; the fork runs `hedgerow` as it is. Beside it a
counter sees what the process does to the world: files that it opens to write, syncs, renames and removes, connections, what it sends,
and statements of the store. The counter changes nothing; at one of these steps, before it is done, it sends SIGKILL.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hedgerow.testing import processes

PATIENCE_S = 120.0
_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG`, see prctl(2)."""
_FILES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "fcntl.flock"}


class Command:
    """A command that runs in a process of its own.

    Attributes:
        pid: its process.
    """

    def __init__(self, folder: Path, argv: Sequence[str], pid: int) -> None:
        self._folder, self._argv, self.pid = folder, argv, pid

    @property
    def ended(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        with suppress(FileNotFoundError, ValueError):
            return os.waitstatus_to_exitcode(int((self._folder / "ended").read_text()))
        return None

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while (ended := self.ended) is None:
            assert time.monotonic() < deadline, f"{shlex.join(self._argv)} does not end:\n{self.err}"
            time.sleep(0.005)
        return ended

    def finish(self) -> str:
        """Wait until it has succeeded. Returns: what it printed."""
        assert self.wait() == 0, f"{shlex.join(self._argv)}\n{self.err}\n{self.out}"
        return self.out

    def die(self, step: int) -> None:
        """Wait until it is killed at a step; it may end in order if it came to its end in fewer, since it had to repeat nothing."""
        ended = self.wait()
        assert ended == -signal.SIGKILL or (ended == 0 and len(self.steps) < step), f"{ended}\n{self.err}"

    def kill(self) -> None:
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def end(self) -> None:
        """End it in order."""
        os.kill(self.pid, signal.SIGTERM)
        self.wait()

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    @property
    def steps(self) -> list[str]:
        """The steps that it has begun; the last one is where it was killed."""
        return (self._folder / "steps").read_text().splitlines()


class Forks:
    """The server process.

    Args:
        folder: for the output of commands.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count, self._lock = folder, 0, threading.Lock()
        with (folder / "forks.log").open("ab") as log:
            self._server: subprocess.Popen[bytes] = processes.start(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def start(self, *argv: object, kill_at: int | None = None, armed_by: str = "") -> Command:
        """Start a command.

        Args:
            kill_at: number of the step at which it is killed, from 1.
            armed_by: `module:function` of its own; steps count from when that has first returned something, or raised.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        words = [*map(str, argv)]
        with self._lock:
            self._count += 1
            folder = self._folder / f"command-{self._count}"
            folder.mkdir()
            for name in ("out", "err", "steps"):
                (folder / name).touch()
            request = {"folder": str(folder), "argv": words, "kill_at": kill_at, "armed_by": armed_by}
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
        assert answer, (self._folder / "forks.log").read_text()
        return Command(folder, words, int(answer))

    def run(self, *argv: object) -> str:
        """Run a command until it has succeeded. Returns: what it printed."""
        return self.start(*argv).finish()

    def close(self) -> None:
        """End all commands and the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(PATIENCE_S)
        self._server.stdout.close()


def spread(steps: int, kills: int) -> list[int]:
    """Return the numbers of the steps to kill at: evenly over all, each of them if there are enough kills."""
    return [1 + (number * steps // kills if kills < steps else number % steps) for number in range(kills)]


class _Steps:
    """Counts this process's steps, and kills it at one."""

    def __init__(self, log: int, kill_at: int | None, *, armed: bool) -> None:
        self._log, self._kill_at, self.armed = log, kill_at, armed
        self._count, self._last, self._lock = 0, "", threading.Lock()

    def __call__(self, what: str) -> None:
        if not self.armed:
            return
        what = " ".join(what.split())[:120]
        with self._lock:
            if what == self._last and what.startswith("sql SELECT"):  # it waits, and asks again
                return
            self._last = what
            self._count += 1
            os.write(self._log, what.encode(errors="replace") + b"\n")
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
                while True:
                    signal.pause() if threading.current_thread() is threading.main_thread() else time.sleep(1)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if (
                isinstance(path, str)
                and flags & (os.O_WRONLY | os.O_RDWR)
                and not re.match(r"/dev/|/proc/|.*__pycache__", path)
            ):
                self(f"open {path}")
        elif event in _FILES:
            self(f"{event} {args[0]}")
        elif event == "socket.connect":
            self(f"connect {args[1]}")

    def wrap(self, owner: Any, name: str, what: Callable[..., str], *, after: bool = False) -> None:
        """Count calls of a function; with `after` also their ends."""
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self(what(*args))
            result = function(*args, **kwargs)
            if after:
                self(f"done {what(*args)}")
            return result

        setattr(owner, name, counted)

    def arm_at(self, place: str) -> None:
        """Begin to count when a function has returned something, or raised."""
        module, _, path = place.partition(":")
        owner: Any = __import__(module, fromlist=["_"])
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, name)

        def arming(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.armed = self.armed or bool(result)
            return result

        setattr(owner, name, arming)


def _install(steps: _Steps) -> None:
    from asyncio import selector_events

    import psycopg

    def connected(*args: Any, connect: Any = sqlite3.connect, **options: Any) -> sqlite3.Connection:
        steps("connect to the store")
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(lambda sql: steps(f"sql {sql}"))
        return connection

    sqlite3.connect = connected
    sys.addaudithook(steps.audit)
    steps.wrap(os, "fsync", lambda _: "fsync", after=True)
    steps.wrap(selector_events._SelectorSocketTransport, "write", lambda _, data: f"send {len(data)} bytes")
    for name in ("execute", "executemany", "copy"):
        steps.wrap(psycopg.Cursor, name, lambda _, query, *_more: f"sql {_text(query)}")
    steps.wrap(psycopg.Connection, "connect", lambda *_: "connect to the store")
    command = psycopg.Connection._exec_command

    def commanded(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        steps(f"sql {_text(query)}")
        result = yield from command(self, query, *args, **kwargs)
        steps(f"done sql {_text(query)}")
        return result

    psycopg.Connection._exec_command = commanded  # type: ignore[method-assign]


def _text(query: Any) -> str:
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


def _run(request: dict[str, Any]) -> int:
    """Run a command in this process, which was forked for it."""
    folder = Path(request["folder"])
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    log = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    steps = _Steps(log, request["kill_at"], armed=not request["armed_by"])
    _install(steps)
    if request["armed_by"]:
        steps.arm_at(request["armed_by"])
    sys.argv = ["hedgerow", *request["argv"]]
    from hedgerow.cli.main import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _fork(request: dict[str, Any], wakes: tuple[int, int]) -> int:
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (0, *wakes):
            os.close(descriptor)
        os.open(os.devnull, os.O_RDONLY)  # stdin
        code = _run(request)
    except BaseException:  # noqa: BLE001 - the fork must not go on as the server
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _import() -> None:
    import hedgerow.cli.main
    import hedgerow.cli.node.enrol
    import hedgerow.cli.region.backup
    import hedgerow.cli.region.enrolment
    import hedgerow.cli.region.life
    import hedgerow.cli.region.life_steps
    import hedgerow.cli.region.region
    import hedgerow.cli.topology.edit
    import hedgerow.enrolment.enrol
    import hedgerow.pki.folder
    import hedgerow.region.backup.backup
    import hedgerow.region.backup.restore
    import hedgerow.region.collector.service
    import hedgerow.region.enrolment.handlers
    import hedgerow.region.store.database.postgres
    import hedgerow.topology.model  # noqa: F401


def main() -> None:
    """Fork for each line on stdin; end with it."""
    _import()
    running: dict[int, Path] = {}
    wakes = os.pipe()
    for descriptor in wakes:
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wakes[1])
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines = b""
    while True:
        ready, _, _ = select.select([0, wakes[0]], [], [])
        if wakes[0] in ready:
            os.read(wakes[0], 1000)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            folder = running.pop(pid)
            (folder / "ended.new").write_text(str(status))
            (folder / "ended.new").rename(folder / "ended")
        if 0 in ready:
            lines += (read := os.read(0, 65_536))
            if not read:
                break
            *whole, lines = lines.split(b"\n")
            for line in whole:
                request = json.loads(line)
                pid = _fork(request, wakes)
                running[pid] = Path(request["folder"])
                os.write(1, f"{pid}\n".encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
