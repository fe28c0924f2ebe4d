"""Durable results, from the frame to the region's acknowledgement, on a real broker and a real disk."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.wire import unchecked
from trial_site import Received, Site, tally_counts, until

from hedgerow import configfile
from hedgerow.bus.outbox import Ledger, Number, Record, read_gap
from hedgerow.bus.properties import Property
from hedgerow.errors import ConfigError
from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto

DURABLE = {"durable": True}


class Region:
    """The region's side of an outbox: records what arrives, and acknowledges it on request."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._seen = 0
        self.ledger: Ledger | None = None  # of the last epoch
        self._ledgers: dict[str, Ledger] = {}
        self.gaps = 0

    def collect(self) -> Ledger | None:
        new, self._seen = self._site.received[self._seen :], len(self._site.received)
        for message in new:
            if message.topic.endswith("/event/gap"):
                epoch, gap = read_gap(message.payload)
                self._of(epoch).add_gap(gap)
                self.gaps += gap.last - gap.first + 1
            elif "number" in message.user:
                number = Number.parse(message.user["number"])
                self._of(number.epoch).add(number)
        return self.ledger

    def _of(self, epoch: str) -> Ledger:
        self.ledger = self._ledgers.setdefault(epoch, Ledger(epoch))
        return self.ledger

    async def acknowledge(self) -> None:
        assert self.collect() is not None
        for ledger in self._ledgers.values():
            await self._site.client.publish(
                f"hedgerow/v1/test/{self._site.name}/node/ack", ledger.ack().encode(), qos=1
            )

    async def acknowledge_until_empty(self, node: Node) -> None:
        while outbox_entries(node):
            await self.acknowledge()
            await asyncio.sleep(0.02)


def outbox_entries(node: Node) -> int:
    health = node.health().outbox
    assert health is not None
    return health.entries


def late(site: Site) -> list[Received]:
    return [message for message in site.received if message.topic.endswith("/result/p/late")]


def numbers(site: Site) -> set[int]:
    """Return the numbers of all results, late ones too; what the region does not acknowledge is published again."""
    return {message.body["result"]["n"] for message in [*site.published("result", "p"), *late(site)]}


async def test_a_durable_result_has_a_number_and_stays_until_the_region_acknowledges_it(site: Site) -> None:
    async with site.node({"p": site.pipeline(publish=DURABLE)}) as node:
        await site.frames(range(5))
        await site.wait_results(5)
        assert outbox_entries(node) == 5
        numbers = [Number.parse(message.user["number"]) for message in site.published("result", "p")]
        assert [(number.priority, number.sequence) for number in numbers] == [(0, n) for n in range(1, 6)]
        await Region(site).acknowledge()
        await until(lambda: outbox_entries(node) == 0)
        assert node.runners["p"].tally.out == 5
        assert node.runners["p"]._source.unacknowledged == 0
        assert node.health().state == "ok"


async def test_unacknowledged_results_are_sent_in_the_next_run_even_if_no_pipeline_is_durable(
    site: Site,
) -> None:
    async with site.node({"p": site.pipeline(publish=DURABLE)}):
        await site.frames(range(5))
        await site.wait_results(5)
    async with site.node({"p": site.pipeline()}) as node:
        await until(lambda: len(late(site)) >= 5)
        assert [message.body["result"]["n"] for message in late(site)][:5] == list(
            range(5)
        )  # one may come again as a probe
        await Region(site).acknowledge_until_empty(node)
    assert site.numbers() == list(range(5)), "subscribers to `result/p` do not receive them twice"


