"""Pauses between connection attempts, and what ends them early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hedgerow.bus.backoff import Backoff, _waiting
from hedgerow.testing.mosquitto import Mosquitto

LONG_S = 600.0
URL = "mqtt://127.0.0.1:1"


async def test_a_link_that_comes_up_makes_the_others_retry_at_once(
    mosquitto: Mosquitto, listener: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """A node whose results flow again must also answer commands again."""
    mosquitto.stop()
    async with listener(mosquitto.url, min_backoff_s=LONG_S, max_backoff_s=LONG_S) as slow:
        await eventually(lambda: slow.states)
        mosquitto.start()
        async with listener(mosquitto.url) as quick:
            await quick.wait_connected(60)
            await slow.wait_connected(60)


async def test_a_link_that_was_taken_over_keeps_its_pause() -> None:
    """Otherwise two nodes with the same name would take over each other's session endlessly."""
    taken_over, other = Backoff(URL, LONG_S, LONG_S), Backoff(URL, LONG_S, LONG_S)
    taken_over.link_up()
    taken_over.link_down()
    pause = asyncio.create_task(taken_over.pause())
    other.link_up()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_a_link_that_ends_at_once_wakes_no_other() -> None:
    waiting, other = Backoff(URL, LONG_S, LONG_S), Backoff(URL, LONG_S, LONG_S)
    pause = asyncio.create_task(waiting.pause())
    await asyncio.sleep(0)
    other.link_up()
    other.link_down()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_a_cancelled_waiter_is_removed_and_the_others_are_still_woken() -> None:
    cancelled, other = (asyncio.create_task(Backoff(URL, LONG_S, LONG_S).pause()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    Backoff(URL, LONG_S, LONG_S).link_up()
    await other

    assert (asyncio.get_running_loop(), URL) not in _waiting


async def test_a_link_to_another_broker_wakes_no_waiter() -> None:
    waiting, other = Backoff(URL, LONG_S, LONG_S), Backoff("mqtt://127.0.0.1:2", LONG_S, LONG_S)
    pause = asyncio.create_task(waiting.pause())
    other.link_up()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_pauses_grow_to_their_limit_and_reset_after_a_stable_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("random.uniform", lambda _, high: limits.append(high) or 0.0)
    backoff = Backoff(URL, 1.0, 4.0)
    for _ in range(4):
        await backoff.pause()
    backoff.link_up()
    backoff.link_down()
    await backoff.pause()  # the link did not last
    monkeypatch.setattr("hedgerow.bus.backoff._STABLE_S", 0.0)
    backoff.link_up()
    await asyncio.sleep(0.01)  # longer than _STABLE_S
    backoff.link_down()
    await backoff.pause()

    assert limits == [1.0, 2.0, 4.0, 4.0, 4.0, 1.0]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Limits of every random pause; the pauses take no time."""
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr("random.uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    return drawn


async def test_jitter_takes_at_most_half_of_a_pause(limits: list[tuple[float, float]]) -> None:
    backoff = Backoff(URL, 1.0, 5.0)
    for _ in range(4):
        await backoff.pause()

    assert limits == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (2.5, 5.0)]


@pytest.mark.parametrize(("lasted_s", "next_s"), [(5.0, 2.0), (5.1, 1.0)])
async def test_a_link_is_stable_after_five_seconds(
    limits: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch, lasted_s: float, next_s: float
) -> None:
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    backoff = Backoff(URL, 1.0, 5.0)
    await backoff.pause()
    backoff.link_up()
    backoff.link_down()
    now = lasted_s
    await backoff.pause()

    assert [high for _, high in limits] == [1.0, next_s]


async def test_a_link_wakes_waiters_after_300_ms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda delay, *call: timers.append(delay) or call_later(0, *call))
    pause = asyncio.create_task(Backoff(URL, LONG_S, LONG_S).pause())
    await asyncio.sleep(0)
    timers.clear()
    Backoff(URL, LONG_S, LONG_S).link_up()
    await pause

    assert timers == [0.3]
