"""Starts asyncio tasks and threads so that none of them ends unnoticed, and ends them so that nothing is left half done.

Rules:
- Every task and thread starts here; `tests/test_conventions.py` refuses any other way.
- An exception is logged with its traceback, and counted in `hedgerow_task_failures`. A long-lived task or thread then starts
  again, after a pause that grows.
- A cancelled operation either has changed nothing, or is finished first: `run_to_end`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

_PAUSE_S: Final = (0.1, 60.0)
"""Pause before a failed task starts again: at first, and at most. It doubles with each failure."""
_STEADY_S: Final = 60.0
"""A task that ran this long before it failed starts again after the shortest pause."""

_failures: Counter[str] = Counter()
_running: set[asyncio.Future[Any]] = set()
"""The event loop itself holds only weak references to its tasks."""


def start(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task that ends by itself.

    Args:
        work: what it does.
        name: what it is, for the log and the metric: one of few, never an id.
    """
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
    """
    if discard is None:
        return await run_to_end(asyncio.to_thread(work), name)
    task = _started(asyncio.to_thread(work), name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda _: None if _failed(task) else discard(task.result()))
        raise


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that ends by itself."""

    def run() -> None:
        try:
            work()
        except BaseException:  # noqa: BLE001 - logged; nobody waits for a thread
            _report(name)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def supervise_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that runs until it returns. If it fails, it starts again."""

    def run() -> None:
        pause_s = _PAUSE_S[0]
        while True:
            began = time.monotonic()
            try:
                work()
            except BaseException:  # noqa: BLE001 - see above
                _report(name)
            else:
                return
            pause_s = _next_pause_s(pause_s, began)
            time.sleep(pause_s)

    return start_thread(run, name)


def gauges() -> Iterator[tuple[str, str, dict[str, str], float]]:
    """Yield metrics: name, help, labels, value."""
    text = "Times that a task or thread of this process failed; see `task-failed` in its log."
    for name, count in dict(_failures).items():
        yield "hedgerow_task_failures", text, {"task": name}, count


def _started(work: Awaitable[T], name: str) -> asyncio.Future[T]:
    task = asyncio.ensure_future(work)
    if isinstance(task, asyncio.Task):
        task.set_name(name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def _keep_running(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    this, pause_s = asyncio.current_task(), _PAUSE_S[0]
    while True:
        began = time.monotonic()
        try:
            await work()
        except asyncio.CancelledError:
            if this is None or this.cancelling():
                raise
            _report(name)  # what it awaited was cancelled, not the task itself
        except Exception:  # noqa: BLE001 - logged with its traceback
            _report(name)
        else:
            return
        pause_s = _next_pause_s(pause_s, began)
        await asyncio.sleep(pause_s)


def _next_pause_s(pause_s: float, began: float) -> float:
    return _PAUSE_S[0] if time.monotonic() - began > _STEADY_S else min(2 * pause_s, _PAUSE_S[1])


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


def _ended(task: asyncio.Future[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        name = task.get_name() if isinstance(task, asyncio.Task) else ""
        _failures[name] += 1
        log.error("task-failed", task=name, exc_info=error)


def _failed(task: asyncio.Future[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


def _report(name: str) -> None:
    _failures[name] += 1
    log.exception("task-failed", task=name)
