"""A sensor that sends far more than the stages process, with QoS 1: the broker holds the frames of all others behind its own.

Delay is counted in turns of a stage that waits for the test, so that the machine's speed does not matter.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from trial_site import Site, tally_counts, until
from trial_stages import Stepped

from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto

FLOOD = 400
HONEST = ("b", "c", "d")
EACH = 5
WINDOW = 32


async def step(site: Site, node: Node, sent: int, done: Any) -> int:
    """Give turns until `done`, each once the node has taken all that the broker gives it. Returns: how many."""
    runner, turns = node.runners["p"], 0
    tally, source = runner.tally, runner._source

    def quiet() -> bool:
        return tally.received == sent or source.unacknowledged >= WINDOW

    while not done():
        await until(quiet, lambda: tally_counts(tally))
        settled = tally.out
        Stepped.turns.release()
        turns += 1
        await until(lambda: tally.out > settled and len(site.results()) == tally.out, lambda: tally_counts(tally))  # noqa: B023
    return turns


def honest_results(site: Site) -> int:
    return sum(body["frame"]["topic"].split("/")[2] != "a" for body in site.results())


async def flood(site: Site, node: Node) -> int:
    """Send a flood and then a few frames of others. Returns: turns until those all have their results."""
    await site.frames(range(FLOOD), stream="a")
    for n in range(EACH):
        await asyncio.gather(*(site.frame(n, stream=stream) for stream in HONEST))
    tally, wanted = node.runners["p"].tally, len(HONEST) * EACH

    def out_of_others() -> bool:
        return honest_results(site) >= wanted

    try:
        return await step(site, node, FLOOD + wanted, lambda: out_of_others() or tally.settled == FLOOD + wanted)
    finally:
        for _ in range(FLOOD + wanted):
            Stepped.turns.release()
        await until(lambda: tally.settled == FLOOD + wanted, lambda: tally_counts(tally))
        while Stepped.turns.acquire(blocking=False):
            pass


def pipeline(site: Site, **queue: Any) -> dict[str, Any]:
    return site.pipeline("stepped", lanes=1, batch=1, receive_maximum=WINDOW, queue=queue)


@pytest.mark.parametrize("limit", [{"max_qos1_frames_per_topic": 8}, {"max_rate_per_topic": 0.01}], ids="".join)
async def test_a_flood_delays_others_by_a_few_turns_where_it_is_limited(site: Site, limit: dict[str, Any]) -> None:
    async with site.node({"p": pipeline(site, **limit)}) as node:
        if "max_rate_per_topic" in limit:  # the others' frames come faster than that here, and are limited too
            await site.frames(range(FLOOD), stream="a")
            await asyncio.gather(*(site.frame(0, stream=stream) for stream in HONEST))
            turns = await step(site, node, FLOOD + 3, lambda: honest_results(site) == len(HONEST))
            assert turns <= FLOOD / WINDOW + 8
        else:
            turns = await flood(site, node)
            # WINDOW - 8 frames are settled in each turn until the others' have arrived; then they take turns with the flood.
            assert turns <= FLOOD / (WINDOW - 8 - len(HONEST)) + 2 * (len(HONEST) + 1) * EACH
            assert honest_results(site) == len(HONEST) * EACH
        tally = node.runners["p"].tally
        assert sum(tally.dropped.values()) + tally.out == tally.received
        assert sum(tally.dropped.values()) > FLOOD / 2
        health = (await site.command("health"))["value"]
        assert health["pipelines"]["p"]["most_lost"] == site.topic("a")
        assert health["pipelines"]["p"]["most_lost_frames"] > FLOOD / 2
        told = [reason for reason in health["reasons"] if f"most from {site.topic('a')}" in reason]
        assert len(told) == ("max_qos1_frames_per_topic" in limit)


async def test_health_names_the_sensor_of_most_dead_letters(site: Site) -> None:
    async with site.node({"p": site.pipeline()}):
        await asyncio.gather(*(site.frame(n, "dies", stream="a") for n in range(9)))
        await site.frame(0, "dies", stream="b")
        await site.wait_dead_letters(10)
        health = (await site.command("health"))["value"]

        assert [
            reason for reason in health["reasons"] if f"most with asked-to-die, most from {site.topic('a')}" in reason
        ]
        assert health["pipelines"]["p"]["most_lost_frames"] == 9


async def test_without_a_limit_nothing_is_dropped_and_the_flood_is_told(site: Site) -> None:
    """An honest sensor that catches up looks the same, so only the configuration can tell."""
    async with site.node({"p": pipeline(site)}) as node:
        await site.frame(0, stream="b")
        Stepped.turns.release()
        await site.wait_results(1)
        await site.frames(range(FLOOD), stream="a")
        event = await site.wait_event("topic-floods")
        assert event["detail"]["topic"] == site.topic("a")
        assert "max_qos1_frames_per_topic" in event["detail"]["remedy"]
        health = (await site.command("health"))["value"]
        assert health["state"] == "degraded"
        assert any(f"{site.topic('a')} floods" in reason for reason in health["reasons"])
        for _ in range(FLOOD):
            Stepped.turns.release()
        await site.wait_results(FLOOD + 1)
        assert not node.runners["p"].tally.dropped


async def test_invented_streams_and_topics_leave_others_their_turns(site: Site) -> None:
    """Frames of 300 topics below one sensor's own, and of 300 streams that a payload invents, take one turn together."""
    fields = {
        "subscribe": f"{site.name}/in/#", "stream": {"by": "level", "level": 2, "max_streams": 50},
        "receive_maximum": 1000, "queue": {"max_frames_per_stream": 4},
    }  # fmt: skip
    async with site.node({"p": site.pipeline("stepped", batch=1, **fields | {"lanes": 1})}) as node:
        await asyncio.gather(*(site.publish(orjson.dumps({"n": n}), stream=f"a/{n}") for n in range(300)))
        await asyncio.gather(*(site.frame(0, stream=stream) for stream in HONEST))
        tally = node.runners["p"].tally
        await until(lambda: tally.received == 303, lambda: tally_counts(tally))
        assert node.runners["p"].streams == 4
        for _ in range(8):
            Stepped.turns.release()
        await until(lambda: honest_results(site) == 3, site.results)
        for _ in range(295):
            Stepped.turns.release()
        await until(lambda: tally.out == 303, lambda: tally_counts(tally))


