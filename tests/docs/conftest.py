"""Parses the fenced blocks of documents and runs them.

The first line of each block in README.md and docs/ says how it is tested:

    ```sh                          run, in order, in one folder per document; must exit with 0
    ```sh background: until TEXT   started in the background; the next block waits until it has printed TEXT
    ```sh fails: CODE              run; must exit with this code
    ```sh not-run: REASON          not run
    ```text                        output of the last foreground `sh` block: these lines, in this order. Numbers may
                                   differ, `…` stands for anything
    ```text background             output of a background block
    ```text not-run: REASON        output of a command that is not run
    ```yaml, ```python, …          checked by language; if followed by FILE, saved as that file

A document runs as a reader would run it: with its own virtual environment, so that it may install packages, and with a
broker on the default port, which the test starts unless the document does.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hedgerow.testing import processes
from hedgerow.testing.mosquitto import Mosquitto
from hedgerow.testing.ports import held_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
_BLOCK = re.compile(r"^```(\w+)(?: +([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STARTS_A_BROKER = re.compile(r"^(mosquitto -|broker/local.sh start)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of its first line, its text, and its line in the document."""

    language: str
    info: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """Name of the file to save it as."""
        first = self.info.partition(" ")[0]
        return first if "." in first else None

    def option(self, word: str) -> str | None:
        """Return the text after `word:` in the first line."""
        return self.info.removeprefix(f"{word}:").strip() if self.info.startswith(f"{word}:") else None


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text("utf-8")
    return [
        Block(match[1], match[2] or "", match[3], text[: match.start()].count("\n") + 1)
        for match in _BLOCK.finditer(text)
    ]


@pytest.fixture
def blocks() -> Callable[[Path], list[Block]]:
    return blocks_of


class Reader:
    """Runs the blocks of a document in its own folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._ports = {"1883": str(port)} | {
            usual: str(self._stack.enter_context(held_port())) for usual in ("8883", "8884", "9464", "9466")
        }
        self._background: list[subprocess.Popen[str]] = []
        self._log = folder / ".out"
        self._background_logs: list[Path] = []
        for name in ("configs", "broker"):
            shutil.copytree(ROOT / name, folder / name)
            for path in (folder / name).rglob("*"):
                if path.suffix in (".yaml", ".conf"):
                    path.write_text(self._here(path.read_text("utf-8")), "utf-8")
        environment = _virtual_environment(folder / ".venv")
        tools = folder / ".xdg"
        tools.mkdir()
        for name in ("mosquitto_pub", "mosquitto_sub"):
            (tools / name).write_text(f"-p {port}\n")
        self._environment = os.environ | {
            "PATH": f"{environment}:/usr/sbin:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tools),
            "HEDGEROW_BROKER__URL": f"mqtt://127.0.0.1:{port}",
            "HEDGEROW_METRICS__PORT": self._ports["9464"],
            "NO_COLOR": "1",
            "COLUMNS": "110",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }

    def read(self, block: Block) -> None:
        """Run, save or compare a block. Raises: AssertionError: the result differs from the document."""
        if block.option("not-run") is not None:
            return
        if block.language == "text":
            self._compare(block)
        elif block.language != "sh":
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._here(block.text), "utf-8")
        elif (until := block.option("background")) is not None:
            self._start(block, until.removeprefix("until").strip())
        else:
            self._run(block)

    def _run(self, block: Block) -> None:
        with self._log.open("w+") as log:
            process = self._shell(block, log)
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(
                    f"line {block.line} did not end within {PATIENCE_S} s:\n{block.text}\n{self._log.read_text()}"
                ) from None
        expected = int(block.option("fails") or 0)
        assert code == expected, f"line {block.line} exited with {code}:\n{block.text}\n{self._log.read_text()}"

    def _start(self, block: Block, until: str) -> None:
        path = self.folder / f".out{block.line}"
        with path.open("w+") as log:
            process = self._shell(block, log)
        self._background.append(process)
        self._background_logs.append(path)
        deadline = time.monotonic() + PATIENCE_S
        while until not in path.read_text():
            assert process.poll() is None, f"line {block.line} exited:\n{path.read_text()}"
            assert time.monotonic() < deadline, f"line {block.line} did not print {until!r}:\n{path.read_text()}"
            time.sleep(0.05)

    def _compare(self, block: Block) -> None:
        """Find the block's lines in the output, waiting for background processes to print them."""
        expected = [line for line in block.text.splitlines() if line.strip()]
        logs = self._background_logs if block.info == "background" else [self._log]
        deadline = time.monotonic() + (PATIENCE_S if block.info == "background" else 0)
        while True:
            printed = [log.read_text() for log in logs]
            missing = [first_missing(expected, text) for text in printed]
            if None in missing:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"line {block.line}: no line matches {missing[0]!r} in\n" + "\n".join(printed))
            time.sleep(0.1)

    def _shell(self, block: Block, log: object) -> subprocess.Popen[str]:
        return processes.start(
            ["bash", "-euo", "pipefail", "-c", self._here(block.text)],
            cwd=self.folder,
            env=self._environment,
            stdout=log,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _here(self, text: str) -> str:
        for usual, ours in self._ports.items():
            text = re.sub(rf"\b{usual}\b", ours, text)
        return text

    def close(self) -> None:
        for process in self._background:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in self._background:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        for pid_file in self.folder.rglob("*.pid"):  # daemons
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        self._stack.close()


def first_missing(expected: list[str], printed: str) -> str | None:
    """Return the first expected line not printed in order; numbers may differ, `…` is anything."""
    lines = iter(printed.splitlines())
    for line in expected:
        pieces = [_pattern(piece) for piece in re.split(r"(…|\d+|\s+)", line.strip())]
        pattern = re.compile(rf"\s*{''.join(pieces)}\s*")
        if not any(pattern.fullmatch(found) for found in lines):
            return line
    return None


def _pattern(piece: str) -> str:
    if piece == "…":
        return ".*"
    return r"\d+" if piece.isdigit() else r"\s+" if piece.isspace() else re.escape(piece)


def _virtual_environment(folder: Path) -> Path:
    """Create a virtual environment that also has the current packages. Returns: its folder of programs."""
    venv.create(folder, symlinks=True, with_pip=False)
    current = sysconfig.get_path("purelib")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "current.pth").write_text(f"import site; site.addsitedir({current!r})\n")
    programs = folder / "bin"
    for name, run in (
        ("hedgerow", "from hedgerow.__main__ import main"),
        ("pip", "from pip._internal.cli.main import main"),
        ("pytest", "from pytest import main"),
    ):
        (programs / name).write_text(f"#!{programs / 'python'}\nimport sys\n{run}\nsys.exit(main())\n")
        (programs / name).chmod(0o755)
    return programs


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[[Path], Reader]]:
    """Make a reader of a document, with a broker unless the document starts one."""
    stack = ExitStack()

    def make(document: Path) -> Reader:
        shell = "".join(block.text for block in blocks_of(document) if block.language == "sh")
        if re.search(r"\bcurl ", shell) and shutil.which("curl") is None:
            pytest.skip("curl is not installed: apt-get install curl")
        if _STARTS_A_BROKER.search(shell):
            port = stack.enter_context(held_port())
        else:
            port = stack.enter_context(Mosquitto()).port
        return stack.enter_context(closing(Reader(tmp_path, port)))

    with stack:
        yield make
