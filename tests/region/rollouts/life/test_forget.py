"""Nodes that are forgotten, and admitted again: on a real store, with simulated nodes and a simulated clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.region.responders import ref
from tests.region.world import World

from hedgerow.bus.outbox.records import Gap, Number, key_of
from hedgerow.region.enrolment.store import APPROVED, REJECTED, EnrolmentStore, StoredMachine
from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.rollouts.progress import AuditFilter, audit
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.region.store.records import GapRecord, ResultRecord
from hedgerow.topics import Address, Channel

A = Address("test", "s0", "n000")
B = Address("test", "s1", "n001")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(str(tmp_path / "region.db"), 4, began=time.time()) as created:
        yield created


def result(address: Address, sequence: int, at: float, epoch: str = "e1", text: bytes = b"{}") -> ResultRecord:
    number = Number(epoch, 0, sequence)
    return ResultRecord(
        address, len(text), at, True, "doors", number, f"i{sequence}", at, "application/json", None, text
    )


def described(world: World) -> dict[str, dict[str, Any]]:
    return {node["node"]: node for node in status(world.database, world.now)["nodes"]}


def refusals(world: World) -> dict[tuple[str, str], tuple[int, str]]:
    rows = world.database.rows("SELECT site, reason, count, detail FROM refusal")
    return {(site, reason): (count, detail) for site, reason, count, detail in rows}


def test_a_forgotten_node_is_in_no_count_inventory_or_document(store_url: str) -> None:
    with World(store_url, 4, began=time.time()) as world:
        world.store(result(A, 1, world.now), result(A, 4, world.now))
        world.do("node-label", node="n000", labels={"ring": "early"})
        world.do("node-pin", node="n000", model="faces", version={"version": "1.0.0", "digest": ref("1.0.0").digest})
        assert described(world)[str(A)]["awaited"] == 2
        dry = world.do("node-forget", node="s0/n000", dry_run=True)
        assert str(A) in described(world)
        done = world.do("node-forget", node="s0/n000")
        assert dry["removes"] == done["removes"]
        assert (done["removes"]["missing"], done["removes"]["kept_results"]) == (2, 2)
        assert done["removes"]["labels"] == {"ring": "early"}
        assert done["removes"]["pins"] == ["faces"]
        assert str(A) not in described(world)
        assert str(A) not in [node["node"] for node in inventory(world.database, world.now)]
        assert {A.topic(channel) for channel in (Channel.STATUS, Channel.REPORTED, Channel.DESIRED)} <= set(
            world.cleared
        )
        assert len(list(results(world.database, ResultQuery(node="n000")))) == 2  # history stays
        (entry,) = audit(world.database, newest=10, which=AuditFilter(action="node-forgotten"))
        assert (entry["who"] != "", entry["why"], entry["detail"]["node"]) == (True, "a test", str(A))
        assert world.do("node-forget", node="s0/n000")["already"]  # the command may be repeated
        assert world.refused("node-label", node="n000", labels={"a": "b"}) == "forgotten-node"
        assert world.refused("node-forget", node="nowhere") == "unknown-node"


def test_messages_of_a_forgotten_node_are_refused_until_it_is_admitted_again(store_url: str) -> None:
    with World(store_url, 2, began=time.time()) as world:
        world.do("node-forget", node="n000")
        outcome = world.store(result(A, 1, world.now), result(B, 1, world.now))
        assert [key[0] for key in outcome.acks] == [B]  # so it stays on the disk of A
        gap = GapRecord(A, 2, world.now, True, "e1", Gap(key_of(0, 2), key_of(0, 2), {"evicted": 1}))
        assert not world.store(gap).acks
        world.turn()  # both report
        count, detail = refusals(world)["s0", "forgotten"]
        assert count > 3
        assert "a test" in detail
        assert "hedgerow node admit s0/n000" in detail
        assert status(world.database, world.now)["refused"][0]["reason"] == "forgotten"
        assert not list(results(world.database, ResultQuery(node="n000")))
        assert world.do("node-admit", node="n000")["admitted"]
        outcome = world.store(result(A, 1, world.now), gap)
        assert outcome.acks[A, "e1"].ack.ranges()
        world.turn()
        assert described(world)[str(A)]["status"] == "ok"


def test_what_a_bridge_brings_back_of_a_forgotten_node_is_cleared_again(world: World) -> None:
    world.do("node-forget", node="n000")
    world.cleared.clear()
    world.turns(2)  # it is still there, and reports
    assert A.topic(Channel.STATUS) in world.cleared


def test_a_rollout_goes_on_without_a_node_that_is_forgotten(world: World) -> None:
    world.nodes[A].does["2.0.0"] = "hangs"
    name = world.start("2.0.0", waves=[])
    world.turns(2)
    assert world.rollout(name).tasks[A].state == "in-progress"
    world.do("node-forget", node="n000")
    world.turns(12)
    rollout = world.rollout(name)
    assert (rollout.phase, rollout.tasks[A].state, rollout.tasks[A].code) == ("succeeded", "removed", "forgotten")
    del world.nodes[A].does["2.0.0"]
    world.do("node-admit", node="n000")
    world.turns(8)
    assert world.rollout(name).tasks[A].state == "succeeded"
    assert world.nodes[A].version == "2.0.0"


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_service_that_is_killed_anywhere_has_forgotten_a_node_or_not(tmp_path: Path, step: int) -> None:
    killed_at, states = 0, set()
    while True:
        with World(str(tmp_path / f"{killed_at}.db"), 2, began=time.time()) as world:
            world.do("node-label", node="n000", labels={"ring": "early"})
            world.ask("node-forget", node="n000")
            world.turn(killed_at=killed_at)
            known, audited = (
                str(A) in described(world),
                len(audit(world.database, newest=9, which=AuditFilter(node=str(A)))),
            )
            assert (known, audited) in ((True, 1), (False, 2))
            states.add(known)
            kills = world.kills
            world.turns(2)
            assert str(A) not in described(world)
            assert world.answers()[-1][0]
            assert A.topic(Channel.DESIRED) in world.cleared
        if not kills:
            break
        killed_at += step
    assert states == {True, False}


def test_what_is_known_of_the_machine_of_a_forgotten_node_goes_and_its_place_is_free(world: World) -> None:
    store = EnrolmentStore(world.database)
    machine = StoredMachine("f" * 64, "s0", "", "", {}, APPROVED, world.now, world.now, world.now, "n000")
    with world.database.transaction():
        store.add_machine(machine)
        world.database.run("INSERT INTO twin SELECT id, 'key', NULL, 0, 0, '' FROM node WHERE name = 'n000'")
    world.do("node-forget", node="n000")

    assert store.taken("s0") == set()
    assert store.forgotten("s0") == {"n000"}
    assert [one.state for one in store.machines()] == [REJECTED]
    assert world.database.rows("SELECT count(*) FROM twin") == [(0,)]