async def test_results_that_waited_are_sent_under_the_name_that_the_node_has_now(site: Site) -> None:
    """Its own state folder, another name: numbers and contents stay, so that the region knows them for the same results."""
    async with site.node({"p": site.pipeline(publish=DURABLE)}):
        await site.frames(range(5))
        await site.wait_results(5)
    before = {message.user["number"]: message.payload for message in site.published("result", "p")}
    renamed = f"hedgerow/v1/test/{site.name}/gateway/"
    async with site.node({"p": site.pipeline()}, node={"name": "gateway"}) as node:
        await until(lambda: len({one.user["number"] for one in late(site)}) == 5)
        assert {one.topic for one in late(site)} == {f"{renamed}result/p/late"}
        assert {one.user["number"]: one.payload for one in late(site)} == before
        ledger = Region(site).collect()
        assert ledger is not None
        await site.client.publish(f"{renamed}ack", ledger.ack().encode(), qos=1)
        await until(lambda: outbox_entries(node) == 0)


async def test_an_unresponsive_region_does_not_delay_results_at_the_site(site: Site) -> None:
    pipeline = site.pipeline(publish=DURABLE, queue={"policy": "fifo"})
    async with site.node({"p": pipeline}, outbox={"window": 4}) as node:
        await site.frames(range(300))
        await site.wait_results(300)
        assert site.numbers() == list(range(300))
        await Region(site).acknowledge_until_empty(node)


async def test_a_redelivered_frame_is_not_stored_twice(site: Site) -> None:
    """Publishers resend unconfirmed frames, and a broker may redeliver frames after a crash."""
    user = {"id": "f1"}
    pipeline = site.pipeline(publish=DURABLE)
    async with site.node({"p": pipeline}) as node:
        await site.publish(b'{"n": 1}', user=user)
        await site.wait_results(1)
        await site.publish(b'{"n": 1}', user=user)
        await site.publish(b'{"n": 2}', user=user)  # a sender that reuses ids loses nothing
        await site.publish(b'{"n": 1}')
        await site.publish(b'{"n": 1}')
        await site.wait_results(4)
        assert dict(node.runners["p"].tally.dropped) == {"duplicate": 1}
    async with site.node({"p": pipeline}) as node:
        await site.publish(b'{"n": 1}', user=user)
        tally = node.runners["p"].tally
        await until(lambda: tally.settled == 1)
        assert dict(tally.dropped) == {"duplicate": 1}
        assert outbox_entries(node) == 4


async def test_qos_1_frames_wait_while_a_full_outbox_refuses_and_resume_in_order(site: Site) -> None:
    pipeline = site.pipeline({"trial": {"tag": "x" * 40_000}}, publish=DURABLE, receive_maximum=10)
    async with site.node({"p": pipeline}, outbox={"max_bytes": 1 << 20, "when_full": "refuse"}) as node:
        tally, region = node.runners["p"].tally, Region(site)
        sending = asyncio.create_task(site.frames(range(60)))
        await until(lambda: tally.out >= 20 and node.runners["p"]._settler.storing, lambda: tally_counts(tally))
        while tally.out < 60:
            await region.acknowledge()
            await asyncio.sleep(0.02)
        await sending
        await region.acknowledge_until_empty(node)
        assert not tally.dropped
    assert site.numbers() == list(range(60))


async def test_qos_0_frames_that_a_full_outbox_refuses_are_counted(site: Site) -> None:
    pipeline = site.pipeline({"trial": {"tag": "x" * 40_000}}, publish=DURABLE)
    async with site.node({"p": pipeline}, outbox={"max_bytes": 1 << 20, "when_full": "refuse"}) as node:
        tally = node.runners["p"].tally
        for n in range(40):
            await site.frame(n, qos=0)
            await until(lambda n=n: tally.settled == n + 1, lambda: tally_counts(tally))  # type: ignore[misc]
        assert 10 < tally.dropped["outbox"] < 40
        assert tally.out == 40 - tally.dropped["outbox"]
        health = node.health()
        assert health.state != "failing", "it is full, as configured; the disk is fine"


