"""Runs commands as an operator would, and prints them."""

from __future__ import annotations

import json as jsonlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hedgerow.errors import HedgerowError
from hedgerow.testing.processes import run


def run_command(folder: Path, log: Callable[[str], None], *arguments: str) -> Any:
    """Run `hedgerow ARGUMENTS… --json` in a folder, and return what it prints. Raises: HedgerowError: it failed."""
    log(f"$ hedgerow {shlex.join(arguments)}")
    command = [sys.executable, "-m", "hedgerow", *arguments, "--json"]
    done = run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True
    )  # in a session of its own, so that Ctrl-C ends the demo and not what it waits for
    if done.returncode:
        raise HedgerowError(
            f"`hedgerow {shlex.join(arguments)}` exited with code {done.returncode}:\n{done.stderr.strip()[-1200:]}",
            remedy=f"To reproduce it, run it in {folder}.",
        )
    return jsonlib.loads(done.stdout)
