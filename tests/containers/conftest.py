"""Builds the images and runs them with an available engine, as a site would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "containers"
LOCAL_BASE = "localhost/hedgerow-base"
USER = 10001

# As at a site, except that containers use the host's network to reach a broker on loopback.
CONFINED = (
    "--network=host", "--read-only", "--tmpfs=/tmp:size=64m,mode=1777", "--memory=1g", "--pids-limit=256",
    "--cap-drop=all", "--security-opt=no-new-privileges",
)  # fmt: skip

# Inside another container, an engine may not be allowed to raise limits; then set lower ones.
OPTION_SETS: tuple[tuple[str, ...], ...] = ((), ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"))


@dataclass(frozen=True)
class Container:
    """A running container."""

    engine: Engine
    name: str

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.do("exec", self.name, *command, check=check)

    def stop(self, patience_s: int) -> int:
        """Send SIGTERM, and SIGKILL after `patience_s`. Returns: the exit code."""
        self.engine.do("stop", f"--time={patience_s}", self.name)
        return int(self.engine.do("inspect", "--format={{.State.ExitCode}}", self.name).stdout)

    @property
    def log(self) -> str:
        logs = self.engine.do("logs", self.name, check=False)
        return logs.stdout + logs.stderr


@dataclass(frozen=True)
class Engine:
    """Podman or Docker, with the options it needs to run containers here."""

    name: str
    options: Sequence[str] = ()

    def do(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run([self.name, *words], capture_output=True, text=True, check=False)
        assert not check or result.returncode == 0, f"{self.name} {' '.join(words)}\n{result.stdout}{result.stderr}"
        return result

    def once(self, image: str, *words: str, options: Sequence[str] = (), check: bool = True) -> str:
        """Run a confined container to its end. Returns: its output."""
        return self.do("run", "--rm", *self.options, *CONFINED, *options, image, *words, check=check).stdout

    @contextmanager
    def running(self, image: str, *words: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """Run a confined container during the block."""
        name = f"hedgerow-test-{uuid.uuid4().hex[:12]}"
        self.do("run", "--detach", f"--name={name}", *self.options, *CONFINED, *options, image, *words)
        container = Container(self, name)
        try:
            yield container
        except BaseException:
            print(container.log)
            raise
        finally:
            self.do("rm", "--force", "--time=0" if self.name == "podman" else "--volumes", name, check=False)


def _engine() -> Engine:
    result = subprocess.run(["sh", FOLDER / "engine.sh"], capture_output=True, text=True, check=False)
    name = result.stdout.strip()
    if name not in ("podman", "docker"):
        pytest.skip(result.stderr.strip() or f"{name} builds images but cannot run them: install podman")
    return Engine(name)


def _base(engine: Engine) -> str | None:
    """Return the base of the images; None: the Containerfile's default, which can be pulled."""
    if base := os.environ.get("BASE"):
        return base
    if engine.do("image", "inspect", LOCAL_BASE, check=False).returncode == 0:
        return LOCAL_BASE
    public = next(
        line.removeprefix("ARG BASE=")
        for line in (FOLDER / "Containerfile").read_text().splitlines()
        if line.startswith("ARG BASE=")
    )
    if (pulled := engine.do("pull", "--quiet", public, check=False)).returncode == 0:
        return None
    if os.geteuid() == 0 and shutil.which("debootstrap"):
        subprocess.run(["sh", FOLDER / "debian-base.sh"], check=True)
        return LOCAL_BASE
    pytest.skip(f"cannot pull {public}, and debian-base.sh needs debootstrap and root: {pulled.stderr[-300:]}")


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine that can run the images, after building them from this checkout."""
    engine = _engine()
    base = _base(engine)
    environment = os.environ | {"ENGINE": engine.name} | ({} if base is None else {"BASE": base})
    built = subprocess.run(
        ["sh", FOLDER / "build.sh", "onnx", "openvino", "region"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    for options in OPTION_SETS:
        result = engine.do("run", "--rm", *options, *CONFINED, "localhost/hedgerow:onnx", "--version", check=False)
        if result.returncode == 0:
            return Engine(engine.name, options)
    pytest.skip(f"{engine.name} cannot run containers here: {result.stderr[-500:]}")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with `config` and `state`, in place of /etc/hedgerow and /var/lib/hedgerow.

    The node's user may write only to `state`.
    """
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.owner() != "root" or not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    for name in ("config", "state"):
        (tmp_path / name).mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "state", USER, USER)
    else:
        (tmp_path / "state").chmod(0o777)
    return tmp_path


def inspected(engine: Engine, image: str) -> dict[str, object]:
    """Return an engine's metadata of an image."""
    metadata: dict[str, object] = json.loads(engine.do("image", "inspect", image).stdout)[0]
    return metadata
