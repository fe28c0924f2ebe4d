"""Two processes that use one name, key or state folder: found within two periods of their reports, and nothing else is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path as FilePath
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.region.store.records import HealthRecord, StatusRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.region.store.twins.contest import ALONE_REPORTS, PERIOD_S, Contest
from hedgerow.topics import Address
from hedgerow.wire.messages import Instance

FIRST_S = 1.0
LATENCY_S = 4.0
"""Longest latency of an honest path that holds nothing back."""


@dataclass
class Path:
    """Carries reports in order: some are lost, and while it stalls it holds all back."""

    random: Random
    loss: float = 0.0
    stalls: list[tuple[float, float]] = field(default_factory=list)
    last: float = 0.0

    def arrival(self, sent: float) -> float | None:
        if self.random.random() < self.loss:
            return None
        at = sent + self.random.random() * LATENCY_S
        for start, end in self.stalls:
            if start <= at < end:
                at = end
        self.last = max(self.last, at)
        return self.last


@dataclass(frozen=True)
class Process:
    who: str
    start: float
    end: float
    path: Path
    copied_at: float = 0.0
    """Its uptime when it started: that of the process of which it is a copy."""

    def sends(self) -> list[float]:
        count = max(0, ceil((self.end - self.start - FIRST_S) / PERIOD_S))
        return [self.start + FIRST_S + n * PERIOD_S for n in range(count)]


def changes(processes: list[Process], restarts: tuple[float, ...] = ()) -> list[tuple[float, str]]:
    """Return when a contest began or ended; the region restarts at the given times."""
    contest, found, left = Contest(), [], sorted(restarts)
    sends = sorted((sent, n) for n, process in enumerate(processes) for sent in process.sends())
    reports = []
    for sent, n in sends:
        if (at := processes[n].path.arrival(sent)) is not None:
            reports.append((at, sent, processes[n].who, sent - processes[n].start + processes[n].copied_at))
    for at, _, who, uptime_s in sorted(reports):
        while left and left[0] <= at:
            left.pop(0)
            contest = Contest(contest.rivals)
        if (change := contest.report(who, uptime_s, at)) is not None:
            found.append((at, change))
    return found


@st.composite
def honest(draw: st.DrawFn) -> tuple[list[Process], tuple[float, ...]]:
    """One node: it restarts, crashes in a loop and moves between two sites; nothing of it is ever twice."""
    random = Random(draw(st.integers(0, 2**32)))
    stalls: list[list[tuple[float, float]]] = []
    for _ in range(2):
        mine, at = [], 0.0
        for _ in range(draw(st.integers(0, 4))):
            at += draw(st.floats(60, 400))
            mine.append((at, at + draw(st.floats(1, 900))))
            at = mine[-1][1]
        stalls.append(mine)
    paths = [Path(random, draw(st.sampled_from((0.0, 0.1, 0.5))), mine) for mine in stalls]
    processes, at = [], 0.0
    for number in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from((0.0, 0.0, 1.0, 20.0, 400.0)))
        length = draw(st.sampled_from((0.5, 2.0, 12.0, 60.0, 500.0)))
        processes.append(Process(f"r{number}", at, at + length, paths[draw(st.booleans())]))
        at += length
    return processes, tuple(draw(st.lists(st.floats(0, 3000), max_size=3)))


@given(honest())
def test_restarts_moves_and_messages_that_waited_are_no_twins(history: tuple[list[Process], tuple[float, ...]]) -> None:
    assert changes(*history) == []


@given(st.integers(0, 2**32), st.floats(0, 3600), st.floats(65, 500), st.booleans())
def test_two_at_once_are_found_within_two_periods_until_one_is_gone(
    seed: int, begin: float, length: float, one_path: bool
) -> None:
    random = Random(seed)
    paths = [Path(random), Path(random)]
    processes = [Process("first", 0, begin + length + 400, paths[0])]
    processes.append(Process("second", begin, begin + length, paths[0] if one_path else paths[1]))
    found = changes(processes)
    assert [change for _, change in found] == ["began", "ended"]
    (began, _), (ended, _) = found
    assert began - begin <= 2 * PERIOD_S + FIRST_S + LATENCY_S
    gone_s = ended - (begin + length)
    assert (ALONE_REPORTS - 3) * PERIOD_S <= gone_s <= (ALONE_REPORTS + 1) * PERIOD_S + 2 * LATENCY_S


@given(st.integers(0, 2**32), st.floats(60, 3600))
def test_a_twin_that_crashes_in_a_loop_is_found(seed: int, begin: float) -> None:
    paths = [Path(Random(seed)), Path(Random(seed + 1))]
    twins = [Process(f"t{n}", begin + 12 * n, begin + 12 * n + 2, paths[1]) for n in range(25)]
    found = changes([Process("first", 0, begin + 300, paths[0]), *twins])
    assert [change for _, change in found] == ["began"]


@given(st.integers(0, 2**32), st.floats(200, 3600), st.floats(80, 190))
def test_a_copy_of_the_running_process_is_found_though_its_id_is_the_same(seed: int, begin: float, age: float) -> None:
    """A snapshot of a virtual machine, started beside it."""
    path = Path(Random(seed))
    copy = Process("one", begin, begin + 60, path, copied_at=begin - age)
    found = changes([Process("one", 0, begin + 300, path), copy])
    assert [change for _, change in found] == ["began", "ended"]
    assert found[0][0] - begin <= 3 * PERIOD_S + LATENCY_S


@pytest.mark.parametrize("jump_s", [-86_400, -30, 30, 86_400])
def test_a_machine_that_sleeps_or_wakes_is_no_twin(jump_s: float) -> None:
    """A monotonic clock stands still while its machine sleeps; here that of the node (late) or that of the region (early)."""
    contest, uptime_s, at = Contest(), 1e5, 1e5
    for turn in range(60):
        assert contest.report("one", uptime_s, at) is None
        uptime_s, at = uptime_s + PERIOD_S, at + PERIOD_S
        if turn % 7 == 6:
            uptime_s, at = (uptime_s, at + jump_s) if jump_s > 0 else (uptime_s - jump_s, at)


# In the store

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
