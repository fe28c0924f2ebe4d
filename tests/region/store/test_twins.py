"""Two processes that use one name, key or state folder, in the store: remembered, shown, and ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.records import HealthRecord, StatusRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.twins.contest import ALONE_REPORTS, PERIOD_S
from hedgerow.topics import Address
from hedgerow.wire.messages import Instance

A, B = Address("test", "hall", "a"), Address("test", "yard", "b")
CLONE = {"machine": "m1", "key": "k1", "state": "t1"}


class Region:
    """A store whose clocks the test turns."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.at = 5000.0
        self.epoch = time.time() - self.at
        self.starts: dict[tuple[Address, str], float] = {}
        self.told: list[tuple[str, str, bool]] = []
        self.open()

    def open(self) -> None:
        config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": self.url}})
        self.store = RegionStore(open_database(self.url, write=True), config, lambda: self.at)

    def restart(self) -> None:
        self.store.close()
        self.open()

    def health(self, node: Address, session: str, **instance: Any) -> None:
        start = self.starts.setdefault((node, session), self.at)
        now = self.epoch + self.at
        record = HealthRecord(
            node, 2, now, True, now, session, 1000, "ok", "[]", b"{}", uptime_s=self.at - start + 1,
            instance=Instance(**({"host": f"host-{session}", "address": "192.0.2.1"} | instance)),
        )  # fmt: skip
        outcome = self.store.apply([record])
        self.told += [(str(address), change.kind, change.began) for address, change in outcome.twins]

    def periods(self, count: int, *reports: tuple[Address, str], **instance: Any) -> None:
        """Each of these reports in each period, one after the other."""
        for _ in range(count):
            for address, session in reports:
                self.at += PERIOD_S / len(reports)
                self.health(address, session, **instance)


@pytest.fixture
def region(store_url: str) -> Iterator[Region]:
    region = Region(store_url)
    yield region
    region.store.close()


def shown(region: Region, reading: Callable[[str], Database]) -> dict[str, Any]:
    database = reading(region.url)
    current = status(database, region.epoch + region.at)
    return {node["node"]: node for node in current["nodes"]}


def test_both_machines_of_one_name_are_shown_until_one_is_gone(
    region: Region, reading: Callable[[str], Database]
) -> None:
    region.periods(5, (A, "one"))
    assert region.told == []
    region.periods(2, (A, "one"), (A, "two"))
    assert region.told == [("test/hall/a", "name", True)]
    node = shown(region, reading)["test/hall/a"]
    assert (node["status"], node["needs_help"]) == ("degraded", True)
    assert "host host-one, address 192.0.2.1, last seen" in node["why"]
    assert "host host-two, address 192.0.2.1, last seen" in node["why"]
    assert "hedgerow node new-identity" in node["why"]
    (twin,) = node["twins"]
    assert {machine["host"] for machine in twin["machines"]} == {"host-one", "host-two"}
    (listed,) = inventory(reading(region.url), region.epoch + region.at)
    assert listed["status"] == "degraded"
    assert [run["session"] for run in listed["runs"]] == ["two", "one"]
    assert region.store.statuses(region.epoch + region.at)[A].twins == ("name",)

    region.restart()  # it is remembered, and not told again
    region.periods(3, (A, "one"), (A, "two"))
    assert len(region.told) == 1
    region.restart()
    region.periods(ALONE_REPORTS + 1, (A, "one"))
    assert region.told[1:] == [("test/hall/a", "name", False)]
    assert shown(region, reading)["test/hall/a"]["status"] == "ok"
    kinds = reading(region.url).rows("SELECT kind, payload FROM event ORDER BY ingest")
    assert [kind for kind, _ in kinds] == ["name-in-use", "name-free"]
    assert "host-two" in json.loads(bytes(kinds[0][1]))["detail"]["error"]


def test_twins_neither_inflate_counts_nor_look_like_crashes(region: Region, reading: Callable[[str], Database]) -> None:
    region.periods(6, (A, "one"), (A, "two"))
    now = region.epoch + region.at
    for session in ("one", "two") * 3:
        region.store.apply([StatusRecord(A, 2, now, True, True, False, session, b"{}")])
    assert reading(region.url).rows("SELECT crashes, bytes_in FROM node") == [(0, 2000)]