@pytest.mark.parametrize("seconds", [pytest.param(60, marks=pytest.mark.slow)])
async def test_others_keep_their_results_beside_a_flood_of_100_000_a_minute(tmp_path: Path, seconds: int) -> None:
    """With a broker that keeps a thousand messages for a client as Mosquitto does by default."""
    each = 5 * seconds
    fields: dict[str, Any] = {"lanes": 1, "batch": 1, "queue": {"max_qos1_frames_per_topic": 8}}
    with Mosquitto(config=["max_queued_messages 1000"]) as broker:
        async with Site(broker.port, tmp_path) as site:
            pipeline = site.pipeline({"trial": {"sleep_s": 0.01}}, **fields)
            async with site.node({"p": pipeline}) as node, site.connect() as flooder:

                async def honest(stream: str) -> None:
                    for n in range(each):
                        await site.frame(n, stream=stream)
                        await asyncio.sleep(seconds / each)  # a sensor's pace

                async def attack() -> None:
                    body = orjson.dumps({"n": 0})
                    for _ in range(seconds * 10):
                        await asyncio.gather(*(flooder.publish(site.topic("a"), body, qos=1) for _ in range(167)))
                        await asyncio.sleep(0.1)  # likewise

                attacker = asyncio.create_task(attack())
                await asyncio.gather(*map(honest, HONEST))
                await attacker
                tally = node.runners["p"].tally
                await until(lambda: not tally.held and len(site.results()) == tally.out)
                assert honest_results(site) >= 0.95 * each * len(HONEST), tally_counts(tally)
