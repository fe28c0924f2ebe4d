"""Command lines run on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from hedgerow.testing import processes

COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;\d+)*m")
REDRAW = "\x1b[1A"
"""Moves the cursor up a line, as live views do before they draw again."""

_TIMEOUT_S = 110.0


class Terminal:
    """A process on a pseudo-terminal.

    Attributes:
        process: the process.
    """

    def __init__(self, command: Sequence[str], master: int, slave: int, environment: dict[str, str]) -> None:
        self.process = processes.start(
            command,
            stdin=subprocess.DEVNULL,  # a prompt fails instead of hanging
            stdout=slave,
            stderr=slave,
            env=environment,
        )
        os.close(slave)
        self._master = master
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything written so far."""
        return b"".join(self._parts).decode(errors="replace")

    def until(self, condition: Callable[[str], bool]) -> str:
        """Wait until the output meets a condition, and return it. Raises: AssertionError: it never does."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not condition(self.output):
            assert self._reader.is_alive() or condition(self.output), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        return self.output

    def wait(self) -> tuple[int, str]:
        """Wait for the process, and return its exit code and output. Raises: AssertionError: it does not end."""
        self._reader.join(_TIMEOUT_S)
        assert not self._reader.is_alive(), f"still running:\n{self.output}"
        return self.process.wait(_TIMEOUT_S), self.output

    def interrupt(self) -> tuple[int, str]:
        """Send Ctrl-C, wait for the process, and return its exit code and output."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # how Linux reports that the other side has closed
            while part := os.read(self._master, 65536):
                self._parts.append(part)


@contextmanager
def terminal(*command: object, columns: int = 120, lines: int = 50, **environment: str) -> Iterator[Terminal]:
    """Run `hedgerow COMMAND` on a terminal, or `python -c …` if the command begins with `-c`."""
    master, slave = pty.openpty()
    program = [] if command[0] == "-c" else ["-m", "hedgerow"]
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    size = {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
    started = Terminal([sys.executable, *program, *map(str, command)], master, slave, inherited | size | environment)
    try:
        yield started
    finally:
        started.close()
