"""The collector with a real broker and real outboxes: nothing is lost, and everything is stored once."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.region.conftest import PATIENCE_S, REGION, CollectorProcess, eventually, result, sender
from typer.testing import CliRunner

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.cli.main import app
from hedgerow.region.collector import collector as collector_module
from hedgerow.region.collector.collector import Collector
from hedgerow.region.collector.decode import filters
from hedgerow.region.collector.metrics import CollectorCounts
from hedgerow.region.collector.service import former_session
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import Term
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.testing import Mosquitto, processes
from hedgerow.topics import Address, Channel

_JSON_PROPERTIES = encode_properties([(Property.CONTENT_TYPE, "application/json")])


def numbers(url: str) -> list[int]:
    """Return the sequence numbers of the stored results."""
    database = open_database(url, write=False)
    try:
        return [stored.body["result"]["n"] for stored in results(database, ResultQuery())]
    finally:
        database.close()


def status_of(url: str) -> dict[str, Any]:
    database = open_database(url, write=False)
    try:
        return status(database, time.time())
    finally:
        database.close()


def node_of(url: str, name: str = f"{REGION}/s1/n1") -> dict[str, Any]:
    found = [node for node in status_of(url)["nodes"] if node["node"] == name]
    return found[0] if found else {}


async def test_results_from_an_outbox_are_stored_and_acknowledged(
    collector: CollectorProcess, gateway: Callable[..., Any]
) -> None:
    """The outbox ends up empty, with far fewer acknowledgements than results."""
    collector.start()
    async with gateway() as node:
        node.send(1000)
        await eventually(lambda: node.count == 1000 and node.entries == 0, lambda: node.outbox.status)

    assert sorted(numbers(collector.store)) == list(range(1, 1001))
    assert 0 < len(node.acks) < 200
    shown = status_of(collector.store)
    assert shown["nodes"][0]["durable"] == 1000
    assert shown["sites"][0]["bytes_up"] == shown["nodes"][0]["bytes_up"] > 100_000


async def test_an_outbox_that_catches_up_with_a_small_window_is_not_delayed(
    collector: CollectorProcess, gateway: Callable[..., Any]
) -> None:
    """With one result in flight, it requests an acknowledgement each time; paced, this would take minutes."""
    collector.start()
    async with gateway(window=2) as node:
        await node.client.pause()
        node.send(200)
        await eventually(lambda: node.outbox.status.entries == 200)
        node.client.resume()
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)

    assert sorted(numbers(collector.store)) == list(range(1, 201))


async def test_the_collector_survives_a_restart_of_postgres(
    mosquitto: Mosquitto, postgres: Any, gateway: Callable[..., Any], tmp_path: Path
) -> None:
    """While the server is down nothing is acknowledged; afterwards nothing is missing."""
    url = postgres.database()
    collector = CollectorProcess(mosquitto.url, url, tmp_path)
    collector.configure()
    try:
        collector.start()
        async with gateway() as node:
            node.send(300)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            await asyncio.to_thread(postgres.stop)
            node.send(300)
            await eventually(lambda: '"store-failing"' in collector.log, lambda: collector.log[-2000:])
            assert node.entries > 0
            assert collector.probe("readyz")[0] == 503
            await asyncio.to_thread(postgres.start)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
        assert sorted(numbers(url)) == list(range(1, 601))
        assert '"store-recovered"' in collector.log
    finally:
        collector.close()


@pytest.mark.long
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_a_collector_killed_repeatedly_stores_each_result_once(
    collector: CollectorProcess, gateway: Callable[..., Any], kills: int
) -> None:
    """Killed at random times, under load from two nodes, with priorities."""
    async with gateway("n1") as one, gateway("n2") as two:
        for _ in range(kills):
            await asyncio.to_thread(collector.start)
            until = time.monotonic() + random.random() * 0.8
            while time.monotonic() < until:
                one.send(20, priority=random.randrange(3))
                two.send(20)
                await asyncio.sleep(0.02)
            await asyncio.to_thread(collector.kill)
        await asyncio.to_thread(collector.start)
        await eventually(lambda: one.entries == two.entries == 0, lambda: (one.outbox.status, two.outbox.status))

        database = open_database(collector.store, write=False)
        found: dict[str, list[int]] = {"n1": [], "n2": []}
        for stored in results(database, ResultQuery()):
            found[stored.node].append(stored.body["result"]["n"])
        region_status = status(database, time.time())
        database.close()
    assert sorted(found["n1"]) == list(range(1, one.count + 1))
    assert sorted(found["n2"]) == list(range(1, two.count + 1))
    assert [node["awaited"] for node in region_status["nodes"]] == [0, 0]
    assert region_status["rejected"] == {}


async def test_a_duplicate_is_acknowledged_again_but_not_stored_again(
    collector: CollectorProcess, mosquitto: Mosquitto, gateway: Callable[..., Any]
) -> None:
    """An outbox that missed an acknowledgement sends the result again."""
    collector.start()
    properties = encode_properties([(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("number", "e1/0/1"))])
    payload = result("p", 1)
    async with gateway() as node, sender(mosquitto.url) as other:
        for times in (1, 2, 3):
            other.publish(node.address.topic(Channel.RESULT, "p"), payload, qos=1, properties=properties)
            await eventually(lambda times=times: len(node.acks) >= times, lambda: node.acks)
    assert {(ack.epoch, ack.through[0]) for ack in node.acks} == {("e1", 1)}
    assert numbers(collector.store) == [1]
    assert node_of(collector.store)["repeats"] == 2


async def test_a_declared_gap_is_stored_and_the_outbox_continues(
    collector: CollectorProcess, gateway: Callable[..., Any]
) -> None:
    """Results that expire in the outbox become a gap with their number and the reason."""
    from hedgerow.bus.outbox.records import Record

    async with gateway() as node:
        topic = node.address.topic(Channel.RESULT, "p")
        await node.client.pause()
        records = [
            Record("p", topic, result("p", n), b"", 0, time.time(), 0.01 if n <= 3 else None) for n in range(1, 6)
        ]
        node.outbox.append(records, [], lambda _: None)
        await eventually(lambda: node.outbox.status.lost.get("expired") == 3, lambda: node.outbox.status)
        node.client.resume()
        collector.start()
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
    region_status = node_of(collector.store)
    assert (region_status["lost"], region_status["awaited"]) == (3, 0)
    assert sorted(numbers(collector.store)) == [4, 5]


async def test_results_without_a_number_are_stored_once_by_id(
    collector: CollectorProcess, mosquitto: Mosquitto
) -> None:
    collector.start()
    address = Address(REGION, "s1", "n1")
    async with sender(mosquitto.url) as client:
        for n in (1, 2, 2, 3):
            properties = encode_properties(
                [(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("id", f"i{n}"))]
            )
            client.publish(address.topic(Channel.RESULT, "p"), result("p", n), qos=1, properties=properties)
        await client.flush(PATIENCE_S)
        await eventually(lambda: node_of(collector.store).get("messages_up") == 4)
    database = open_database(collector.store, write=False)
    found = list(results(database, ResultQuery()))
    database.close()
    assert [(stored.id, stored.number) for stored in found] == [("i1", None), ("i2", None), ("i3", None)]
    assert node_of(collector.store)["durable"] == 0


async def test_status_tells_silent_one_way_offline_and_ok_nodes_apart(
    mosquitto: Mosquitto, collector: CollectorProcess, gateway: Callable[..., Any]
) -> None:
    """A node whose messages arrive but that answers no pings is one-way, although it is connected."""
    collector.configure(ping={"every_s": 0.4, "timeout_s": 0.5}, region={"silent_after_s": 3})
    collector.start()
    async with (
        gateway("well") as well,
        gateway("one-way", answers=False) as one_way,
        gateway("gone") as gone,
        gateway("lost") as lost,
    ):
        for node in (well, one_way, gone, lost):
            node.status()
            node.health()
        async with gateway("silent") as silent:
            silent.status()
            await silent.client.flush(PATIENCE_S)
        gone.status("offline")
        lost.client.publish(lost.address.topic(Channel.STATUS), lost.will.encode(), qos=1, retain=True)

        def statuses() -> dict[str, tuple[str, str]]:
            for node in (well, one_way):
                node.health()
            nodes = status_of(collector.store)["nodes"]
            return {node["node"].split("/")[2]: (node["status"], node["verdict"]) for node in nodes}

        expected = {
            "well": ("ok", "ok"),
            "one-way": ("one-way", "deaf"),
            "gone": ("stopped", "offline"),
            "lost": ("offline", "offline"),
            "silent": ("silent", "silent"),
        }
        await eventually(lambda: statuses() == expected, statuses)
        region_status = node_of(collector.store, f"{REGION}/s1/well")
        assert 0 < region_status["round_trip_s"] < PATIENCE_S
        assert abs(region_status["clock_offset_s"]) < PATIENCE_S
        counted = 'hedgerow_region_nodes{status="one-way",verdict="deaf"} 1.0'
        await eventually(  # while they go on reporting: after three seconds without a message they would be silent
            lambda: statuses() and counted in collector.probe("metrics")[1], lambda: collector.probe("metrics")[1]
        )
        metrics = collector.probe("metrics")[1]
        assert "hedgerow_region_rollouts_up 1.0" in metrics
        assert "hedgerow_region_conducts 1.0" in metrics, "deprecated, but still exported"
    command = [sys.executable, "-m", "hedgerow", "region", "status", "--store", collector.store]
    shown = await asyncio.to_thread(processes.run, command, capture_output=True, text=True)
    assert shown.returncode == 1
    assert f"{REGION}/s1/lost is offline: its broker lost the connection to it" in shown.stdout
    assert f"{REGION}/s1/gone is " not in shown.stdout, "it needs no help"
    assert f"{REGION}/s1/silent is silent: nothing received for" in shown.stdout
    assert f"{REGION}/s1/one-way is " in shown.stdout


@pytest.fixture
def node_process(mosquitto: Mosquitto, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a real node without pipelines."""
    config = {
        "node": {"region": REGION, "site": "s1", "name": "real"},
        "broker": {"url": mosquitto.url},
        "metrics": {"enabled": False},
    }
    (tmp_path / "node.yaml").write_text(json.dumps(config))
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hedgerow", "node", "run", tmp_path / "node.yaml"]
        with (tmp_path / "node.log").open("a") as log:
            started.append(processes.start(command, stderr=log, text=True))
        return started[-1]

    yield start
    for process in started:
        processes.end(process)


