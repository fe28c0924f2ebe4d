"""Cancels blocking work in a thread: the work itself says how what it waits for is interrupted."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class WorkCancelled(Exception):
    """The caller no longer waits for this work."""


class Cancellation:
    """Cancels one piece of blocking work, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._interrupts: dict[int, Callable[[], object]] = {}
        self._cancelled = False

    def cancel(self) -> None:
        """Interrupt what the work waits for, now and from now on."""
        with self._lock:
            self._cancelled = True
            interrupts = list(self._interrupts.values())
        for interrupt in interrupts:
            interrupt()

    def run(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """(in the thread) Do the work. Raises: WorkCancelled: it was interrupted."""
        token = _current.set(self)
        try:
            check_cancelled()
            return work(*args, **kwargs)
        finally:
            _current.reset(token)

    def check(self) -> None:
        """Raises: WorkCancelled: the work was cancelled."""
        if self._cancelled:
            raise WorkCancelled

    @contextmanager
    def interrupted_by(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call a function, from any thread, if the work is cancelled meanwhile or was before."""
        with self._lock:
            number, late = next(self._numbers), self._cancelled
            self._interrupts[number] = interrupt
        try:
            if late:
                interrupt()
            yield
        finally:
            with self._lock:
                del self._interrupts[number]


_NEVER: Final = Cancellation()
_current: ContextVar[Cancellation] = ContextVar("cancellation", default=_NEVER)


def check_cancelled() -> None:
    """Raises: WorkCancelled: the work that this thread does was cancelled."""
    _current.get().check()


@contextmanager
def interrupted_by(interrupt: Callable[[], object]) -> Iterator[None]:
    """While this thread waits for something: how to end the wait, called from another thread if its work is cancelled.

    Raises: WorkCancelled: the work was cancelled meanwhile.
    """
    current = _current.get()
    with current.interrupted_by(interrupt):
        try:
            yield
        finally:
            current.check()


async def in_executor(executor: Executor, work: Callable[..., Result], *args: object) -> Result:
    """Run a blocking function in an executor. If the caller is cancelled, so is the function, at what it waits for."""
    cancellation = Cancellation()
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, cancellation.run, work, *args)
    except asyncio.CancelledError:
        cancellation.cancel()
        raise
