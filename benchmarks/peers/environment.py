"""The environment of peers that this project does not depend on: `.venv-peers`, created on first use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_ROOT = Path(__file__).parents[2]
_FOLDER: Final = _ROOT / ".venv-peers"
_LOCK: Final = Path(__file__).with_name("requirements.lock")
PYTHON: Final = str(_FOLDER / "bin" / "python")


def make() -> None:
    """Install the locked packages, unless current. Raises: OSError, subprocess.CalledProcessError: it failed."""
    installed = _FOLDER / ".made-of"
    if installed.exists() and installed.read_bytes() == _LOCK.read_bytes():
        return
    print("Installing the peers' packages into .venv-peers…", file=sys.stderr)
    uv = str(Path(sys.executable).with_name("uv"))
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _run(uv, "venv", "--quiet", "--python", sys.executable, str(_FOLDER))
    _run(uv, "pip", "install", "--quiet", "--python", PYTHON, "--require-hashes", "--no-deps", "-r", str(_LOCK))
    installed.write_bytes(_LOCK.read_bytes())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def version(package: str) -> str:
    """Return the locked version of a package."""
    found = re.search(rf"^{package}==(\S+)", _LOCK.read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]
