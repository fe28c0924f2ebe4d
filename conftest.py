"""Shared by all tests, of the runtime and of the plugins.

A test that leaves child processes behind fails, and they are killed. Processes of module and session fixtures may run
until all tests are over, and may be restarted, so only their number is checked. Orphaned grandchildren become our
children (Linux), and are checked too.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

# No deadlines: a busy machine is not a bug.
# `quick` uses the same examples each time, so that a failure is due to the change; `full` searches for new ones.
settings.register_profile("quick", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("quick")

GRACE_S = 60.0
"""Time for processes that end after their parent: the workers of a killed node."""
_START_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER`, see prctl(2)."""


class _Children:
    """The children of this process.

    Attributes:
        started: whether one was started since this was last reset; listing children takes milliseconds.
        allowed: children that may exist.
    """

    def __init__(self) -> None:
        self.started = False
        self.allowed: set[psutil.Process] = set()

    def audit(self, event: str, _: tuple[Any, ...]) -> None:
        if event in _START_EVENTS:
            self.started = True

    def alive(self) -> set[psutil.Process]:
        return {child for child in psutil.Process().children() if _runs(child)}

    def check(self, owner: str) -> None:
        """Fail if there are more children than allowed."""
        deadline = time.monotonic() + GRACE_S
        while len(alive := self.alive()) > len(self.allowed):
            if time.monotonic() > deadline:
                leaked = alive - self.allowed
                lines = [f"{child.pid}: {_command(child)}" for child in leaked]
                _kill(leaked)
                pytest.fail(f"{owner} left processes behind, which were killed:\n" + "\n".join(lines), pytrace=False)
            time.sleep(0.02)
        self.allowed = alive


_children = _Children()


def pytest_configure(config: pytest.Config) -> None:
    """Track started and orphaned child processes."""
    sys.addaudithook(_children.audit)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    if (worker := getattr(config, "workerinput", None)) is not None and config.args == config.getini("testpaths"):
        _begin_elsewhere(config.args, int(worker["workerid"].removeprefix("gw")), worker["workercount"])


def _begin_elsewhere(args: list[str], number: int, count: int) -> None:
    """Let each worker collect from another place on, so that in a fresh clone each compiles other tests than the rest."""
    files = sorted(str(path) for place in args for path in Path(place).rglob("test_*.py"))
    at = len(files) * number // count
    args[:] = files[at:] + files[:at]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give all workers the same order."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Allow the processes that shared fixtures start."""
    if fixturedef.scope == "function":
        return (yield)
    before = _children.alive() if _children.started else _children.allowed
    _children.started, started = False, _children.started
    try:
        return (yield)
    finally:
        if _children.started:
            _children.allowed |= _children.alive() - before
        _children.started |= started


@pytest.fixture(autouse=True, scope="session")
def _no_leaked_processes_in_run() -> Iterator[None]:
    yield
    _children.allowed = set()
    _children.check("The run")


@pytest.fixture(autouse=True)
def _no_leaked_processes_in_test(request: pytest.FixtureRequest) -> Iterator[None]:
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
            for descendant in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    descendant.kill()
            process.kill()