@pytest.mark.parametrize("kind", ["state", "key"])
def test_two_nodes_of_one_image_are_told_apart_by_name_only(
    region: Region, reading: Callable[[str], Database], kind: str
) -> None:
    """Two cards flashed from one image, then renamed. One machine with two nodes is no such thing."""
    hints = {"machine": "m1", kind: "same"}
    region.periods(3, (A, "one"), (B, "two"), **hints)
    assert sorted(region.told) == [("test/hall/a", kind, True), ("test/yard/b", kind, True)]
    nodes = shown(region, reading)
    (twin,) = nodes["test/hall/a"]["twins"]
    assert twin["other"] == "test/yard/b"
    assert "host-two" in twin["what"]
    assert nodes["test/hall/a"]["status"] == "ok"

    region.restart()
    region.periods(3, (A, "one"), (B, "two"), **hints)
    assert len(region.told) == 2
    region.periods(ALONE_REPORTS + 2, (A, "one"), **hints)
    assert sorted(region.told[2:]) == [("test/hall/a", kind, False), ("test/yard/b", kind, False)]


def test_a_machine_with_two_nodes_and_a_renamed_node_are_no_twins(region: Region) -> None:
    region.periods(5, (A, "one"), (B, "two"), machine="m1")
    region.periods(5, (A, "three"), **CLONE)
    region.periods(5, (B, "four"), **CLONE)  # the same disk under another name
    assert region.told == []


def test_a_clone_that_gets_an_identity_of_its_own_is_no_twin_any_more(region: Region) -> None:
    region.periods(3, (A, "one"), (B, "two"), state="same")
    region.at += PERIOD_S
    region.health(B, "three", state="its own")
    assert {(node, began) for node, _, began in region.told[2:]} == {("test/hall/a", False), ("test/yard/b", False)}


def test_installations_that_take_turns_are_told(region: Region) -> None:
    for turn in range(4):
        region.periods(4, (A, f"r{turn}"), state="ab"[turn % 2])
    assert region.told == [("test/hall/a", "turns", True)]


def test_a_container_that_moves_to_and_fro_with_its_state_is_no_twin(region: Region) -> None:
    for turn in range(6):
        region.periods(4, (A, f"r{turn}"), state="volume", machine="ab"[turn % 2])
    assert region.told == []


def test_a_state_folder_that_cannot_be_written_is_no_twin(region: Region) -> None:
    for turn in range(12):
        region.periods(2, (A, f"r{turn}"), state=f"new{turn}")
    assert region.told == []
    runs = region.store._database.rows("SELECT count(*) FROM instance")
    assert runs == [(8,)], "the last runs are kept, and no more"


def test_twins_that_are_both_gone_are_forgotten(region: Region) -> None:
    region.periods(3, (A, "one"), (A, "two"))
    region.store._database.run("UPDATE node SET heard_at = heard_at - 7200")
    region.restart()
    assert [(change.kind, change.began) for _, change in region.store.tidy().twins] == [("name", False)]
    assert region.store._database.rows("SELECT * FROM twin") == []


def test_nodes_of_an_earlier_version_are_told_apart_too(region: Region) -> None:
    region.periods(3, (A, "one"), (A, "two"), host="", address="")
    assert region.told == [("test/hall/a", "name", True)]


def test_operators_see_who_and_where_in_the_commands(tmp_path: FilePath) -> None:
    region = Region(str(tmp_path / "region.db"))
    region.periods(3, (A, "one"), (A, "two"))
    region.periods(3, (A, "one"), (A, "two"), (B, "three"), state="same")
    region.store.close()

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, [*args, "--store", region.url], terminal_width=400)
        return " ".join(done.output.split())

    shown = run("region", "status")
    assert "test/hall/a is degraded: another machine or process uses this name too: host host-" in shown
    assert "test/yard/b: test/hall/a has the same state folder: host host-" in shown
    assert "hedgerow node new-identity" in shown
    assert "degraded" in run("nodes")
    shown = run("node", "show", "hall/a")
    assert "another machine or process uses this name too" in shown
    assert "host-one, 192.0.2.1, since" in shown


def test_a_row_that_cannot_be_read_hides_no_other(tmp_path: FilePath) -> None:
    region = Region(str(tmp_path / "region.db"))
    region.periods(3, (A, "one"), (A, "two"), (B, "three"))
    region.store._database.run("UPDATE twin SET sessions = 'x'")
    region.restart()
    region.periods(3, (A, "one"), (A, "two"), (B, "three"))
    assert region.told[-1] == ("test/hall/a", "name", True)
    region.store.close()
