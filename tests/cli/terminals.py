"""Command lines on a pseudo-terminal, as a person runs them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from hedgerow.testing import processes

_END_S = 110.0


class Terminal:
    """A process on a terminal of its own.

    Attributes:
        process: it.
    """

    def __init__(self, command: Sequence[str], master: int, slave: int, environment: dict[str, str]) -> None:
        self.process = processes.start(
            command,
            stdin=subprocess.DEVNULL,  # nobody answers questions
            stdout=slave,
            stderr=slave,
            env=environment,
        )
        os.close(slave)
        self._master = master
        self._parts: list[bytes] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def shown(self) -> str:
        """All that was written so far."""
        return b"".join(self._parts).decode(errors="replace")

    def until(self, condition: Callable[[str], bool]) -> str:
        """Wait until what was written fulfils a condition. Returns: it. Raises: AssertionError: it never does."""
        deadline = time.monotonic() + _END_S
        while not condition(self.shown):
            assert self._reading.is_alive() or condition(self.shown), self.shown
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.02)
        return self.shown

    def end(self) -> tuple[int, str]:
        """Wait for its end. Returns: exit code, all that was written. Raises: AssertionError: it does not end."""
        self._reading.join(_END_S)
        assert not self._reading.is_alive(), f"it has not ended:\n{self.shown}"
        return self.process.wait(_END_S), self.shown

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C, and wait for its end. Returns: exit code, all that was written."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # Linux says so when the other side has closed
            while part := os.read(self._master, 65536):
                self._parts.append(part)


@contextmanager
def terminal(*command: object, columns: int = 120, lines: int = 50, **environment: str) -> Iterator[Terminal]:
    """A command line of `hedgerow` on a terminal; one that begins with `-c` is Python's."""
    master, slave = pty.openpty()
    program = [] if command[0] == "-c" else ["-m", "hedgerow"]
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    size = {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
    made = Terminal([sys.executable, *program, *map(str, command)], master, slave, plain | size | environment)
    try:
        yield made
    finally:
        made.close()
