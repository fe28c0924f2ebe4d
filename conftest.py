"""Shared by all tests, of the runtime and of the plugins: fails tests that leak child processes, and kills these.

Processes started by module or session fixtures may run until all tests are over and be restarted, so the number of
processes is compared. Orphaned grandchildren are reparented to this process (Linux) and counted too.
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

# No deadlines: a slow machine is not a bug. `quick` uses the same examples in every run, so that a failure is due to a
# change; `full` searches for new ones.
settings.register_profile("quick", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("quick")

LEFT_PATIENCE_S = 60.0
"""Time for processes that exit after their parent, such as workers of a killed node."""
_START_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER`, see prctl(2)."""


class _Children:
    """The children of this process.

    Attributes:
        started: whether one was started since the last reset; listing them costs milliseconds.
        allowed: children that may be running.
    """

    def __init__(self) -> None:
        self.started = False
        self.allowed: set[psutil.Process] = set()

    def audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event in _START_EVENTS:
            self.started = True

    def running(self) -> set[psutil.Process]:
        return {child for child in psutil.Process().children() if _runs(child)}

    def check(self, owner: str) -> None:
        """Fail if more children are running than allowed, after waiting for them to exit."""
        deadline = time.monotonic() + LEFT_PATIENCE_S
        while len(alive := self.running()) > len(self.allowed):
            if time.monotonic() > deadline:
                leaked = alive - self.allowed
                commands = [f"{child.pid}: {_command(child)}" for child in leaked]
                _kill(leaked)
                pytest.fail(f"{owner} leaked processes, which were killed:\n" + "\n".join(commands), pytrace=False)
            time.sleep(0.02)
        self.allowed = alive


_children = _Children()


def pytest_configure() -> None:
    """Detect started children, and adopt orphaned grandchildren."""
    sys.addaudithook(_children.audit)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Allow processes started by module and session fixtures."""
    if fixturedef.scope == "function":
        return (yield)
    before = _children.running() if _children.started else _children.allowed
    _children.started, started = False, _children.started
    try:
        return (yield)
    finally:
        if _children.started:
            _children.allowed |= _children.running() - before
        _children.started |= started


@pytest.fixture(autouse=True, scope="session")
def _no_child_outlives_the_run() -> Iterator[None]:
    yield
    _children.allowed = set()
    _children.check("The run")


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    _children.allowed = {child for child in _children.allowed if _runs(child)}
    _children.started = False
    yield
    if _children.started:
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
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