async def test_a_crash_of_a_node_is_told_from_a_planned_stop(
    collector: CollectorProcess, node_process: Callable[[], subprocess.Popen[str]]
) -> None:
    """In the status, its exit code, and the metrics that the documented alerts use."""
    collector.start()

    def status() -> tuple[str, int]:
        node = node_of(collector.store, f"{REGION}/s1/real")
        return node.get("status", ""), node.get("crashes", 0)

    def exit_code() -> int:
        return CliRunner().invoke(app, ["region", "status", "--store", collector.store]).exit_code

    def metric(name: str) -> str:
        return "\n".join(line for line in collector.probe("metrics")[1].splitlines() if line.startswith(name))

    node = node_process()
    await eventually(lambda: status() == ("ok", 0), status)
    assert exit_code() == 0
    node.terminate()
    await eventually(lambda: status() == ("stopped", 0), status)
    assert exit_code() == 0
    node = node_process()
    await eventually(lambda: status() == ("ok", 0), status)
    node.kill()
    await eventually(lambda: status() == ("offline", 0), status)
    assert exit_code() == 1
    needs_help = 'hedgerow_region_node_status{needs_help="yes",node="real",site="s1",status="offline"} 1.0'
    await eventually(
        lambda: metric("hedgerow_region_node_status") == needs_help, lambda: metric("hedgerow_region_node_status")
    )
    node_process()
    await eventually(lambda: status() == ("ok", 1), status)
    crashes = 'hedgerow_region_node_crashes_total{node="real",site="s1"} 1.0'
    await eventually(
        lambda: metric("hedgerow_region_node_crashes_total") == crashes, lambda: metric("hedgerow_region_node_crashes")
    )