async def test_a_full_outbox_that_evicts_continues_and_reports_what_is_lost(site: Site) -> None:
    pipeline = site.pipeline({"trial": {"tag": "x" * 40_000}}, publish=DURABLE, queue={"policy": "fifo"})
    async with site.node({"p": pipeline}, outbox={"max_bytes": 1 << 20}) as node:
        for n in range(0, 80, 10):
            await site.frames(range(n, n + 10))
            await site.wait_results(n + 10)
        health = node.health()
        assert health.outbox is not None
        lost = health.outbox.lost["evicted"]
        assert lost >= 50
        assert any("outbox" in reason for reason in health.reasons)
        event = await site.wait_event("outbox-lost")
        assert event["detail"]["evicted"] <= lost
        region = Region(site)
        await region.acknowledge_until_empty(node)
        ledger = region.ledger
        assert ledger is not None
        assert ledger.ranges(0).all() == [(1, 80)], "each number was received, or is in a gap"


async def test_a_result_too_large_for_the_outbox_is_a_dead_letter(site: Site) -> None:
    pipeline = site.pipeline({"trial": {"tag": "x" * 300_000}}, publish=DURABLE)
    async with site.node({"p": pipeline}, outbox={"max_bytes": 1 << 20}) as node:
        await site.frame(0)
        (letter,) = await site.wait_dead_letters(1)
        assert letter["reason"] == "outbox-too-large"
        assert node.runners["p"].tally.balanced


@pytest.mark.parametrize(
    ("broker", "outbox"),
    [([], {"max_packet_bytes": 20_000}), (["max_packet_size 20000"], {})],
    ids=["bridge", "broker"],
)
async def test_a_result_that_cannot_reach_the_region_is_a_dead_letter(
    tmp_path: Path, broker: list[str], outbox: dict[str, Any]
) -> None:
    """It would be sent for ever, and never be acknowledged."""
    with Mosquitto(config=broker) as mosquitto:
        async with Site(mosquitto.port, tmp_path) as site:
            pipelines = {
                "p": site.pipeline({"trial": {"tag": "x" * 30_000}}, publish=DURABLE),
                "small": site.pipeline({"trial": {"tag": "x" * 15_000}}, publish=DURABLE),
            }
            async with site.node(pipelines, outbox=outbox) as node:
                await until(lambda: node._outbox.client is not None and node._outbox.client.connected)
                await site.frame(0)
                (letter,) = await site.wait_dead_letters(1)
                await site.wait_results(1, "small")
                health = node.health()

    assert letter["reason"] == "result-too-large"
    assert "larger ones than 20,000" in letter["message"]
    assert "bridge_max_packet_size" in letter["remedy"]
    assert health.outbox is not None
    assert health.outbox.entries == 1


async def test_stored_results_that_a_lower_limit_excludes_are_declared_lost(site: Site) -> None:
    pipeline = site.pipeline({"trial": {"tag": "x" * 30_000}}, publish=DURABLE)
    async with site.node({"p": pipeline}):
        await site.frame(0)
        await site.wait_results(1)
    async with site.node({"p": pipeline}, outbox={"max_packet_bytes": 20_000}) as node:
        assert (await site.wait_event("outbox-lost"))["detail"] == {"too-large": 1}
        health = node.health()
        await until(lambda: site.events("gap"))

    assert site.events("gap")[0]["reasons"] == {"too-large": 1}
    assert any("given up, most as too-large" in reason for reason in health.reasons)


async def test_results_of_workers_are_durable_too(site: Site) -> None:
    async with site.node({"p": site.pipeline(publish=DURABLE, lanes=None, workers=2)}) as node:
        await asyncio.gather(*(site.frames(range(20), stream=s) for s in "abc"))
        await site.wait_results(60)
        await Region(site).acknowledge_until_empty(node)


