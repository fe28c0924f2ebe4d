"""The ceremonies of docs/operator/trust.md, command by command, in one process: quick enough for every day."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.docs.conftest import first_missing
from typer.testing import CliRunner

from hedgerow.cli.main import app

ROOT = Path(__file__).parents[2]


def test_every_ceremony_of_the_document_does_what_it_says(
    blocks: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes on in the background is left out; a slow test runs all of it as processes, as a reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    for name in [name for name in os.environ if name.startswith("HEDGEROW_")]:
        monkeypatch.delenv(name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("*.yaml"))
    printed = ""
    for block in blocks(ROOT / "docs/operator/trust.md"):
        if block.language == "sh" and not block.info:
            printed = "".join(_run(line) for line in block.text.splitlines())
        elif block.language == "text":
            missing = first_missing([line for line in block.text.splitlines() if line.strip()], printed)
            assert missing is None, f"line {block.line}: no line like {missing!r} in\n{printed}"
        elif block.file:
            Path(block.file).write_text(block.text)


def _run(line: str) -> str:
    if not line.startswith("hedgerow "):
        return subprocess.run(["bash", "-euc", line], check=True, capture_output=True, text=True).stdout
    said = CliRunner().invoke(app, shlex.split(line)[1:], prog_name="hedgerow")
    assert said.exit_code == 0, f"{line}\n{said.output}"
    return said.output