async def test_a_bridge_that_forwards_nothing_down_is_found_though_it_is_connected(
    collector: CollectorProcess, mosquitto: Mosquitto, gateway: Callable[..., Any]
) -> None:
    """Results and health still go up through it, but pings do not go down."""
    up = [
        f"topic hedgerow/v1/{REGION}/s1/+/{what} out 1"
        for what in ("status", "health", "result/#", "event/#", "reply/#")
    ]
    down = [f"topic hedgerow/v1/{REGION}/s1/+/{what} in 1" for what in ("ack", "command/ping")]
    bridge = [
        "connection region",
        f"address 127.0.0.1:{mosquitto.port}",
        "bridge_protocol_version mqttv50",
        "restart_timeout 1",
    ]
    collector.configure(ping={"every_s": 0.5, "timeout_s": 1}, region={"silent_after_s": 60})
    collector.start()
    with Mosquitto(config=[*bridge, *up, *down]) as site:
        async with gateway(url=site.url) as node:
            node.status()
            node.send(100)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            await eventually(lambda: node_of(collector.store).get("answered_s") is not None)
            await eventually(lambda: node_of(collector.store)["status"] == "ok", lambda: node_of(collector.store))
    with Mosquitto(config=[*bridge, *up, down[0]]) as site:
        async with gateway(url=site.url) as node:
            node.send(100)
            await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
            await eventually(lambda: node_of(collector.store)["status"] == "one-way", lambda: node_of(collector.store))
    assert node_of(collector.store)["durable"] == 200


async def test_the_will_of_an_earlier_session_does_not_override_a_newer_birth(
    collector: CollectorProcess, gateway: Callable[..., Any]
) -> None:
    collector.start()
    async with gateway() as node:
        node.status("online", "run-2")
        node.status("offline", "run-1")
        node.health()
        await eventually(lambda: node_of(collector.store).get("status") == "ok", lambda: node_of(collector.store))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_on_a_signal_the_collector_stores_what_it_received_and_exits_with_0(
    collector: CollectorProcess, gateway: Callable[..., Any], number: signal.Signals
) -> None:
    collector.start()
    async with gateway() as node:
        node.send(500)
        collector.signal(number)
        assert await asyncio.to_thread(collector.wait) == 0
        assert '"region-stopped"' in collector.log
        stored = len(numbers(collector.store))
        collector.start()
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
    assert stored <= 500
    assert sorted(numbers(collector.store)) == list(range(1, 501))