async def test_reloads_that_switch_durability_on_and_off_lose_no_frame(site: Site) -> None:
    async with site.node({"p": site.pipeline()}) as node:
        for turn in range(4):
            await site.frames(range(20 * turn, 20 * turn + 20))
            publish: dict[str, Any] = {} if turn % 2 else DURABLE
            site.write({"p": site.pipeline(publish=publish)})
            await node.reload()
        # The outbox's link may come up after the pipeline's: results stored before that are published as late.
        await until(lambda: len(numbers(site)) == 80, lambda: f"{len(numbers(site))} of 80 results")
        assert numbers(site) == set(range(80))
        assert node.runners["p"].tally.out == 80


async def test_priority_and_time_to_live_are_those_of_the_pipeline(site: Site) -> None:
    publish = {**DURABLE, "priority": 7, "ttl_s": 0.05}
    async with site.node({"p": site.pipeline(publish=publish)}) as node:
        await site.frame(0)
        await site.wait_results(1)
        assert site.published("result", "p")[0].user["number"].split("/")[1] == "7"
        await until(lambda: node.health().outbox.lost == {"expired": 1}, lambda: node.health().outbox)  # type: ignore[union-attr]


async def test_an_outbox_in_use_by_another_node_fails_only_the_durable_pipeline(site: Site) -> None:
    pipelines = {"p": site.pipeline(publish=DURABLE), "q": site.pipeline()}
    async with (
        site.node(pipelines),
        site.node({**pipelines}, node={"name": "twin"}) as twin,
    ):
        assert twin.failures["p"].code == "outbox-in-use"
        assert set(twin.runners) == {"q"}


@pytest.mark.parametrize(
    ("publish", "remedy"),
    [
        ({"durable": True, "qos": 0}, "`qos: 1`"),
        ({"durable": True, "expiry_s": 5}, "`ttl_s`"),
        ({"priority": 3}, "`durable: true`"),
        ({"ttl_s": 3}, "`durable: true`"),
    ],
)
def test_contradictory_publish_settings_are_refused(tmp_path: Path, publish: dict[str, Any], remedy: str) -> None:
    site = Site(1883, tmp_path)
    with pytest.raises(ConfigError, match="publish") as refusal:
        configfile.parse(site.yaml({"p": site.pipeline(publish=publish)}), Path("node.yaml"))
    assert remedy in refusal.value.explain()


@pytest.mark.parametrize("earlier_run", [True, False])
async def test_a_stored_result_that_ends_the_link_is_set_aside_and_the_others_reach_the_region(
    site: Site, earlier_run: bool
) -> None:
    """As an older version stored them: a control character in a sender's id, which Mosquitto closes the link for."""
    bad = unchecked.properties([(Property.USER, ("id", "\x1b[2J"))])
    topic = f"hedgerow/v1/test/{site.name}/node/result/p"
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(site.node({"p": site.pipeline(publish=DURABLE)}))
        outbox = await node._outbox.open()
        await site.frame(0)
        outbox.append([Record("p", topic, b"{}", bad)], [], lambda _: None)
        await site.frame(1)
        if earlier_run:
            await stack.aclose()
            node = await stack.enter_async_context(site.node({"p": site.pipeline(publish=DURABLE)}))
        region = Region(site)
        event = await site.wait_event("publish-set-aside")
        await until(region.collect)
        await region.acknowledge_until_empty(node)
        await site.frame(2)
        await until(
            lambda: {0, 1, 2} <= {each.body["result"]["n"] for each in site.received if "/result/p" in each.topic}
        )
        await region.acknowledge_until_empty(node)
        health = node.health()

    assert event["detail"]["remedy"]
    assert health.outbox is not None
    assert health.outbox.lost == {"set-aside": 1}
    assert health.state == "degraded"
    assert any("set aside in" in reason for reason in health.reasons)
    assert {str(read_gap(each.payload)[1].reasons) for each in site.published("event", "gap")} == {"{'set-aside': 1}"}
    (kept,) = (site.folder / "state" / "set-aside").iterdir()
    assert kept.name in event["detail"]["kept_as"]
