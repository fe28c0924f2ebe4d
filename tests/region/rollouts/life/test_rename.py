"""Nodes that get another name or site, or another machine: on a real store, with simulated nodes and a simulated clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.region.responders import ref
from tests.region.rollouts.life.test_forget import A, B, described, refusals, result
from tests.region.world import World

from hedgerow.region.enrolment.store import APPROVED, EnrolmentStore, StoredMachine
from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.rollouts.progress import AuditFilter, audit
from hedgerow.region.store.queries import ResultQuery, results
from hedgerow.region.store.records import StatusRecord
from hedgerow.topics import Address, Channel

NEW = Address("test", "s0", "gateway")
MOVED = Address("test", "s1", "n000")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(str(tmp_path / "region.db"), 4, began=time.time()) as created:
        yield created


def come_up(world: World, old: Address, new: Address) -> None:
    """Bring a machine up under its new address, as its operator does."""
    node = world.nodes.pop(old)
    node.address = new
    node.restart()
    world.nodes[new] = node
    world.turns(2)


def stored(world: World, node: Address) -> list[str]:
    return [str(one.id) for one in results(world.database, ResultQuery(site=node.site, node=node.node))]


@pytest.mark.parametrize(("verb", "new"), [({"name": "gateway"}, NEW), ({"site": "s1"}, MOVED)], ids=["rename", "move"])
def test_all_of_a_node_follows_it_to_its_new_address(store_url: str, verb: dict[str, str], new: Address) -> None:
    with World(store_url, 4, began=time.time()) as world:
        assert world.store(result(A, 1, world.now), result(A, 3, world.now)).acks
        world.do("node-label", node="n000", labels={"ring": "early"})
        world.do("node-pin", node="n000", model="faces", version={"version": "1.0.0", "digest": ref("1.0.0").digest})
        assert not world.do("node-rename", node="s0/n000", dry_run=True, **verb)["already"]
        assert world.do("node-rename", node="s0/n000", **verb)["node"] == str(new)
        (node,) = [one for one in inventory(world.database, world.now) if one["node"] == str(new)]
        assert (node["labels"]["ring"], list(node["pins"]), node["desired_models"]["faces"]["version"]) == (
            "early",
            ["faces"],
            "1.0.0",
        )
        assert (node["formerly"][0]["node"], node["formerly"][0]["seen"]) == (str(A), False)
        assert A.topic(Channel.DESIRED) in world.cleared
        assert f"it was {A}, and has not reported" in described(world)[str(new)]["why"]
        # It still runs under its former name, and what it sends is its own, also in the same batch.
        outcome = world.store(result(A, 2, world.now), result(new, 4, world.now), result(A, 2, world.now))
        assert {key[0] for key in outcome.acks} == {A, new}
        assert outcome.duplicates == 1
        come_up(world, A, new)
        (node,) = [one for one in inventory(world.database, world.now) if one["node"] == str(new)]
        assert (node["status"], node["formerly"][0]["seen"]) == ("ok", True)
        assert node["generation"] == node["desired_generation"] == node["published_generation"]
        assert world.nodes[new].version == "1.0.0"
        assert sorted(stored(world, new)) == ["i1", "i2", "i3", "i4"]
        assert (described(world)[str(new)]["awaited"], described(world)[str(new)]["why"]) == (0, "")
        assert str(A) not in described(world)
        assert (A in world.statuses(), new in world.statuses()) == (False, True)  # as metrics label them
        former = ((str(A), world.now + 1),)
        history = audit(world.database, newest=9, which=AuditFilter(node=str(new), former=former))
        assert [line["action"] for line in history][:3] == ["node-labelled", "node-pinned", "node-renamed"]
        assert world.do("node-rename", node="s0/n000", **verb)["already"]  # the command may be repeated


def test_what_still_arrives_under_a_former_name_is_the_nodes_also_after_restarts(world: World) -> None:
    world.store(result(A, 1, world.now))
    world.do("node-rename", node="n000", name="gateway")
    come_up(world, A, NEW)
    world.reopen()
    assert (A, "e1") not in dict(world.acks())  # the node hears acknowledgements under its new name
    assert world.store(result(A, 2, world.now)).stored == 1  # a bridge that was away has it
    assert stored(world, NEW) == ["i1", "i2"]
    before = described(world)[str(NEW)]["heard_s"]
    world.store(
        StatusRecord(A, 1, world.now, True, False, False, "run-1", b"{}")
    )  # a retained one, from the same bridge
    assert (described(world)[str(NEW)]["status"], described(world)[str(NEW)]["heard_s"]) == ("ok", before)


def test_acknowledgements_reach_a_renamed_node_that_has_not_been_restarted(world: World) -> None:
    world.store(result(A, 1, world.now))
    world.do("node-rename", node="n000", name="gateway")
    world.reopen()
    assert {(A, "e1"), (NEW, "e1")} <= dict(world.acks()).keys()


def test_another_machine_under_a_former_name_is_a_node_of_its_own(world: World) -> None:
    world.do("node-rename", node="n000", name="gateway")
    come_up(world, A, NEW)
    world.store(StatusRecord(A, 1, world.now, True, True, False, "other", b"{}"), result(A, 1, world.now, "e9"))
    assert {str(A), str(NEW)} <= described(world).keys()
    assert (stored(world, A), stored(world, NEW)) == (["i1"], [])
    world.reopen()
    world.store(result(A, 2, world.now, "e9"))
    assert stored(world, A) == ["i1", "i2"]


def test_a_former_address_stands_for_a_node_no_longer_than_brokers_keep_messages(world: World) -> None:
    world.do("node-rename", node="n000", site="s1")
    come_up(world, A, MOVED)
    world.store(result(A, 1, world.now))
    world.age_aliases(8 * 86_400)
    world.store(result(A, 2, world.now))  # its former site has no say about it any more
    assert (stored(world, MOVED), stored(world, A)) == (["i1"], ["i2"])


def test_a_result_that_waited_since_another_name_is_stored_and_one_that_names_another_node_is_not(world: World) -> None:
    world.do("node-rename", node="n000", name="gateway")
    waited, forged = (replace(result(NEW, n, world.now), named=str(named)) for n, named in ((1, A), (2, B)))
    world.store(waited, forged)
    assert stored(world, NEW) == ["i1"]
    assert refusals(world)["s0", "another-node"][0] == 1


def test_results_of_a_machine_that_was_put_back_to_its_former_name_are_stored(world: World) -> None:
    """What waits in its outbox names the node's present name; it is sent under the former one."""
    world.do("node-rename", node="n000", name="gateway")
    come_up(world, A, NEW)
    world.store(replace(result(A, 1, world.now), named=str(NEW)))

    assert stored(world, NEW) == ["i1"]
    assert refusals(world) == {}


