"""What all tests share, those of the runtime and those of the plugins.

A test that leaves a child process behind fails, and what it left is killed. What a fixture of a module or of the session
starts may go on until all tests are over, and be started again meanwhile: counted is how many processes there are. What a
child leaves behind when it ends becomes a child of ours (Linux), and is seen as well.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from hypothesis import settings

# Neither profile judges by the clock: a busy machine is no bug.
# `quick` tries the same examples each time, so that a failure is the change's; `full` looks for new ones.
settings.register_profile("quick", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("quick")

LEFT_PATIENCE_S = 60.0
"""For what ends by itself once its parent has: a worker of a node that was killed."""
_BEGINNINGS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER`, see prctl(2)."""


class _Children:
    """The children of this process.

    Attributes:
        begun: whether one was started since this was last reset; to list them costs milliseconds.
        kept: those that may be there.
    """

    def __init__(self) -> None:
        self.begun = False
        self.kept: set[psutil.Process] = set()

    def audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event in _BEGINNINGS:
            self.begun = True

    def look(self) -> set[psutil.Process]:
        return {child for child in psutil.Process().children() if _runs(child)}

    def check(self, whose: str) -> None:
        """Raises: pytest.fail.Exception: there are more than may be."""
        deadline = time.monotonic() + LEFT_PATIENCE_S
        while len(alive := self.look()) > len(self.kept):
            if time.monotonic() > deadline:
                left = alive - self.kept
                told = [f"{child.pid}: {_command(child)}" for child in left]
                _kill(left)
                pytest.fail(f"{whose} left processes behind, which were killed:\n" + "\n".join(told), pytrace=False)
            time.sleep(0.02)
        self.kept = alive


_children = _Children()


def pytest_configure() -> None:
    """See what children are started, and what they leave behind."""
    sys.addaudithook(_children.audit)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Let what fixtures start that tests share go on."""
    if fixturedef.scope == "function":
        return (yield)
    before = _children.look() if _children.begun else _children.kept
    _children.begun, begun = False, _children.begun
    try:
        return (yield)
    finally:
        if _children.begun:
            _children.kept |= _children.look() - before
        _children.begun |= begun


@pytest.fixture(autouse=True, scope="session")
def _no_child_outlives_the_run() -> Iterator[None]:
    yield
    _children.kept = set()
    _children.check("The run")


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    _children.kept = {child for child in _children.kept if _runs(child)}
    _children.begun = False
    yield
    if _children.begun:
        _children.check(request.node.name)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return process.name()


def _kill(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for below in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    below.kill()
            process.kill()
