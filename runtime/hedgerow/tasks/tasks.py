"""Asyncio tasks that do not end unnoticed, and work that a cancellation does not leave half done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import structlog

from hedgerow.tasks.failures import RestartPause, expect, report
from hedgerow.tasks.threads import start_thread

log = structlog.get_logger(__name__)

T = TypeVar("T")

_running: set[asyncio.Future[Any]] = set()
"""The event loop itself holds only weak references to its tasks."""


def start(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task that ends by itself.

    Args:
        work: what it does.
        name: what it is, for the log and the metric: one of few, never an id.
    """
    expect(name)
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def supervise(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> asyncio.Task[None]:
    """Start a task that runs until it is cancelled, or returns. If it fails, it starts again.

    Args:
        work: makes the coroutine; called again after a failure.
        name: see `start`.
    """
    return start(_keep_running(work, name), name)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until all have ended; if the caller is cancelled too, raise CancelledError after that."""
    for task in tasks:
        task.cancel()
    if tasks:
        await _wait(*tasks)


async def run_to_end(work: Awaitable[T], name: str) -> T:
    """Await something to its end, however often the caller is cancelled meanwhile; raise CancelledError only then.

    For what must not stop half-way. The time it may take must be bounded.
    """
    task = _started(work, name)
    try:
        await _wait(task)
    except asyncio.CancelledError:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("failed-while-cancelled", task=name, error=str(error), kind=type(error).__name__)
        raise
    return task.result()


async def in_thread(work: Callable[[], T], name: str, discard: Callable[[T], None] | None = None) -> T:
    """Run a blocking function in a thread, to its end: a thread cannot be cancelled.

    Args:
        work: the function.
        name: see `start`.
        discard: if given, a caller that is cancelled does not wait; the result, once there, is released by this function.
            The thread is a daemon of its own: if the function hangs, it keeps neither the process from exiting nor other
            work from running.
    """
    if discard is None:
        return await run_to_end(asyncio.to_thread(work), name)
    outcome = _in_own_thread(work, name)
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        outcome.add_done_callback(lambda _: None if outcome.exception() else discard(outcome.result()))
        raise


def _started(work: Awaitable[T], name: str) -> asyncio.Future[T]:
    task = asyncio.ensure_future(work)
    if isinstance(task, asyncio.Task):
        task.set_name(name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def _keep_running(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    this, pause = asyncio.current_task(), RestartPause()
    while True:
        pause.began()
        try:
            await work()
        except asyncio.CancelledError as error:
            if this is None or this.cancelling():
                raise
            report(name, error)  # what it awaited was cancelled, not the task itself
        except Exception as error:  # noqa: BLE001 - logged with its traceback
            report(name, error)
        else:
            return
        await asyncio.sleep(pause.next_s())


async def _wait(*tasks: asyncio.Future[Any]) -> None:
    """Wait until all have ended; if cancelled meanwhile, raise CancelledError only then."""
    cancelled: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        report(task.get_name(), error)


def _as_exception(error: BaseException) -> Exception:
    """Return an error that a future can hold: `sys.exit()` in a plugin must not end the process."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _in_own_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        settle: Callable[[], None]
        try:
            settle = partial(outcome.set_result, work())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            settle = partial(outcome.set_exception, _as_exception(error))
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle)

    start_thread(run, name)
    return outcome
