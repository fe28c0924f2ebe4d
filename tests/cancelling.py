"""Cancels an operation at every place where it waits, one place a time; after httpcore's tests.

    async def attempt(cancelling: Cancelling) -> None:
        ...                                   # prepare
        await cancelling.run(operation())     # cancelled at the next place that was not tried yet
        ...                                   # whatever happened: check what must always hold, and that it works again

    await cancel_at_every_place(attempt, "late")

A place is the stack of coroutines that wait, with their lines. Tasks that the operation starts count too: the operation is
cancelled while they wait there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Literal

import pytest

Moment = Literal["early", "late", "twice", "timeout"]
"""When the cancellation comes: once it waits; together with what it waits for; again while it cleans up; by a time-out."""

MOMENTS: Final[tuple[Moment, ...]] = ("early", "late", "twice", "timeout")
MOST_PLACES: Final = 200

at_every_moment = pytest.mark.parametrize("moment", MOMENTS)
at_every_moment_in_time = pytest.mark.parametrize(
    "moment",
    ["early", "late", pytest.param("twice", marks=pytest.mark.long), pytest.param("timeout", marks=pytest.mark.long)],
)
"""For tests that take seconds: half of the moments are left to `make test-long`."""

Place = tuple[tuple[str, int], ...]

_operation: contextvars.ContextVar[Cancelling | None] = contextvars.ContextVar("operation", default=None)


class Cancelling:
    """One attempt: cancels the operation at the first place that is not in `tried`.

    Attributes:
        place: where the operation was cancelled; None: it came to its end first.
    """

    def __init__(self, tried: set[Place], moment: Moment) -> None:
        self.place: Place | None = None
        self._tried = tried
        self._moment = moment
        self._task: asyncio.Task[Any] | None = None
        self._again = False

    async def run(self, operation: Coroutine[Any, Any, Any]) -> Any:
        """Run an operation. Returns: its result; None if it was cancelled."""
        loop = asyncio.get_running_loop()
        former = loop.get_task_factory()
        loop.set_task_factory(_counting_tasks)
        token = _operation.set(self)
        try:
            self._task = asyncio.create_task(self._limited(operation) if self._moment == "timeout" else operation)
        finally:
            _operation.reset(token)
        try:
            await asyncio.wait([self._task])
        finally:
            loop.set_task_factory(former)
        return None if self._task.cancelled() else self._task.result()

    async def _limited(self, operation: Coroutine[Any, Any, Any]) -> Any:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self._limit:
                return await operation

    def waits(self, place: Place, what: Any) -> None:
        """Note that the operation, or a task of it, waits at a place."""
        task = self._task
        if task is None or task.done():
            return
        if self._again:
            self._again = False
            task.cancel()
        if self.place is not None or place in self._tried:
            return
        self.place = place
        self._tried.add(place)
        if self._moment == "late" and what is not None:
            what.add_done_callback(lambda _: task.cancel())
            return
        self._again = self._moment == "twice"
        if self._moment == "timeout":
            self._limit.reschedule(asyncio.get_running_loop().time())
        else:
            task.cancel()


async def cancel_at_every_place(attempt: Callable[[Cancelling], Awaitable[None]], moment: Moment) -> int:
    """Make attempts until the operation has been cancelled everywhere. Returns: the number of places."""
    tried: set[Place] = set()
    while True:
        cancelling = Cancelling(tried, moment)
        try:
            await attempt(cancelling)
        except BaseException as error:
            error.add_note(
                f"cancelled {moment} at {' > '.join(f'{name}:{line}' for name, line in cancelling.place or ())}"
            )
            raise
        if cancelling.place is None:
            return len(tried)
        assert len(tried) < MOST_PLACES, "the operation waits at ever new places"


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that tells its operation each time it waits."""

    def __init__(self, work: Coroutine[Any, Any, Any], operation: Cancelling) -> None:
        self._work = work
        self._told = operation

    def send(self, value: Any) -> Any:
        return self._waits(self._work.send(value))

    def throw(self, *error: Any) -> Any:
        return self._waits(self._work.throw(*error))

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def _waits(self, what: Any) -> Any:
        self._told.waits(_place_of(self._work), what)
        return what


def _place_of(work: Any) -> Place:
    """Return the stack of coroutines that wait, outermost first."""
    place = []
    while (
        work is not None and (frame := getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None)) is not None
    ):
        place.append((frame.f_code.co_qualname, frame.f_lineno))
        work = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None)
    return tuple(place)


def _counting_tasks(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    context = options.get("context")
    operation = _operation.get() if context is None else context.get(_operation)
    return asyncio.Task(work if operation is None else _Counted(work, operation), loop=loop, **options)
