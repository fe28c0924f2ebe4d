"""The commands of docs/operator/trust.md, run in one process, which is fast enough for `make test`."""

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


def test_the_commands_of_the_trust_document_work_as_described(
    blocks: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Background blocks are skipped; a long test runs all blocks as separate processes."""
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
            assert missing is None, f"line {block.line}: no line matches {missing!r} in\n{printed}"
        elif block.file:
            Path(block.file).write_text(block.text)


def _run(line: str) -> str:
    if not line.startswith("hedgerow "):
        return subprocess.run(["bash", "-euc", line], check=True, capture_output=True, text=True).stdout
    result = CliRunner().invoke(app, shlex.split(line)[1:], prog_name="hedgerow")
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output
