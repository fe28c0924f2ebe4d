"""What documentation is made of, and a place to run it in.

Every fenced block of README.md and docs/ says by its first line what it is:

    ```sh                          is run, in order, in one folder per document; it must exit with 0
    ```sh background: until TEXT   is started and goes on; the next block waits until it has printed TEXT
    ```sh fails: CODE              is run and must exit with that code
    ```sh not-run: REASON          is not run
    ```text                        is what the last `sh` block that ended has printed: these lines, in this order.
                                   Numbers may differ, `…` stands for anything
    ```text background             is what one that goes on has printed
    ```text not-run: REASON        is what a command printed that is not run
    ```yaml, ```python, …          is checked by its language; with a FILE after that it is saved as that file

A document runs as a reader would run it: with a virtual environment of its own, so that it may install things, and with
a broker on the usual port. Where the document starts no broker itself, there is one.
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
_STARTS_A_BROKER = re.compile(r"^mosquitto -", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows that on its first line, its text and its line in the document."""

    language: str
    info: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file it is to be saved as."""
        first = self.info.partition(" ")[0]
        return first if "." in first else None

    def said(self, word: str) -> str | None:
        """What follows `word:` in the first line."""
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
    """Does what a document says, in a folder of its own."""

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
        """Do what a block says. Raises: AssertionError: it does not do as the document says."""
        if block.said("not-run") is not None:
            return
        if block.language == "text":
            self._compare(block)
        elif block.language != "sh":
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._here(block.text), "utf-8")
        elif (until := block.said("background")) is not None:
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
                raise AssertionError(f"line {block.line} did not end:\n{block.text}\n{self._log.read_text()}") from None
        expected = int(block.said("fails") or 0)
        assert code == expected, f"line {block.line} gave {code}:\n{block.text}\n{self._log.read_text()}"

    def _start(self, block: Block, until: str) -> None:
        path = self.folder / f".out{block.line}"
        with path.open("w+") as log:
            process = self._shell(block, log)
        self._background.append(process)
        self._background_logs.append(path)
        deadline = time.monotonic() + PATIENCE_S
        while until not in path.read_text():
            assert process.poll() is None, f"line {block.line} ended:\n{path.read_text()}"
            assert time.monotonic() < deadline, f"line {block.line} never said {until!r}:\n{path.read_text()}"
            time.sleep(0.05)

    def _compare(self, block: Block) -> None:
        """Look for the block's lines in what was printed; what goes on may still be about to print them."""
        wanted = [line for line in block.text.splitlines() if line.strip()]
        logs = self._background_logs if block.info == "background" else [self._log]
        deadline = time.monotonic() + (PATIENCE_S if block.info == "background" else 0)
        while True:
            printed = [log.read_text() for log in logs]
            missing = [first_missing(wanted, text) for text in printed]
            if None in missing:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"line {block.line}: no line like {missing[0]!r} in\n" + "\n".join(printed))
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
        for pid_file in self.folder.rglob("*.pid"):  # what went into the background by itself
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        self._stack.close()


def first_missing(wanted: list[str], printed: str) -> str | None:
    """The first of these lines that was not printed after those before it; numbers may differ, `…` is anything."""
    lines = iter(printed.splitlines())
    for line in wanted:
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
    """One that sees all that is installed here, and into which more can be installed; gives back its programs."""
    venv.create(folder, symlinks=True, with_pip=False)
    here = sysconfig.get_path("purelib")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
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
    """Makes a reader of a document, with a broker if the document starts none."""
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
