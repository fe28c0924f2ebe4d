"""Rollouts to `none`: a model is withdrawn from nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.region.rollouts.life.test_forget import A
from tests.region.rollouts.test_controller import ended
from tests.region.world import PLAN, World

from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.rollouts.progress import history, progress


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(str(tmp_path / "region.db"), 4, began=time.time()) as created:
        assert ended(created, created.start("2.0.0", waves=[2])) == "succeeded"
        yield created


def withdraw(world: World, **plan: object) -> str:
    world.ask("rollout-start", rollout="away", plan={**PLAN, "rollout": "away", "models": {"faces": "none"}, **plan})
    return "away"


def test_a_rollout_to_none_withdraws_a_model_wave_by_wave(world: World) -> None:
    name = withdraw(world, waves=[1])
    world.turns(2)
    assert sorted(map(str, world.versions())) == ["2.0.0", "None"]
    assert ended(world, name) == "succeeded"
    assert world.versions() == {None}
    assert world.rollout(name).reason == "4 of 4 nodes are without it"
    newest = history(world.database, 1)[0]
    assert (newest["models"], progress(world.database, name)["states"]) == ({"faces": None}, {"succeeded": 4})  # type: ignore[index]
    assert {str(node["withdrawn_models"]) for node in inventory(world.database, world.now)} == {"['faces']"}
    late = world.add()  # a node that comes later is without it, too
    world.turns(3)
    assert late.version is None


def test_a_model_that_a_pipeline_needs_is_not_withdrawn_and_comes_back_to_the_others(world: World) -> None:
    world.nodes[A].does["none"] = "needs"
    name = withdraw(world, waves=["site=s1"])
    assert ended(world, name) == "failed"
    assert (world.rollout(name).tasks[A].code, world.versions()) == ("model-needed", {"2.0.0"})


def test_a_withdrawn_model_may_be_rolled_out_again(world: World) -> None:
    assert ended(world, withdraw(world, waves=[1])) == "succeeded"
    assert ended(world, world.start("3.0.0", waves=[1])) == "succeeded"
    assert world.versions() == {"3.0.0"}


def test_an_aborted_withdrawal_gives_the_model_back(world: World) -> None:
    name = withdraw(world, waves=[2])
    world.turns(2)
    assert None in world.versions()
    world.do("rollout-abort", rollout=name)
    assert ended(world, name) == "canceled"
    assert world.versions() == {"2.0.0"}


def test_a_region_that_is_killed_anywhere_ends_a_withdrawal(tmp_path: Path) -> None:
    with World(str(tmp_path / "region.db"), 2, began=time.time()) as world:
        assert ended(world, world.start("2.0.0", waves=[1])) == "succeeded"
        name = withdraw(world, waves=[1])
        killed_at = 0
        while not world.known(name) or not world.rollout(name).phase.ended:
            world.turn(killed_at=killed_at % 40)
            killed_at += 1
            assert killed_at < 400
        world.turns(2)
        assert (world.rollout(name).phase, world.versions()) == ("succeeded", {None})
        world.no_step_is_lost_or_repeated()
