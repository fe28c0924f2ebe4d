"""The tests of what decides notice when it decides otherwise: a sample of `make mutants`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nine_mutants_in_ten_are_killed() -> None:
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--sample", "4", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