def test_results_of_a_machine_under_a_former_name_that_counts_as_another_node_are_stored(world: World) -> None:
    """The image was put back while the region still thought that the present name was in use."""
    world.do("node-rename", node="n000", name="gateway")
    come_up(world, A, NEW)
    world.store(StatusRecord(A, 1, world.now, True, True, False, "put back", b"{}"))
    back = replace(result(A, 1, world.now, "e9"), named=str(NEW))
    forged = replace(result(A, 2, world.now, "e9"), named=str(B))
    world.store(back, forged)

    assert stored(world, A) == ["i1"]
    assert refusals(world)["s0", "another-node"][0] == 1


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"name": "n002"}, "name-in-use"),
        ({"name": "b/d"}, "bad-name"),
        ({"name": "broker"}, "bad-name"),
        ({"name": "\u202egateway"}, "bad-name"),
        ({"site": "s9"}, "unknown-site"),
        ({"site": "s1", "name": "gone"}, "forgotten-name"),
        ({"name": "old"}, "name-in-use"),
    ],
    ids=str,
)
def test_an_address_that_a_node_cannot_have_is_refused(world: World, args: dict[str, str], code: str) -> None:
    world.do("node-rename", node="n001", name="gone")
    world.do("node-forget", node="gone")
    world.do("node-rename", node="n002", name="old")
    world.do("node-rename", node="old", name="n002")  # and back, before it has taken effect
    if args == {"name": "old"}:
        world.do("node-rename", node="n002", name="old")
        world.do("node-rename", node="old", name="new")  # n002 may still run as `old`
    before = described(world).keys()
    assert world.refused("node-rename", node="n000", **args) == code
    assert described(world).keys() == before


