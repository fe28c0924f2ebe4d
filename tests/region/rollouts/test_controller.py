"""The controller on a real store, with simulated nodes and a simulated clock."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.region.responders import ref
from tests.region.world import TURN_S, World

from hedgerow.errors import CommandError
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.region.rollouts.planning.state import Phase
from hedgerow.region.rollouts.requests import send_request
from hedgerow.region.store.database.open import open_database

DAY = 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(str(tmp_path / "region.db"), 6) as created:
        yield created


def ended(world: World, name: str, max_turns: int = 100) -> Phase:
    """Take turns until a rollout has ended; return its phase."""
    for _ in range(max_turns):
        world.turn()
        if world.rollout(name).phase.ended:
            return world.rollout(name).phase
    raise AssertionError(f"{name}: {world.waits(name)}")


def test_rollouts_succeed_and_roll_back_with_both_databases(store_url: str) -> None:
    with World(store_url, 6) as world:
        assert ended(world, world.start("2.0.0", waves=[2])) is Phase.SUCCEEDED
        assert world.versions() == {"2.0.0"}
        for node in world.nodes.values():
            node.does["3.0.0"] = "errors"
        assert ended(world, world.start("3.0.0", waves=[2])) is Phase.FAILED
        assert world.versions() == {"2.0.0"}
        world.no_step_is_lost_or_repeated()


def test_a_request_is_answered_with_its_result_or_an_error(store_url: str) -> None:
    with World(store_url, 2, began=time.time()) as world, ThreadPoolExecutor() as operators:
        for args, code in (({"labels": {"ring": "early"}}, None), ({"labels": {"site": "x"}}, "reserved-label")):
            reply = operators.submit(send, world.url, "node-label", node="n000", **args)
            while not world.request_open():
                time.sleep(0.01)
            world.turn()
            if code is None:
                assert reply.result()["labels"]["ring"] == "early"
            else:
                with pytest.raises(CommandError) as refused:
                    reply.result()
                assert (refused.value.code, bool(refused.value.remedy)) == (code, True)


def send(url: str, verb: str, **args: Any) -> Any:
    database = open_database(url, write=False, alongside=True)
    try:
        return send_request(database, verb, args, who="eve", why="a test")
    finally:
        database.close()


def test_aborting_a_first_version_says_which_nodes_still_serve_it(tmp_path: Path) -> None:
    """Their files name no other model, so there is nothing to go back to."""
    with World(str(tmp_path / "region.db"), 3, version=None) as world:
        name = world.start("2.0.0", waves=[2])
        world.turn()
        while not any(task.state == "succeeded" for task in world.rollout(name).tasks.values()):
            world.turn()
        world.ask("rollout-abort", rollout=name)

        assert ended(world, name) is Phase.CANCELED
        rollout = world.rollout(name)
        serving = {address for address, node in world.nodes.items() if node.version == "2.0.0"}
        assert {address for address, task in rollout.tasks.items() if task.rollback == "kept"} == serving != set()
        assert {task.rollback for task in rollout.tasks.values()} == {"kept", "no"}
        assert rollout.reason.endswith("had no earlier version and still serve it")


def test_a_rollout_is_refused_or_skips_nodes_whose_files_do_not_name_the_model(world: World) -> None:
    """Otherwise they would reject it, and everybody would be rolled back."""
    lacking, other_bundle, *others = world.nodes.values()
    lacking.configured, other_bundle.configured = {"cars": ""}, {"faces": "people"}
    for node in others:
        node.configured = {"faces": "faces"}
    world.turn()

    refused = world.start("2.0.0", waves=[1])
    world.turn()
    assert not world.known(refused)
    skipping = world.start("2.0.0", rollout="skipping", waves=[1], without_model="skip")
    assert ended(world, skipping) is Phase.SUCCEEDED
    assert set(world.rollout(skipping).tasks) == {node.address for node in others}
    assert {node.version for node in others} == {"2.0.0"}

    lacking.configured = {"faces": ""}  # its file was changed
    for _ in range(20):
        world.turn()
    assert (lacking.version, other_bundle.version) == ("2.0.0", "1.0.0")


def test_a_dry_run_names_the_nodes_that_cannot_serve_it(store_url: str) -> None:
    with World(store_url, 2, began=time.time() - 60) as world, ThreadPoolExecutor() as operators:
        lacking, _ = world.nodes.values()
        lacking.configured = {"cars": ""}
        world.turn()
        plan = {"rollout": "one", "models": {"faces": {"version": "2.0.0", "digest": ref("2.0.0").digest}}}
        replies = []
        for dry_run in (True, False):
            sent = operators.submit(send, world.url, "rollout-start", rollout="one", plan=plan, dry_run=dry_run)
            while not world.request_open():
                time.sleep(0.01)
            world.turn()
            replies.append(sent)

        reply = replies[0].result()
        assert (reply["nodes"], reply["refused"]) == (1, True)
        assert reply["unfit"] == {str(lacking.address): "its file has no model faces; it has cars"}
        with pytest.raises(CommandError, match="1 of 2 nodes cannot serve it") as refused:
            replies[1].result()
        assert refused.value.code == "without-model"


def test_a_node_offline_for_weeks_gets_only_the_last_version_it_missed(world: World) -> None:
    offline, *_ = world.nodes.values()
    offline.online = False
    for version in ("2.0.0", "3.0.0", "4.0.0"):
        assert ended(world, world.start(version)) is Phase.SUCCEEDED
        world.now += 10 * DAY
        world.turns(4)
    assert offline.version == "1.0.0"
    offline.online = True
    world.turns(4)

    assert offline.version == "4.0.0"
    assert len(offline.seen) == 1
    assert not world.busy()


def test_a_late_node_that_fails_is_rolled_back_alone(world: World) -> None:
    offline, *others = world.nodes.values()
    offline.online, offline.does["2.0.0"] = False, "errors"
    assert ended(world, world.start("2.0.0")) is Phase.SUCCEEDED
    offline.online = True
    world.turns(6)

    assert offline.version == "1.0.0"
    assert {node.version for node in others} == {"2.0.0"}
    assert world.rollout("faces-2.0.0").phase is Phase.SUCCEEDED


def test_a_new_node_gets_the_last_successful_version(world: World) -> None:
    assert ended(world, world.start("2.0.0")) is Phase.SUCCEEDED
    for node in world.nodes.values():
        node.does["3.0.0"] = "refuses"
    assert ended(world, world.start("3.0.0")) is Phase.FAILED
    new = world.add()
    world.turns(3)

    assert new.version == "2.0.0"


def test_a_newly_labelled_node_joins_the_rollout_for_that_label(world: World) -> None:
    one, other, *_ = world.nodes.values()
    one.labels["ring"] = "early"
    world.turn()
    assert ended(world, world.start("2.0.0", target="ring=early")) is Phase.SUCCEEDED
    assert (one.version, other.version) == ("2.0.0", "1.0.0")
    world.ask("node-label", node=str(other.address), labels={"ring": "early"})
    world.turns(4)

    assert other.version == "2.0.0"


def test_nothing_starts_outside_a_window_but_rollbacks_do(world: World) -> None:
    """The window closes between two waves; then a node of the first wave turns bad."""
    now = datetime.fromtimestamp(world.now + 3 * TURN_S, UTC)
    closes = datetime.fromtimestamp(world.now + 60, UTC)
    window = {"begin": f"{now:%H}:00", "end": f"{closes:%H:%M}"}
    world.start("2.0.0", waves=[2], soak_s=120, windows=[window])
    world.turns(25)
    updated = [node for node in world.nodes.values() if node.version == "2.0.0"]
    assert len(updated) == 2
    assert world.waits().startswith("outside its maintenance windows, until 20")
    updated[0].does["2.0.0"] = "errors"
    world.turns(5)

    assert world.rollout().phase is Phase.FAILED
    assert world.versions() == {"1.0.0"}


def test_a_wave_starts_when_a_window_opens(world: World) -> None:
    opens = datetime.fromtimestamp(world.now + 300, UTC)
    closes = datetime.fromtimestamp(world.now + 3600, UTC)
    world.start("2.0.0", windows=[{"begin": f"{opens:%H:%M}", "end": f"{closes:%H:%M}"}])
    world.turns(5)
    assert {node.seen == [] for node in world.nodes.values()} == {True}

    assert ended(world, "faces-2.0.0") is Phase.SUCCEEDED


def test_a_restarted_region_does_not_take_silent_nodes_for_absent(world: World) -> None:
    """It was down when the window opened: the first wave waits for its nodes, and none fails."""
    opens, closes = (datetime.fromtimestamp(world.now + ahead_s, UTC) for ahead_s in (600, 4000))
    world.start("2.0.0", offline="fail", windows=[{"begin": f"{opens:%H:%M}", "end": f"{closes:%H:%M}"}])
    world.turns(3)
    world.restart(down_s=900, silent_turns=2)
    assert "not known yet whether" in world.waits()
    assert ended(world, "faces-2.0.0") is Phase.SUCCEEDED
    assert world.rollout().failed == 0


def test_a_restarted_region_waits_for_rollbacks(world: World) -> None:
    for node in world.nodes.values():
        node.does["2.0.0"] = "errors"
    world.start("2.0.0", waves=[2])
    world.turn()
    while world.rollout().phase is not Phase.ROLLING_BACK:
        world.turn()
    world.restart(down_s=3600, silent_turns=2)
    assert world.rollout().phase is Phase.ROLLING_BACK
    assert ended(world, "faces-2.0.0") is Phase.FAILED
    assert "not confirmed" not in world.rollout().reason
    assert world.versions() == {"1.0.0"}


def test_a_node_that_restarts_long_after_it_was_good_must_prove_itself_again_without_timing_out(world: World) -> None:
    world.start("2.0.0", waves=[1], soak_s=400)
    world.turns(30)
    (one,) = [node for node in world.nodes.values() if node.version == "2.0.0"]
    one.restart(hidden=True)
    world.turn()
    assert "not good yet" in world.waits()
    one.restart()
    assert ended(world, "faces-2.0.0", 300) is Phase.SUCCEEDED


def test_a_paused_rollout_starts_nothing_and_resuming_forgives_failures(world: World) -> None:
    one, *_ = world.nodes.values()
    one.labels["ring"], one.does["2.0.0"] = "early", "refuses"
    world.nodes[list(world.nodes)[1]].labels["ring"] = "early"
    world.turn()
    world.start("2.0.0", waves=["ring=early"], on_failure="pause")
    world.turns(20)
    assert world.rollout().phase is Phase.PAUSED
    assert sum(node.version == "2.0.0" for node in world.nodes.values()) == 1
    world.ask("rollout-resume", rollout="faces-2.0.0")

    assert ended(world, "faces-2.0.0") is Phase.SUCCEEDED
    assert one.version == "1.0.0"
    assert sum(node.version == "2.0.0" for node in world.nodes.values()) == 5


def test_earlier_waves_keep_the_version_if_only_the_wave_rolls_back(world: World) -> None:
    late = list(world.nodes.values())[-1]
    late.labels["ring"], late.does["2.0.0"] = "late", "errors"
    world.turn()
    world.start("2.0.0", waves=["ring!=late"], on_failure="roll-back-wave")

    assert ended(world, "faces-2.0.0") is Phase.FAILED
    assert late.version == "1.0.0"
    assert sum(node.version == "2.0.0" for node in world.nodes.values()) == 5


def test_a_document_that_the_broker_lost_is_published_again(world: World) -> None:
    world.start("2.0.0")
    world.turn(deliver=False)
    assert world.versions() == {"1.0.0"}

    assert ended(world, "faces-2.0.0") is Phase.SUCCEEDED
    assert {tuple(node.seen) for node in world.nodes.values()} == {(1,)}


def test_a_failed_node_is_rolled_back_at_once_while_the_rollout_continues(world: World) -> None:
    one, *_ = world.nodes.values()
    one.labels["ring"], one.does["2.0.0"] = "early", "errors"
    world.nodes[list(world.nodes)[1]].labels["ring"] = "early"
    world.turn()
    world.start("2.0.0", waves=["ring=early"], max_failed=1, soak_s=3600)
    world.turns(20)

    assert world.rollout().phase is Phase.RUNNING
    assert one.version == "1.0.0"
    assert sum(node.version == "2.0.0" for node in world.nodes.values()) == 1


def test_a_region_killed_at_every_statement_loses_and_repeats_no_step(world: World) -> None:
    """Each turn is killed at its first statement, then at its second, and so on, until it completes."""
    for node in world.nodes.values():
        node.does["3.0.0"] = "errors"
    for version, phase in (("2.0.0", Phase.SUCCEEDED), ("3.0.0", Phase.FAILED)):
        name = world.start(version, waves=[2])
        statements = kills = 0
        while not (world.known(name) and world.rollout(name).phase.ended):
            world.turn(killed_at=statements)
            statements = statements + 1 if world.kills > kills else 0
            kills = world.kills
        assert world.rollout(name).phase is phase
    world.no_step_is_lost_or_repeated()
    started = [(line[3], line[4]["wave"]) for line in world.audit() if line[2] == "wave-started"]

    assert started == [("faces-2.0.0", 0), ("faces-2.0.0", 1), ("faces-3.0.0", 0)]
    assert world.versions() == {"2.0.0"}
    assert world.kills > 50


def test_a_node_is_sent_signed_pipelines_by_their_digest_until_they_are_taken_back(tmp_path: Path) -> None:
    content = b"as the owner signed them"
    folder = tmp_path / "models/targets/doors/1.0.0"
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(content).hexdigest()}.pipelines.json").write_bytes(content)
    with World(str(tmp_path / "region.db"), 2) as world:
        models = world.config.models.model_copy(update={"repository": tmp_path / "models"})
        world._running_controller(None).fleet.config = world.config.model_copy(update={"models": models})
        node = next(iter(world.nodes.values()))
        world.turn()

        def desired() -> Any:
            world.turn()
            return world._running_controller(None).fleet.desired[node.address].document

        world.ask("node-pipelines", node=str(node.address), name="doors", version="1.0.0")
        assert desired().signed_pipelines.digest == digest_of(content)
        world.ask("node-label", node=str(node.address), labels={"ring": "early"})
        assert desired().signed_pipelines.digest == digest_of(content), "other changes keep them"
        for name, version in (("doors", "2.0.0"), ("../doors", "1.0.0"), ("doors", "..")):
            world.ask("node-pipelines", node=str(node.address), name=name, version=version)
            assert desired().generation == 2, "unknown ones are refused"
        world.ask("node-pipelines", node=str(node.address), name=None, version=None)
        assert desired().signed_pipelines is None
