"""The delivery contract, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from trial_site import Site, duplicates, tally_counts, until

from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto


@contextlib.asynccontextmanager
async def audited(node: Node) -> AsyncIterator[Counter[str]]:
    """Check that tallies balance, in every turn of the event loop."""
    checks: Counter[str] = Counter()

    async def audit() -> None:
        while True:
            for name, runner in node.runners.items():
                assert runner.tally.balanced, (name, tally_counts(runner.tally))
                checks["all"] += 1
                checks["in flight"] += runner.tally.in_flight > 0
            await asyncio.sleep(0)

    auditing = asyncio.create_task(audit())
    yield checks
    if auditing.done():
        auditing.result()
    auditing.cancel()


async def test_metrics_show_a_consistent_snapshot_of_the_tallies(site: Site) -> None:
    """Another thread reads them while frames are received and settled, and must not see half an update."""
    async with site.node() as node:
        tally = node.runners["p"].tally
        with ThreadPoolExecutor(1) as pool:
            tally.received += 1
            reading = pool.submit(node._probes.tallies)
            wait([reading], timeout=0.2)
            tally.dropped["expired"] += 1
            read = await asyncio.wrap_future(reading)

    assert read["p"].received == 1
    assert read["p"].balanced


@pytest.mark.parametrize("lanes", [2, 0])
async def test_every_frame_has_one_outcome_and_the_tally_balances_at_every_moment(site: Site, lanes: int) -> None:
    """received = out + dropped + dead + in flight, under a mixed load."""
    kinds = [None, "drop", "two", "nothing", "dies", "unencodable", None, "drop", "two", "nothing"]
    pipeline = site.pipeline(lanes=lanes, queue={"max_frames_per_stream": 1000, "max_age_s": 600})
    async with site.node({"p": pipeline}) as node, audited(node) as checks:
        await asyncio.gather(
            *(site.frame(n, kinds[n % 10], stream=f"s{n % 7}", qos=n % 3 > 0) for n in range(1000)),
        )
        tally = node.runners["p"].tally
        await until(lambda: tally.settled == 1000, lambda: tally_counts(tally))
        assert not tally.held

    assert (
        checks["in flight" if lanes else "all"] > 10
    )  # on the event loop frames are in flight only between two checks
    assert tally.received == 1000
    assert tally.out == 400
    assert tally.results == 600
    assert {reason: tally.dropped[reason] for reason in ("asked-to", "absorbed")} == {"asked-to": 200, "absorbed": 200}
    assert dict(tally.dead) == {"asked-to-die": 100, "unserialisable-result": 100}


@pytest.mark.parametrize("lanes", [4, 1, 0, None])
async def test_results_of_a_stream_keep_their_order_with_any_number_of_lanes(site: Site, lanes: int | None) -> None:
    pipeline = site.pipeline({"trial": {"sleep_s": 0.0005}}, lanes=lanes, batch=8, queue={"policy": "fifo"})
    async with site.node({"p": pipeline}):
        await asyncio.gather(*(site.frames(range(150), stream=f"s{s}") for s in range(6)))
        await site.wait_results(900)

    by_stream = defaultdict(list)
    for body in site.results():
        by_stream[body["frame"]["stream"]].append((body["result"]["n"], body["frame"]["sequence"]))
    assert len(by_stream) == 6
    assert all(found == [(n, n) for n in range(150)] for found in by_stream.values())


async def test_without_lanes_stages_run_on_the_event_loop(site: Site) -> None:
    """There are no lane threads."""
    async with site.node({"p": site.pipeline({"trial": {"tag": "here"}}, lanes=0)}) as node:
        await site.frames(range(20))
        await site.wait_results(20)
        assert node.runners["p"]._dispatcher.lanes == 0
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("p-")]

    assert site.numbers() == list(range(20))


async def test_a_qos_1_frame_is_acknowledged_only_after_its_result_is_accepted(site: Site, tmp_path: Path) -> None:
    """A node that stops with frames in flight leaves them to the next run."""
    gate = tmp_path / "gate"
    pipeline = site.pipeline({"gate": {"path": str(gate)}}, "trial")
    async with site.node({"p": pipeline}, node={"drain_s": 0.2}) as node:
        await site.frames(range(3))
        tally = node.runners["p"].tally
        await until(lambda: tally.received == 3)
        assert node.runners["p"]._source.unacknowledged == 3
    assert dict(tally.dropped) == {"returned-to-broker": 3}
    assert site.results() == []

    gate.touch()
    async with site.node({"p": pipeline}) as node:
        await site.wait_results(3)
        await until(lambda: node.runners["p"]._source.unacknowledged == 0)
    async with site.node({"p": pipeline}) as node:
        await site.frame(3)
        await site.wait_results(4)
    assert site.numbers() == [0, 1, 2, 3], "acknowledged frames are not redelivered"


async def test_qos_0_frames_are_superseded_by_newer_ones(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pipeline = site.pipeline(
        {"gate": {"path": str(gate)}}, "trial", queue={"max_frames_per_stream": 3, "max_age_s": 600}
    )
    async with site.node({"p": pipeline}) as node:
        tally = node.runners["p"].tally
        await site.frame(0, qos=0)
        await until(lambda: tally.received == 1 and node.runners["p"].queued == 0)
        await site.frames(range(1, 21), qos=0)
        await until(lambda: tally.received == 21)
        gate.touch()
        await site.wait_results(4)

    assert site.numbers() == [0, 18, 19, 20]
    assert dict(tally.dropped) == {"superseded": 17}


@pytest.mark.parametrize("qos", [0, 1])
async def test_an_expired_frame_is_dropped_before_it_is_decoded(site: Site, tmp_path: Path, qos: int) -> None:
    """By the message's own expiry; its invalid payload is never decoded."""
    gate = tmp_path / "gate"
    pipeline = site.pipeline({"gate": {"path": str(gate)}}, "trial", lanes=1, queue={"max_age_s": 300})
    async with site.node({"p": pipeline}) as node:
        tally = node.runners["p"].tally
        await site.frame(0, stream="other")
        await until(lambda: tally.received == 1 and node.runners["p"].queued == 0)
        await site.publish(b"no json", stream="a", qos=qos, expiry_s=1)
        await site.frame(1, stream="b", qos=qos)
        await until(lambda: tally.dropped["expired"] == 1, lambda: tally_counts(tally))
        gate.touch()
        await site.wait_results(2)

    assert site.dead_letters() == []
    assert site.numbers() == [0, 1]


