"""Two services of one region: on stores of their own both say so; a restart and a service that takes over are no other one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.region.clones.disks import copy_disk
from tests.region.conftest import REGION, eventually

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.region.collector.metrics import RegionMetrics
from hedgerow.region.collector.other_services import REMEDY, OtherServices
from hedgerow.region.collector.service import RegionService
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.liveness import Liveness, NodeStatus
from hedgerow.region.store.queries import status
from hedgerow.region.store.records import OtherService
from hedgerow.region.store.twins.contest import ALONE_REPORTS, PERIOD_S
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import Health, Instance, NameNotice, RunningService


class FakeLink:
    """The broker: retains, and delivers at once to all that are up."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.services: list[Service] = []

    def deliver(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = payload
        for one in self.services:
            one.others.take(message(topic, payload))


class Service:
    """A service, its clock and what it reports, on a broker without network."""

    def __init__(self, link: FakeLink, store: str) -> None:
        self.link, self.at = link, 0.0
        self.reports: list[Sequence[OtherService]] = []
        self.others = OtherServices(REGION, self, self.reports.append, lambda: self.at)  # type: ignore[arg-type]
        self.others.store = store
        link.services.append(self)
        for topic, payload in link.retained.items():
            self.others.take(message(topic, payload))

    connected, local_address = True, "192.0.2.7"

    def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        self.link.deliver(topic, payload)

    def pass_time(self, seconds: float) -> None:
        self.at += seconds

    def end(self) -> None:
        self.link.services.remove(self)


def message(topic: str, payload: bytes) -> Message:
    return Message(topic, payload, 0, 0, 0.0)


def periods(count: int, *services: Service) -> None:
    for _ in range(count):
        for one in services:
            for other in services:
                other.pass_time(PERIOD_S / len(services))
            one.others.publish()


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.mark.parametrize("stores", [("a", "b"), ("a", "a")], ids=["stores of their own", "a store and its copy"])
def test_two_services_that_collect_at_once_say_so_until_one_is_gone(link: FakeLink, stores: tuple[str, str]) -> None:
    one, two = (Service(link, store) for store in stores)
    periods(3, one, two)
    for service in (one, two):
        (problem,) = service.others.problems()
        assert "address 192.0.2.7" in problem
        assert ("a copy of this store" in problem) == (stores == ("a", "a"))
        assert REMEDY in problem
        ((other,),) = (service.reports[-1],)
        assert [value for *_, value in service.others.gauges()] == [1]
        assert other.store in stores
    two.end()
    periods(ALONE_REPORTS + 1, one)
    assert one.others.problems() == []
    assert one.reports[-1] == []


def test_restarts_crash_loops_and_a_standby_that_takes_over_are_no_other_service(link: FakeLink) -> None:
    """What the broker retains of the last one is read by the next."""
    for turn in range(10):
        service = Service(link, "a")
        periods(1 + turn % 3, service)
        assert service.others.problems() == []
        service.end()


def test_what_is_no_notice_of_this_region_is_ignored(link: FakeLink) -> None:
    service = Service(link, "a")
    topic = f"hedgerow/v1/{REGION}/~/~/{Channel.SERVICE}/b"
    other = RunningService(region="elsewhere", instance="x", store="b", uptime_s=1)
    for payload in (b"", b"\xff", b"{}", b'{"schema": "hedgerow.service/1", "uptime_s": -1}', other.encode()):
        assert service.others.take(message(topic, payload))
    for n in range(100):
        link.deliver(topic, RunningService(region=REGION, instance=f"i{n}", store="b", uptime_s=1).encode())
    periods(3, service)
    assert service.others.problems() == []
    assert not service.others.take(message(f"hedgerow/v1/{REGION}/s1/n1/status", b"{}"))


def configured(url: str, folder: Path) -> dict[str, Any]:
    return {
        "region": {"name": REGION, "state_dir": str(folder)},
        "broker": {"url": url},
        "store": {"url": str(folder / "region.db")},
        "ping": {"every_s": None},
        "metrics": {"enabled": False},
    }


@pytest.fixture(params=["stores of their own", "a store and its copy"])
async def collectors(
    request: pytest.FixtureRequest, mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[RegionService]]:
    """Two services whose time passes quickly. With a copied store they have one client id, and end each other's link."""
    monkeypatch.setattr("hedgerow.region.collector.other_services.PERIOD_S", 0.2)
    monkeypatch.setattr("hedgerow.region.collector.other_services._TICK_S", 0.02)
    made = []
    async with AsyncExitStack() as running:
        for name in ("one", "two"):
            if made and request.param == "a store and its copy":
                await eventually(lambda: made[0].counts.connected)
                copy_disk(tmp_path / "one", tmp_path / "two")
            (tmp_path / name).mkdir(exist_ok=True)
            config = RegionConfig.model_validate(configured(mosquitto.url, tmp_path / name))
            made.append(RegionService(config))
            task = asyncio.create_task(made[-1].run())
            running.push_async_callback(asyncio.wait, [task])
            running.callback(made[-1].stop)
        yield made


async def test_both_services_show_the_other_one_in_their_status_and_probe(
    collectors: list[RegionService], request: pytest.FixtureRequest
) -> None:
    is_copy = "copy" in request.node.name
    words = "with a copy of this store" if is_copy else "with a store of its own"
    for collector in collectors:
        await eventually(lambda one=collector: words in str(one._readiness_problems()))

        def current(one: RegionService = collector) -> dict[str, Any]:
            database = open_database(one.config.store.url, write=False)
            try:
                return status(database, time.time())
            finally:
                database.close()

        await eventually(lambda: current()["other_services"], current)
        (other,) = current()["other_services"]
        assert (other["address"], other["is_copy"]) == ("127.0.0.1", is_copy)
        assert current()["needs_help"]


async def test_what_the_broker_keeps_of_a_service_goes_with_it(mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = RegionConfig.model_validate(configured(mosquitto.url, tmp_path))
    seen: list[Message] = []
    async with Client(ClientOptions(url=mosquitto.url, client_id="w"), seen.extend) as watcher:
        await watcher.subscribe({f"hedgerow/v1/{REGION}/~/~/service/+": 1})
        collector = RegionService(config)
        running = asyncio.create_task(collector.run())
        await eventually(lambda: seen and seen[-1].payload)
        notice = RunningService.model_validate_json(bytes(seen[-1].payload))
        assert notice.store == seen[-1].topic.rpartition("/")[2]
        collector.stop()
        await running
        await eventually(lambda: not seen[-1].payload)


async def test_two_machines_of_one_name_are_logged_counted_and_kept_as_an_event(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """From the messages of a broker to what an operator sees; soon, since the reports do not wait for their period."""
    collector = RegionService(RegionConfig.model_validate(configured(mosquitto.url, tmp_path)))
    running = asyncio.create_task(collector.run())
    node = Address(REGION, "hall", "gateway")
    down: list[Message] = []
    async with Client(ClientOptions(url=mosquitto.url, client_id="hall"), down.extend) as bridge:
        await bridge.subscribe({node.topic(Channel.COMMAND, "+"): 1})
        await eventually(lambda: collector.counts.connected)

        def is_told() -> bool:
            for name in ("one", "two"):
                instance = Instance(host=f"host-{name}", address="192.0.2.9")
                report = Health(
                    node=str(node), session=name, at=time.time(), uptime_s=time.monotonic(), state="ok", instance=instance
                )  # fmt: skip
                bridge.publish(node.topic(Channel.HEALTH), report.encode(), qos=1)
            return collector.counts.statuses.get(node, NodeStatus(Liveness.OK, 0)).twins == ("name",)

        await eventually(lambda: is_told() and down)
    notice = NameNotice.model_validate_json(dict(down[0].properties.user_properties)["name-in-use"])
    assert {(run.session, run.instance.host) for run in notice.runs} == {("one", "host-one"), ("two", "host-two")}
    assert down[0].topic == node.topic(Channel.COMMAND, "ping")
    metrics = {
        tuple(sample.labels.values()): sample.value
        for family in RegionMetrics(collector.counts).collect()
        for sample in family.samples
        if sample.name == "hedgerow_region_node_twins"
    }
    assert metrics == {("hall", "gateway", "name"): 1}
    database = open_database(collector.config.store.url, write=False)
    ((kind, payload),) = database.rows("SELECT kind, payload FROM event")
    database.close()
    assert kind == "name-in-use"
    assert b"host-one, address 192.0.2.9" in bytes(payload)
    assert b"hedgerow node new-identity" in bytes(payload)
    collector.stop()
    await running