def test_a_machine_approved_where_a_forgotten_node_was_before_is_a_node_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node was renamed, and then forgotten: its former address stands for it no longer, and it stays forgotten."""
    world.store(result(A, 1, world.now))
    world.do("node-rename", node="n000", name="gateway")
    world.do("node-forget", node="gateway")
    world.store(result(A, 2, world.now))
    assert refusals(world)["s0", "forgotten"][0] == 1
    monkeypatch.setattr("hedgerow.region.rollouts.handlers._enrolment", lambda _: {"node": f"{A.site}/{A.node}"})
    world.do("node-approve", machine="f" * 64)
    world.store(result(A, 2, world.now, "e9"))

    assert stored(world, A) == ["i2"]
    assert stored(world, NEW) == ["i1"]
    assert str(NEW) not in described(world)


def test_a_renamed_nodes_machine_has_its_place_under_the_new_name(world: World) -> None:
    """Its next certificate is for that, and the former place is free."""
    store = EnrolmentStore(world.database)
    machine = StoredMachine("f" * 64, "s0", "", "", {}, APPROVED, world.now, world.now, world.now, "n000")
    with world.database.transaction():
        store.add_machine(machine)
    world.do("node-rename", node="n000", site="s1", name="gateway")

    assert [(one.site, one.node, one.state) for one in store.machines()] == [("s1", "gateway", APPROVED)]
    assert (store.taken("s0"), store.taken("s1")) == (set(), {"gateway"})


def test_two_nodes_swap_their_names_by_way_of_a_third(world: World) -> None:
    c, third = Address("test", "s0", "n002"), Address("test", "s0", "third")
    world.store(result(A, 1, world.now, "ea"), result(c, 1, world.now, "ec"))
    assert world.refused("node-rename", node="n000", name="n002") == "name-in-use"
    world.do("node-rename", node="n000", name="third")
    assert world.refused("node-rename", node="n002", name="n000") == "name-in-use"  # it may still run there
    come_up(world, A, third)
    world.do("node-rename", node="n002", name="n000")
    come_up(world, c, A)
    world.do("node-rename", node="third", name="n002")
    come_up(world, third, c)
    world.store(result(A, 2, world.now, "ec"), result(c, 2, world.now, "ea"))
    numbers = {one.number.split("/")[0] for one in results(world.database, ResultQuery(node="n000")) if one.number}
    assert numbers == {"ec"}


def test_a_new_site_is_named_as_such(world: World) -> None:
    assert world.do("node-rename", node="n000", site="s9", new_site=True)["node"] == "test/s9/n000"
    assert world.refused("node-label", node="s0/n000", labels={"a": "b"}) == "renamed-node"


@pytest.mark.parametrize("moved", [True, False], ids=["comes up", "stays away"])
def test_a_rollout_goes_on_when_a_node_is_renamed_in_the_middle(world: World, moved: bool) -> None:
    name = world.start("2.0.0", waves=[1])
    world.turns(2)
    (first,) = [node for node, task in world.rollout(name).tasks.items() if task.wave == 0]
    later = next(node for node, task in world.rollout(name).tasks.items() if task.wave == 1)
    new = [node._replace(node=f"new-{node.node}") for node in (first, later)]
    for node, renamed in zip((first, later), new, strict=True):
        world.do("node-rename", node=str(node), name=renamed.node)
    if moved:
        for node, renamed in zip((first, later), new, strict=True):
            come_up(world, node, renamed)
    world.turns(14)
    rollout = world.rollout(name)
    assert rollout.phase == "succeeded", world.waits(name)
    if not moved:
        assert rollout.tasks[new[1]].state == "queued"
        for node, renamed in zip((first, later), new, strict=True):
            come_up(world, node, renamed)
        world.turns(6)
    assert world.versions() == {"2.0.0"}
    assert {task.state for task in world.rollout(name).tasks.values()} == {"succeeded"}


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.long)])
def test_a_service_that_is_killed_anywhere_has_renamed_a_node_or_not(tmp_path: Path, step: int) -> None:
    killed_at, states = 0, set()
    while True:
        with World(str(tmp_path / f"{killed_at}.db"), 2, began=time.time()) as world:
            world.do("node-label", node="n000", labels={"ring": "early"})
            world.ask("node-rename", node="n000", name="gateway")
            world.turn(killed_at=killed_at)
            kills, known = world.kills, described(world).keys()
            assert (str(A) in known) != (str(NEW) in known)
            states.add(str(NEW) in known)
            world.turns(2)
            assert all(accepted for accepted, _ in world.answers())
            assert world.do("node-rename", node="n000", name="gateway")["already"]
            come_up(world, A, NEW)
            (node,) = [one for one in inventory(world.database, world.now) if one["node"] == str(NEW)]
            assert node["generation"] == node["desired_generation"] == 2
            assert A.topic(Channel.DESIRED) in world.cleared
            assert NEW.topic(Channel.DESIRED) not in world.cleared
        if not kills:
            break
        killed_at += step
    assert states == {True, False}


def test_a_replaced_machine_gets_the_desired_state_and_what_is_missing_may_be_declared_lost(store_url: str) -> None:
    with World(store_url, 2, began=time.time()) as world:
        world.do("node-pin", node="n000", model="faces", version={"version": "1.0.0", "digest": ref("1.0.0").digest})
        world.store(result(A, 1, world.now), result(A, 4, world.now))
        assert world.do("node-replace", node="n000", dry_run=True)["missing"] == 2
        asked = world.do("node-replace", node="n000")
        assert (asked["missing"], asked["lost"], asked["models"]) == (2, 0, {"faces": "faces 1.0.0"})
        done: dict[str, Any] = world.do("node-replace", node="n000", declare_lost=True)
        assert (done["missing"], done["lost"]) == (0, 2)
        assert (described(world)[str(A)]["awaited"], described(world)[str(A)]["lost"]) == (0, 2)
        assert world.do("node-replace", node="n000", declare_lost=True)["lost"] == 0
        closed = "SELECT epoch FROM ledger WHERE closed_at IS NOT NULL"
        assert world.database.rows(closed) == [("e1",)]  # nothing is awaited of it, and it counts against no quota
        outcome = world.store(result(A, 5, world.now), result(A, 1, world.now, "new disk"))
        assert [str(outcome.acks[A, epoch].ack.ranges()) for epoch in ("e1", "new disk")]
        assert described(world)[str(A)]["awaited"] == 0