async def test_frames_older_than_the_queue_allows_are_dropped(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pipeline = site.pipeline({"gate": {"path": str(gate)}}, "trial", lanes=1, queue={"max_age_s": 0.2})
    async with site.node({"p": pipeline}) as node:
        tally = node.runners["p"].tally
        await site.frame(0, stream="other")
        await until(lambda: tally.received == 1 and node.runners["p"].queued == 0)
        await site.frames(range(1, 6))
        await until(lambda: tally.dropped["expired"] == 5, lambda: tally_counts(tally))
        gate.touch()
        await site.wait_results(1)
        await until(lambda: node.runners["p"]._source.unacknowledged == 0)


async def test_a_retained_message_is_dropped(site: Site) -> None:
    await site.publish(b'{"n": 1}', retain=True)
    try:
        async with site.node() as node:
            tally = node.runners["p"].tally
            await until(lambda: tally.received == 1)
            await site.frame(2)
            await site.wait_results(1)
        assert site.numbers() == [2]
        assert dict(tally.dropped) == {"retained": 1}
    finally:
        await site.publish(b"", retain=True)


@pytest.mark.parametrize("qos", [0, 1])
async def test_results_that_the_broker_refuses_become_one_dead_letter(tmp_path: Path, qos: int) -> None:
    """Both results of a frame exceed the broker's packet limit: one dead letter, and the next frame is unaffected."""
    with Mosquitto(config=["max_packet_size 20000"]) as broker:
        async with Site(broker.port, tmp_path) as site:
            async with site.node({"p": site.pipeline(publish={"qos": qos})}) as node:
                await site.frame(1, "two-large", size=30_000)
                await site.frame(2)
                await site.wait_results(1)
                await site.wait_dead_letters(1)
                tally = node.runners["p"].tally
                await until(lambda: tally.settled == 2, lambda: tally_counts(tally))
                assert tally_counts(tally)["dead"] == {site.dead_letters()[0]["reason"]: 1}

            assert site.numbers() == [2]
            assert site.events("result-refused")


async def test_results_refused_by_an_access_list_are_reported_once_and_counted(tmp_path: Path) -> None:
    """They used to make two log lines and two events a frame."""
    (tmp_path / "acl").write_text(
        "topic readwrite #\ntopic deny hedgerow/v1/+/+/+/result/#\ntopic deny +/+/+/+/+/dead/#\n"
    )
    with Mosquitto(config=[f"acl_file {tmp_path / 'acl'}"]) as broker:
        async with Site(broker.port, tmp_path) as site, site.node() as node:
            await site.frames(range(60))
            tally = node.runners["p"].tally
            await until(lambda: tally.settled == 60, lambda: tally_counts(tally))
            await site.wait_event("result-refused")
            await site.wait_event("dead-letter-refused")
            counted = {labels["kind"]: count for _, _, labels, count in node._announcer.gauges() if "kind" in labels}
            assert counted == {"result-refused": 60, "dead-letter-refused": 60}
            assert (len(site.events("result-refused")), len(site.events("dead-letter-refused"))) == (1, 1)
        assert site.events("result-refused")[-1]["detail"]["times"] == 59, "at the end, what was held back"
        assert tally_counts(tally)["dead"] == {"bus": 60}


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_result_larger_than_any_packet_is_dead_lettered(own_site: Site, qos: int) -> None:
    """Above MQTT's own limit of 256 MiB, a result cannot even be encoded as a packet."""
    pipeline = own_site.pipeline(lanes=1, publish={"qos": qos})
    async with own_site.node({"p": pipeline}) as node:
        await asyncio.gather(own_site.frame(1, "two-large", size=1 << 28), own_site.frame(2))
        await own_site.wait_results(1)
        (letter,) = await own_site.wait_dead_letters(1)
        assert letter["reason"] == "bus"
        assert "exceeds the broker's limit" in letter["message"]
        await until(lambda: node.runners["p"].tally.settled == 2, lambda: tally_counts(node.runners["p"].tally))


async def test_stages_keep_state_of_no_more_streams_than_allowed(site: Site) -> None:
    """Thousands of sensors that publish once leave the state of at most `max_streams`."""
    import trial_stages

    del trial_stages.TallyUp.states[:]
    pipeline = site.pipeline("tally", stream={"max_streams": 50}, queue={"max_frames": 10_000})
    async with site.node({"p": pipeline}) as node:
        await asyncio.gather(*(site.publish(b"x", stream=f"s{n}") for n in range(1500)))
        await site.wait_results(1500)
        runner = node.runners["p"]
        (state,) = trial_stages.TallyUp.states
        await until(lambda: runner.tally.in_flight == 0)
        assert runner.streams <= 50
        assert len(state) <= 50
        assert not any(queue._streams for queue in runner._intake.queues)


async def test_a_lasting_stream_keeps_its_state_among_many_short_ones(site: Site) -> None:
    pipeline = site.pipeline("tally", stream={"max_streams": 5})
    async with site.node({"p": pipeline}):
        for n in range(30):
            await site.publish(b"x", stream="stays")
            await site.publish(b"x", stream=f"passes-{n}")
        await site.wait_results(60)

    seen = [body["result"]["seen"] for body in site.results() if body["frame"]["stream"].endswith("stays")]
    assert seen == list(range(1, 31))


async def test_a_result_has_the_id_that_the_sender_gave_the_frame(site: Site) -> None:
    async with site.node():
        await site.publish(
            b'{"n": 1, "do": "two"}', user={"id": "cam2-77", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        )
        await site.wait_results(2)

    first, second = site.published("result", "p")
    assert (first.body["id"], second.body["id"]) == ("cam2-77", "cam2-77/1")
    assert first.user["id"] == "cam2-77"
    assert first.user["traceparent"].startswith(f"00-{'a' * 32}-")
    assert first.body["frame"]["id"] == second.body["frame"]["id"] == "cam2-77"


async def test_a_node_resumes_after_losing_the_broker(own_site: Site, mosquitto: Any) -> None:
    """Frames in flight are finished, and redelivered ones are not processed twice."""
    gate = own_site.folder / "gate"
    pipeline = own_site.pipeline({"gate": {"path": str(gate)}}, "trial")
    async with own_site.node({"p": pipeline}) as node:
        await own_site.frames(range(50))
        runner = node.runners["p"]
        await until(lambda: runner.tally.received == 50)
        await asyncio.to_thread(mosquitto.stop)
        await until(lambda: not runner.connected)
        gate.touch()
        await asyncio.to_thread(mosquitto.start)
        await until(lambda: runner.connected)
        await until(
            lambda: runner.tally.out == 50 and not runner._source.unacknowledged, lambda: tally_counts(runner.tally)
        )
        assert runner.tally.received == 50, "a redelivered frame that is still in flight does not count as a new one"
        async with Site(mosquitto.port, own_site.folder) as later:
            later.name = own_site.name
            await later.client.subscribe(f"hedgerow/v1/test/{own_site.name}/+/+/#", qos=1)
            await later.frame(50)
            await later.wait_results(1)
            assert duplicates(later.numbers()) == {}


async def test_a_frame_that_crashes_its_worker_is_dead_lettered_and_the_others_give_results(site: Site) -> None:
    """With workers, the node survives a native crash; the other frames give results, in order."""
    pipeline = site.pipeline(workers=2, queue={"policy": "fifo"})
    async with site.node({"p": pipeline}) as node:
        for number in range(40):
            await site.frame(number, "kill-process" if number == 17 else None, stream=f"s{number % 4}")
        tally = node.runners["p"].tally
        await until(lambda: tally.settled == 40, lambda: tally_counts(tally))

    assert (tally.out, dict(tally.dead)) == (39, {"worker-crashed": 1})
    by_stream: defaultdict[str, list[int]] = defaultdict(list)
    for result in site.published("result", "p"):
        by_stream[result.body["frame"]["stream"]].append(result.body["result"]["n"])
    assert all(numbers == sorted(numbers) for numbers in by_stream.values())
    assert site.published("event", "worker-crashed")


async def test_frames_are_processed_again_after_a_stall_beyond_the_deadline(site: Site) -> None:
    """A list that exceeds the deadline predicts that no frame can meet it; some are processed anyway, to measure again."""
    gate = site.folder / "gate"
    pipeline = site.pipeline({"gate": {"path": str(gate)}}, "trial", queue={"deadline_s": 0.3})
    async with site.node({"p": pipeline}) as node:
        runner = node.runners["p"]
        await site.frame(0, qos=0)
        await until(lambda: (hang := runner.hang()) and hang.waited_s > 0.5)
        gate.touch()
        await site.wait_results(1)
        sent = 0
        while not any(number > 0 for number in site.numbers()):
            sent += 1
            assert sent < 200, tally_counts(runner.tally)
            await site.frame(sent, qos=0)
            await until(lambda upto=sent: runner.tally.settled > upto)

        assert runner.tally.dropped["late"] > 0


async def test_a_lane_with_slow_frames_leaves_waiting_frames_to_the_other_lanes(site: Site) -> None:
    """A lane that took all waiting streams would leave the other lane idle."""
    gate = site.folder / "gate"
    async with site.node({"p": site.pipeline({"gate": {"path": str(gate)}}, "trial")}) as node:
        runner = node.runners["p"]
        for n in range(2):  # one per lane
            await site.frame(n, stream=f"first-{n}")
            await until(lambda upto=n: runner.tally.received > upto)
        for n in range(8):
            await site.frame(n, stream=f"then-{n}")
        await until(lambda: runner.queued == 8 and (hang := runner.hang()) and hang.waited_s > 0)
        gate.touch()
        lists = [result["lineage"]["stages"][0][2] for result in await site.wait_results(10)]

    assert max(lists) == 1
