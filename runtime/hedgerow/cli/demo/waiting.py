"""Waits while a demo's processes run, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from hedgerow.cli.demo.processes import DemoProcesses
from hedgerow.errors import HedgerowError

_TIMEOUT_S: Final = 240.0
_POLL_S: Final = 0.3

T = TypeVar("T")


def stop_on_signals() -> asyncio.Event:
    """Return an event that Ctrl-C and SIGTERM set from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


class WaitedTooLong(HedgerowError):
    """A state is not as wanted within the time."""

    code = "waited-too-long"


class DemoStopped(Exception):
    """Ctrl-C; as a KeyboardInterrupt, it would break out of the event loop from one of several tasks."""


def run_until_stopped(demo: Coroutine[Any, Any, T]) -> T:
    """Run a demo. Raises: KeyboardInterrupt: it was stopped."""
    try:
        return asyncio.run(demo)
    except DemoStopped:
        raise KeyboardInterrupt from None


async def all_of(*works: Awaitable[None]) -> None:
    """Do several things at once, each to its end; then raise the first error."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if result is not None:
            raise result


class Waiting:
    """Waits for conditions. All methods raise DemoStopped once the demo is to stop.

    Args:
        processes: must keep running.
        stop: set when the demo is to stop.
    """

    def __init__(self, processes: DemoProcesses, stop: asyncio.Event) -> None:
        self._processes = processes
        self._stop = stop

    async def pause(self, seconds: float) -> None:
        """Wait for some time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
            raise DemoStopped

    async def until(
        self,
        read: Callable[[], Awaitable[T]],
        done: Callable[[T], object],
        *,
        timeout_s: float | None = None,
    ) -> T:
        """Read a state again and again until it is as wanted, and return it.

        Args:
            timeout_s: how long; None: long enough for whatever happens in a demo.
        Raises: HedgerowError: a process has exited, or it takes too long.
        """
        timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            if done(state := await read()):
                return state
            self._processes.check()
            if time.monotonic() > deadline:
                raise WaitedTooLong(
                    f"Timed out after {timeout_s:.0f} s; last state: {str(state)[:300]}",
                    remedy=f"See {self._processes.folder / 'logs'}.",
                )
            await self.pause(_POLL_S)

    async def in_thread(self, do: Callable[[], T]) -> T:
        """Run something that blocks in a thread, to its end."""
        try:
            return await asyncio.to_thread(do)
        finally:
            if self._stop.is_set():
                raise DemoStopped
