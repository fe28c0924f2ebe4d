"""The images, built here and run with whichever engine works, as a site would run them."""

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

# How a site runs them, but for the machine's network, which tests take so that they reach a broker on loopback.
CONFINED = (
    "--network=host", "--read-only", "--tmpfs=/tmp:size=64m,mode=1777", "--memory=1g", "--pids-limit=256",
    "--cap-drop=all", "--security-opt=no-new-privileges",
)  # fmt: skip

# Inside another container, an engine may not raise the limits that it would; then containers get those that are there.
WAYS: tuple[tuple[str, ...], ...] = ((), ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"))


@dataclass(frozen=True)
class Container:
    """One that runs."""

    engine: Engine
    name: str

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.do("exec", self.name, *command, check=check)

    def stop(self, patience_s: int) -> int:
        """SIGTERM, SIGKILL after `patience_s`; its exit code."""
        self.engine.do("stop", f"--time={patience_s}", self.name)
        return int(self.engine.do("inspect", "--format={{.State.ExitCode}}", self.name).stdout)

    @property
    def log(self) -> str:
        said = self.engine.do("logs", self.name, check=False)
        return said.stdout + said.stderr


@dataclass(frozen=True)
class Engine:
    """Podman or Docker, and how it can run a container here."""

    name: str
    way: Sequence[str] = ()

    def do(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        said = subprocess.run([self.name, *words], capture_output=True, text=True, check=False)
        assert not check or said.returncode == 0, f"{self.name} {' '.join(words)}\n{said.stdout}{said.stderr}"
        return said

    def once(self, image: str, *words: str, options: Sequence[str] = (), check: bool = True) -> str:
        """Run a container to its end, confined; what it printed."""
        return self.do("run", "--rm", *self.way, *CONFINED, *options, image, *words, check=check).stdout

    @contextmanager
    def running(self, image: str, *words: str, options: Sequence[str] = ()) -> Iterator[Container]:
        """A container that goes on, confined; gone at the end."""
        name = f"hedgerow-test-{uuid.uuid4().hex[:12]}"
        self.do("run", "--detach", f"--name={name}", *self.way, *CONFINED, *options, image, *words)
        container = Container(self, name)
        try:
            yield container
        except BaseException:
            print(container.log)
            raise
        finally:
            self.do("rm", "--force", "--time=0" if self.name == "podman" else "--volumes", name, check=False)


def _engine() -> Engine:
    said = subprocess.run(["sh", FOLDER / "engine.sh"], capture_output=True, text=True, check=False)
    name = said.stdout.strip()
    if name not in ("podman", "docker"):
        pytest.skip(said.stderr.strip() or f"{name} builds images, but does not run them: install podman")
    return Engine(name)


def _base(engine: Engine) -> str | None:
    """What images are to be made from; None: what the Containerfile says, as it can be fetched."""
    if given := os.environ.get("BASE"):
        return given
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
    pytest.skip(
        f"{public} cannot be fetched, nor a base made without it (debootstrap, as root): {pulled.stderr[-300:]}"
    )


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine that can run the images, which are built with what is in this checkout."""
    engine = _engine()
    base = _base(engine)
    environment = os.environ | {"ENGINE": engine.name} | ({} if base is None else {"BASE": base})
    built = subprocess.run(
        ["sh", FOLDER / "build.sh", "onnx", "openvino", "region"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    for way in WAYS:
        tried = engine.do("run", "--rm", *way, *CONFINED, "localhost/hedgerow:onnx", "--version", check=False)
        if tried.returncode == 0:
            return Engine(engine.name, way)
    pytest.skip(f"{engine.name} cannot run containers here: {tried.stderr[-500:]}")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that is to a node in a container what /etc/hedgerow and /var/lib/hedgerow are: `config`, `state`.

    The node's user may write to `state` alone.
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
    """What an engine knows of an image."""
    found: dict[str, object] = json.loads(engine.do("image", "inspect", image).stdout)[0]
    return found
