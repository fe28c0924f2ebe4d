"""Rollouts through a real collector and a real broker, to nodes that speak and run nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from hedgerow.region.database import Database, open_database
from hedgerow.region.intents import ask
from hedgerow.region.progress import audit, progress
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address

from .conftest import REGION, CollectorProcess, eventually
from .responders import Responders, ref


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
    """What operators do, and see."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, verb: str, *, who: str = "eve@test", why: str = "a test", **args: Any) -> Any:
        def asked() -> Any:
            database = open_database(self.url, write=False, beside=True)
            try:
                return ask(database, verb, args, who=who, why=why)
            finally:
                database.close()

        return await asyncio.to_thread(asked)

    async def start(self, given: dict[str, Any], *, dry_run: bool = False) -> Any:
        return await self.ask("rollout-start", rollout=given["rollout"], plan=given, dry_run=dry_run)

    def reads(self, read: Callable[[Database], Any]) -> Any:
        database = open_database(self.url, write=False)
        try:
            return read(database)
        finally:
            database.close()

    def progress(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.reads(lambda database: progress(database, name, every_node=True))
        return found

    def phase(self, name: str) -> str:
        return str(self.progress(name)["phase"])

    def audit(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.reads(lambda database: audit(database, newest=100_000))
        return lines

    async def ends(self, name: str) -> dict[str, Any]:
        await eventually(lambda: self.progress(name)["ended"], lambda: json.dumps(self.progress(name), indent=1))
        return self.progress(name)

    def no_step_is_lost_or_repeated(self) -> None:
        """Each node's generations count up by one, each in exactly one line of the log, and the last is its document's."""
        given: dict[str, list[int]] = {}
        for line in self.audit():
            for node, generation in line["detail"].get("given", {}).items():
                given.setdefault(node, []).append(generation)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in given.values()), given
        rows = self.reads(
            lambda database: database.rows(
                "SELECT n.region, n.site, n.name, d.generation FROM desired d JOIN node n ON n.id = d.node"
            )
        )
        assert {str(Address(*row[:3])): row[3] for row in rows} == {
            node: numbers[-1] for node, numbers in given.items()
        }
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
    def heard() -> int:
        return int(
            region.reads(lambda database: database.rows("SELECT count(*) FROM said WHERE channel = 'reported'"))[0][0]
        )

    await eventually(lambda: heard() == count, heard)


async def test_a_good_version_reaches_everybody_in_waves(region: Region, mosquitto: Mosquitto) -> None:
    async with Responders(mosquitto.url, addresses(20)) as nodes:
        await known(region, 20)
        shown = await region.start(plan("2.0.0"), dry_run=True)
        said = await region.start(plan("2.0.0"))
        ended = await region.ends("faces-2.0.0")

    assert shown["waves"] == said["waves"]
    assert [len(wave["nodes"]) for wave in said["waves"]] == [4, 16]
    assert ended["phase"] == "succeeded"
    assert nodes.versions() == ["2.0.0"] * 20
    region.no_step_is_lost_or_repeated()
    assert {line["who"] for line in region.audit()} == {"eve@test", "service"}


async def test_a_bad_version_is_stopped_in_its_first_wave_and_comes_back(region: Region, mosquitto: Mosquitto) -> None:
    async with Responders(mosquitto.url, addresses(10)) as nodes:
        await known(region, 10)
        await region.start(plan("1.0.0", waves=[]))
        assert (await region.ends("faces-1.0.0"))["phase"] == "succeeded"
        for node in nodes.nodes.values():
            node.behaves = lambda model: "errors" if model.version == "2.0.0" else "good"
        await region.start(plan("2.0.0"))
        ended = await region.ends("faces-2.0.0")

    assert ended["phase"] == "failed"
    assert "error-rate" in ended["because"]
    assert [wave["begun"] for wave in ended["waves"]] == [True, False]
    assert nodes.versions() == ["1.0.0"] * 10
    region.no_step_is_lost_or_repeated()