async def test_a_broker_restart_loses_no_durable_result(
    collector: CollectorProcess, mosquitto: Mosquitto, gateway: Callable[..., Any]
) -> None:
    """The broker is killed and loses its queues, but the outboxes still have every result."""
    collector.start()
    async with gateway() as node:
        for _ in range(3):
            node.send(200)
            await asyncio.to_thread(mosquitto.kill)
            await asyncio.to_thread(mosquitto.start)
        node.send(10)
        await eventually(lambda: node.entries == 0, lambda: node.outbox.status)
    assert sorted(numbers(collector.store)) == list(range(1, 611))


def lone_collector(folder: Path) -> Collector:
    """Return a collector that does not run, without the service that gives it its term."""
    config = RegionConfig.model_validate({"store": {"url": str(folder / "region.db")}})
    return Collector(config, CollectorCounts(), Term(1, "0" * 32), lambda: True, former_session(config))


async def test_a_collector_that_is_starting_or_stopping_is_alive(tmp_path: Path) -> None:
    """Its probes answer before its writer runs and after it has ended; an orchestrator would kill it for that."""
    collector = lone_collector(tmp_path)
    assert collector.liveness_problems() == []
    collector._writer.start()
    collector._writer.close()
    collector._writer.join()
    collector._closing = False  # whatever the end of the writer has led to
    assert collector.liveness_problems() == ["the store's writer thread has died"]
    collector._closing = True
    assert collector.liveness_problems() == []


async def test_messages_that_block_the_service_are_charged_also_where_others_have_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own processor time is little then, while what a site may use comes back by the clock."""
    collector = lone_collector(tmp_path)
    topic, clock = Address(REGION, "s1", "n1").topic(Channel.RESULT, "p"), iter((0.0, 5.0))
    monkeypatch.setattr(
        collector_module, "time", SimpleNamespace(monotonic=lambda: next(clock), thread_time=lambda: 0.0)
    )
    assert collector._rates.admits(topic, 0.0)

    collector._decode(Message(topic, result("p", 1) + b" " * 2000, 1, 1, 0.0, _JSON_PROPERTIES), 1e9, 0.0)

    assert not collector._rates.admits(topic, 0.0)


def test_the_collector_waits_for_an_unreachable_broker(collector: CollectorProcess, mosquitto: Mosquitto) -> None:
    """Its readiness probe reports it."""
    mosquitto.stop()
    collector.start(wait=False)
    deadline = time.monotonic() + PATIENCE_S
    while "not connected to the broker" not in collector.probe("readyz")[1]:
        assert time.monotonic() < deadline, collector.log
        time.sleep(0.05)
    assert collector.probe("healthz")[0] == 200
    mosquitto.start()
    while collector.probe("readyz")[0] != 200:
        assert time.monotonic() < deadline, collector.log
        time.sleep(0.05)


async def test_what_waits_in_the_session_of_an_earlier_version_is_stored_once(
    collector: CollectorProcess, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Before client ids had a token, the collector's could be guessed: results that wait under it are taken once more."""
    collector.start()
    collector.kill()
    token = tmp_path / "client-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    token.unlink()
    with closing(open_database(collector.store, write=False, alongside=True)) as database:
        for table in ("lease", "lease_term", "standby"):
            database.run(f"DROP TABLE {table}")
        database.run("DELETE FROM migration WHERE number = 9")
    former = ClientOptions(url=mosquitto.url, client_id=f"hedgerow/{REGION}/collector")
    async with Client(former, lambda _: None) as client:
        await client.subscribe(filters(REGION))
        await client.wait_connected(PATIENCE_S)
    async with sender(mosquitto.url) as client:

        async def send(first: int, last: int) -> None:
            for n in range(first, last):
                topic = Address(REGION, "s1", "n1").topic(Channel.RESULT, "p")
                await client.publish_and_wait(topic, result("p", n), properties=_JSON_PROPERTIES)

        await send(0, 50)
        starting = asyncio.create_task(asyncio.to_thread(collector.start))
        count = 50
        while not starting.done() or '"session-moved"' not in collector.log:
            await send(count, count + 1)
            count += 1
            await asyncio.sleep(0.01)
        await starting
        await send(count, count + 10)
        await eventually(lambda: len(numbers(collector.store)) >= count + 10)
    assert sorted(numbers(collector.store)) == list(range(count + 10))
    collector.kill()
    collector.start()
    assert collector.log.count('"session-moved"') == 1
    assert token.read_text().strip() not in collector.log
