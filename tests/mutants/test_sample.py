"""Mutation tests on a sample of mutants; `make mutants` runs all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nine_mutants_in_ten_are_killed() -> None:
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--sample", "4", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
