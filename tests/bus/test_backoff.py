"""Pauses between tries to connect, and what ends them early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hedgerow.bus.backoff import Backoff, _waiting
from hedgerow.testing.mosquitto import Mosquitto

LONG_S = 600.0
URL = "mqtt://127.0.0.1:1"


async def test_when_one_link_stands_again_the_others_try_at_once(
    mosquitto: Mosquitto, listener: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """So a node whose results flow again answers commands again."""
    mosquitto.stop()
    async with listener(mosquitto.url, min_backoff_s=LONG_S, max_backoff_s=LONG_S) as patient:
        await eventually(lambda: patient.states)
        mosquitto.start()
        async with listener(mosquitto.url) as quick:
            await quick.wait_connected(60)
            await patient.wait_connected(60)


async def test_a_link_that_was_thrown_out_keeps_its_pause() -> None:
    """Two nodes of one name would else throw each other out without end."""
    thrown_out, other = Backoff(URL, LONG_S, LONG_S), Backoff(URL, LONG_S, LONG_S)
    thrown_out.link_up()
    thrown_out.link_down()
    pause = asyncio.create_task(thrown_out.pause())
    other.link_up()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_a_link_that_ends_at_once_tells_nobody() -> None:
    waiting, other = Backoff(URL, LONG_S, LONG_S), Backoff(URL, LONG_S, LONG_S)
    pause = asyncio.create_task(waiting.pause())
    await asyncio.sleep(0)
    other.link_up()
    other.link_down()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_those_that_wait_no_more_are_forgotten_and_the_others_still_told() -> None:
    gone, other = (asyncio.create_task(Backoff(URL, LONG_S, LONG_S).pause()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    Backoff(URL, LONG_S, LONG_S).link_up()
    await other

    assert (asyncio.get_running_loop(), URL) not in _waiting


async def test_another_broker_says_nothing_about_this_one() -> None:
    waiting, other = Backoff(URL, LONG_S, LONG_S), Backoff("mqtt://127.0.0.1:2", LONG_S, LONG_S)
    pause = asyncio.create_task(waiting.pause())
    other.link_up()

    done, _ = await asyncio.wait([pause], timeout=1)

    assert not done
    pause.cancel()


async def test_pauses_grow_to_their_limit_and_are_short_again_after_a_good_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("random.uniform", lambda _, high: limits.append(high) or 0.0)
    backoff = Backoff(URL, 1.0, 4.0)
    for _ in range(4):
        await backoff.pause()
    backoff.link_up()
    backoff.link_down()
    await backoff.pause()  # it did not last
    monkeypatch.setattr("hedgerow.bus.backoff._STABLE_S", 0.0)
    backoff.link_up()
    await asyncio.sleep(0.01)  # longer than a link has to last here
    backoff.link_down()
    await backoff.pause()

    assert limits == [1.0, 2.0, 4.0, 4.0, 4.0, 1.0]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Between what each pause was drawn; none takes any time."""
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr("random.uniform", lambda low, high: drawn.append((low, high)) or 0.0)
    return drawn


async def test_a_pause_is_drawn_from_its_upper_half_and_grows_to_its_limit(limits: list[tuple[float, float]]) -> None:
    backoff = Backoff(URL, 1.0, 5.0)
    for _ in range(4):
        await backoff.pause()

    assert limits == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (2.5, 5.0)]


@pytest.mark.parametrize(("lasted_s", "next_s"), [(5.0, 2.0), (5.1, 1.0)])
async def test_a_link_was_a_good_one_if_it_lasted_longer_than_five_seconds(
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


async def test_a_link_shows_that_the_broker_is_back_after_three_tenths_of_a_second(
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
