"""Tasks and threads that fail, and operations that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from tests.cancelling import Cancelling, Moment, at_every_moment, cancel_at_every_place

from hedgerow import tasks


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hedgerow.tasks.failures._PAUSE_S", (0.0, 0.01))


def failures(name: str) -> float:
    return {labels["task"]: value for _, _, labels, value in tasks.gauges()}.get(name, 0)


def raises(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), asyncio.CancelledError()], ids=repr)
async def test_a_supervised_task_that_fails_is_logged_counted_and_starts_again(error: BaseException) -> None:
    """A CancelledError that is not for the task is a failure as well: something that it awaited was cancelled."""
    runs, again = 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise error
        again.set()
        await asyncio.Event().wait()

    before = failures("work")
    with capture_logs([structlog.processors.format_exc_info]) as logged:
        task = tasks.supervise(work, "work")
        await again.wait()
        await tasks.cancel(task)

    assert task.cancelled()
    assert failures("work") == before + 3
    failed = [each for each in logged if each["event"] == "task-failed"]
    assert [each["task"] for each in failed] == ["work"] * 3
    assert all(type(error).__name__ in each["exception"] and "Traceback" in each["exception"] for each in failed)


async def test_a_supervised_task_that_returns_has_ended_on_purpose() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    await tasks.supervise(work, "work")


async def test_a_short_task_that_fails_is_logged_and_counted() -> None:
    async def work() -> None:
        raise ValueError("lost")

    before = failures("short")
    with capture_logs([structlog.processors.format_exc_info]) as logged:
        await asyncio.wait([tasks.start(work(), "short")])

    assert failures("short") == before + 1
    assert "ValueError: lost" in logged[0]["exception"]


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), SystemExit(3)], ids=repr)
def test_a_supervised_thread_that_fails_is_logged_counted_and_starts_again(error: BaseException) -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise error

    before = failures("thread")
    tasks.supervise_thread(work, "thread").join()

    assert len(runs) == 3
    assert failures("thread") == before + 2


def test_a_short_thread_that_fails_is_logged_and_counted() -> None:
    before = failures("closing")
    tasks.start_thread(raises(ValueError("x")), "closing").join()

    assert failures("closing") == before + 1


@at_every_moment
async def test_what_runs_to_its_end_is_never_left_half_done(moment: Moment) -> None:
    async def attempt(cancelling: Cancelling) -> None:
        done: list[int] = []

        async def work() -> None:
            for step in range(3):
                await asyncio.to_thread(done.append, step)

        await cancelling.run(tasks.run_to_end(work(), "work"))

        assert done == [0, 1, 2]

    assert await cancel_at_every_place(attempt, moment) >= 2


@at_every_moment
async def test_the_result_of_a_thread_that_nobody_waits_for_is_discarded(moment: Moment) -> None:
    async def attempt(cancelling: Cancelling) -> None:
        open_files: set[int] = set()
        gate = threading.Event()

        def work() -> int:
            gate.wait(0 if moment == "late" else None)
            open_files.add(1)
            return 1

        async def operation() -> int:
            return await tasks.in_thread(work, "opening", open_files.remove)

        asyncio.get_running_loop().call_later(0.01, gate.set)
        result = await cancelling.run(operation())
        while result is None and (open_files or not gate.is_set()):  # noqa: ASYNC110 - a thread sets no event here
            await asyncio.sleep(0.001)

        assert open_files == ({1} if result else set())

    assert await cancel_at_every_place(attempt, moment) >= 1


async def test_functions_that_hang_and_are_abandoned_hold_nothing_up() -> None:
    """More of them than the event loop's own pool has threads."""
    gate, discarded = threading.Event(), []
    waiting = [asyncio.create_task(tasks.in_thread(gate.wait, "hanging", discarded.append)) for _ in range(64)]
    await asyncio.sleep(0)
    await tasks.cancel(*waiting)

    async with asyncio.timeout(60):
        assert await asyncio.to_thread(int, "3") == 3
    gate.set()
    while len(discarded) < 64:  # noqa: ASYNC110 - threads report it
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit("x"), StopIteration("x"), asyncio.CancelledError("x")], ids=repr
)
async def test_an_error_in_a_thread_is_raised_where_it_is_awaited_and_ends_nothing(error: BaseException) -> None:
    with pytest.raises(Exception, match="x"):
        await tasks.in_thread(raises(error), "failing", print)


async def test_a_failure_of_what_runs_to_its_end_is_logged_if_the_caller_was_cancelled() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise OSError("disk full")

    task = asyncio.create_task(tasks.run_to_end(work(), "saving"))
    await asyncio.sleep(0)
    task.cancel()
    with capture_logs() as logged, pytest.raises(asyncio.CancelledError):
        await task

    assert [(each["event"], each["error"]) for each in logged] == [("failed-while-cancelled", "disk full")]


async def test_cancelling_waits_for_the_end_of_tasks_that_clean_up() -> None:
    cleaned: list[int] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned.append(1)

    each = [tasks.start(work(), "work") for _ in range(3)]
    await asyncio.sleep(0)
    canceller = asyncio.create_task(tasks.cancel(*each))
    await asyncio.sleep(0)
    canceller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await canceller

    assert len(cleaned) == 3
