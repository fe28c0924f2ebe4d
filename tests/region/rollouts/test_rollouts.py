"""Rollouts through a real collector and broker to simulated nodes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.region.conftest import REGION, CollectorProcess, eventually
from tests.region.responders import Responders, ref

from hedgerow.cli.frames.command import send_command as ask_nodes
from hedgerow.config import BrokerSection
from hedgerow.region.rollouts.progress import audit, progress
from hedgerow.region.rollouts.requests import send_request
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.testing import Mosquitto
from hedgerow.topics import EVERY_NODE, Address


def addresses(count: int, sites: int = 2) -> list[Address]:
    return [Address(REGION, f"s{number % sites + 1}", f"n{number:03}") for number in range(count)]


def plan(version: str, **more: Any) -> dict[str, Any]:
    gate = {"min_frames": 20, "slow_reports": 2, **more.pop("gate", {})}
    return {
        "rollout": f"faces-{version}",
        "models": {"faces": {"version": version, "digest": ref(version).digest}},
        "waves": ["20%"],
        "soak_s": 0.5,
        "gate": gate,
        "why": "a test",
    } | more


class Region:
    """An operator's requests and queries."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, verb: str, *, who: str = "eve@test", why: str = "a test", **args: Any) -> Any:
        def send() -> Any:
            database = open_database(self.url, write=False, alongside=True)
            try:
                return send_request(database, verb, args, who=who, why=why)
            finally:
                database.close()

        return await asyncio.to_thread(send)

    async def start(self, given: dict[str, Any], *, dry_run: bool = False) -> Any:
        return await self.ask("rollout-start", rollout=given["rollout"], plan=given, dry_run=dry_run)

    def query(self, read: Callable[[Database], Any]) -> Any:
        database = open_database(self.url, write=False)
        try:
            return read(database)
        finally:
            database.close()

    def progress(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.query(lambda database: progress(database, name, every_node=True))
        return found

    def phase(self, name: str) -> str:
        return str(self.progress(name)["phase"])

    def audit(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.query(lambda database: audit(database, newest=100_000))
        return lines

    def desired(self) -> dict[str, int]:
        """Return the desired generation of each node."""
        sql = "SELECT n.region, n.site, n.name, d.generation FROM desired d JOIN node n ON n.id = d.node"
        return {str(Address(*row[:3])): row[3] for row in self.query(lambda database: database.rows(sql))}

    async def ends(self, name: str) -> dict[str, Any]:
        await eventually(lambda: self.progress(name)["ended"], lambda: json.dumps(self.progress(name), indent=1))
        return self.progress(name)

    def no_step_is_lost_or_repeated(self) -> None:
        """Check that each node's generations are consecutive, each in one audit entry, and the last is that of its document."""
        given: dict[str, list[int]] = {}
        for line in self.audit():
            for node, generation in line["detail"].get("given", {}).items():
                given.setdefault(node, []).append(generation)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in given.values()), given
        assert self.desired() == {node: numbers[-1] for node, numbers in given.items()}
        for name in {line["rollout"] for line in self.audit()} - {None}:
            waves = [
                line["detail"]["wave"]
                for line in self.audit()
                if line["rollout"] == name and line["action"] == "wave-started"
            ]
            assert waves == list(range(len(waves))), waves


@pytest.fixture
def region(collector: CollectorProcess) -> Region:
    collector.start()
    return Region(collector.store)


async def known(region: Region, count: int) -> None:
    def present() -> int:
        return int(
            region.query(lambda database: database.rows("SELECT count(*) FROM said WHERE channel = 'reported'"))[0][0]
        )

    await eventually(lambda: present() == count, present)


async def test_a_good_version_reaches_every_node_in_waves(region: Region, mosquitto: Mosquitto) -> None:
    async with Responders(mosquitto.url, addresses(20)) as nodes:
        await known(region, 20)
        shown = await region.start(plan("2.0.0"), dry_run=True)
        started = await region.start(plan("2.0.0"))
        ended = await region.ends("faces-2.0.0")

    assert shown["waves"] == started["waves"]
    assert [len(wave["nodes"]) for wave in started["waves"]] == [4, 16]
    assert ended["phase"] == "succeeded"
    assert nodes.versions() == ["2.0.0"] * 20
    region.no_step_is_lost_or_repeated()
    assert {line["who"] for line in region.audit()} == {"eve@test", "service"}


BAD = {
    "golden-failed": "golden-failed",  # wrong numbers
    "not-finite": "not-finite",  # NaN on live frames
    "slow": "latency",  # three times slower
    "crashes": "crashed",
    "restarts": "restarts",  # crashes later, repeatedly
    "memory-growth": "memory-growth",  # leaks during canary analysis
    "leaks": "memory-growth",  # leaks later
    "drifts": "drift",  # its outputs drift later
    "errors": "error-rate",
}
"""Effect of a version on a node → code with which its rollout fails."""


async def bad_versions_stop_in_the_canary_wave(region: Region, nodes: Responders, count: int, **gate: Any) -> None:
    """Roll out every kind of bad version to 5 % of the nodes; each is rolled back automatically."""
    await region.start(plan("1.0.0", waves=[]))
    assert (await region.ends("faces-1.0.0"))["phase"] == "succeeded"
    kinds = {f"{number}.0.0": kind for number, kind in enumerate(BAD, 2)}
    for node in nodes.nodes.values():
        node.behaves = lambda model: kinds.get(model.version, "good")
    for number, (kind, why) in enumerate(BAD.items(), 2):
        name = f"faces-{number}.0.0"
        await region.start(plan(f"{number}.0.0", waves=["5%"], soak_s=60, gate={"max_drift": 0.5, **gate}))
        ended = await region.ends(name)

        assert (ended["phase"], why in ended["because"]) == ("failed", True), (kind, ended["because"])
        assert [(wave["nodes"], wave["begun"]) for wave in ended["waves"]] == [
            (count // 20, True),
            (count - count // 20, False),
        ]
        canaries = [task for task in ended["tasks"] if task["wave"] == 0]
        assert {task["back"] for task in canaries} == {"proved"}, kind
        assert nodes.versions() == ["1.0.0"] * count, kind
    region.no_step_is_lost_or_repeated()
    assert {line["who"] for line in region.audit() if line["action"] == "nodes-put-back"} == {"service"}


@pytest.mark.long
async def test_every_kind_of_bad_version_is_stopped_in_the_canary_wave(region: Region, mosquitto: Mosquitto) -> None:
    async with Responders(mosquitto.url, addresses(40)) as nodes:
        await known(region, 40)
        await bad_versions_stop_in_the_canary_wave(region, nodes, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_with_a_thousand_nodes_every_kind_of_bad_version_is_stopped_in_the_canary_wave(
    region: Region, mosquitto: Mosquitto
) -> None:
    async with Responders(mosquitto.url, addresses(1000, sites=50), beat_s=5.0) as nodes:
        await known(region, 1000)
        everybody = Address(REGION, EVERY_NODE, EVERY_NODE)
        replies = await ask_nodes(BrokerSection(url=mosquitto.url), everybody, "ping", {}, 60.0)
        assert {reply.node for reply in replies if reply.ok} == {str(address) for address in nodes.nodes}
        await bad_versions_stop_in_the_canary_wave(region, nodes, 1000)


async def roll_out_while_killing(
    region: Region, collector: CollectorProcess, nodes: Responders, kills: int, seed: int
) -> None:
    """Run good and bad rollouts while the region's process is killed at random and restarted."""
    chance = random.Random(seed)
    for node in nodes.nodes.values():
        node.behaves = lambda model: "errors" if int(model.version.split(".")[0]) % 3 == 0 else "good"
    killed, number = 0, 0
    while killed < kills:
        number += 1
        name = f"faces-{number}.0.0"
        starting = asyncio.create_task(region.start(plan(f"{number}.0.0", waves=["10%", "50%"], soak_s=0.3)))
        while killed < kills and not (starting.done() and region.progress(name)["ended"]):
            await asyncio.sleep(chance.uniform(0.0, 1.2))
            collector.kill()
            killed += 1
            await asyncio.to_thread(collector.start)
        await starting
        phase = (await region.ends(name))["phase"]
        assert phase == ("failed" if number % 3 == 0 else "succeeded"), region.progress(name)
        served = number - 1 if number % 3 == 0 else number
        assert nodes.versions() == [f"{served}.0.0"] * len(nodes.nodes)
    region.no_step_is_lost_or_repeated()
    desired = region.desired()
    for node in nodes.nodes.values():
        assert node.seen == sorted(node.seen)
        assert node.seen[-1] == desired[str(node.address)]


@pytest.mark.long
async def test_a_killed_region_resumes_exactly_where_it_was(
    region: Region, collector: CollectorProcess, mosquitto: Mosquitto
) -> None:
    async with Responders(mosquitto.url, addresses(40)) as nodes:
        await known(region, 40)
        await roll_out_while_killing(region, collector, nodes, kills=5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_region_killed_a_hundred_times_loses_and_repeats_no_step(
    region: Region, collector: CollectorProcess, mosquitto: Mosquitto
) -> None:
    async with Responders(mosquitto.url, addresses(200, sites=10), beat_s=1.0) as nodes:
        await known(region, 200)
        await roll_out_while_killing(region, collector, nodes, kills=100, seed=2)
