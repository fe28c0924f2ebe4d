"""What a rollout is after each step, and that nothing else of it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.region.examples import NOW, A, B, C, D, E, rollout

from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Pause,
    Phase,
    RollBack,
    Rollout,
    Soak,
    StartWave,
    Task,
    TaskUpdate,
    UpdateTasks,
    Wait,
    add_nodes,
    apply_step,
    remove_nodes,
    resume,
)
from hedgerow.topics import Address

GIVEN_AT = NOW - 100


def given(state: Any = "in-progress", wave: int = 0, **more: Any) -> Task:
    return Task(wave, state, **{"generation": 7, "assigned_at": GIVEN_AT, **more})


def tasks(one: Rollout) -> dict[str, Task]:
    return {node.node: task for node, task in one.tasks.items()}


@pytest.mark.parametrize("phase", list(Phase))
def test_three_phases_have_ended(phase: Phase) -> None:
    assert phase.ended == (phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED))


@pytest.mark.parametrize(
    "state", ["failed", "timed-out", "rejected", "queued", "in-progress", "succeeded", "removed", "canceled"]
)
def test_three_states_count_as_failures(state: Any) -> None:
    failed = state in ("failed", "timed-out", "rejected")

    assert Task(0, state).failed == failed
    assert rollout("one", {"a": Task(0, state), "b": Task(1, state), "c": Task(0)}).failed == 2 * failed


def test_a_node_is_reached_with_its_first_document() -> None:
    assert not Task(0).reached
    assert Task(0, generation=1).reached


def test_a_new_task_is_queued_and_a_new_rollout_has_not_begun() -> None:
    task, one = Task(3), rollout("one", {"a": Task(0)})

    assert (task.generation, one.wave) == (0, -1)
    assert (task.state, task.late, task.failed, task.reached, task.assigned_at) == ("queued", False, False, False, 0.0)
    assert (task.rollback, task.rollback_generation, task.code, task.reason, dict(task.before)) == ("no", 0, "", "", {})
    assert list(one.begun) == []
    assert (one.phase, one.soaking_since, one.forgiven, one.rolling_back_since, one.ending) == (
        Phase.RUNNING,
        None,
        0,
        None,
        None,
    )
    assert (one.reason, dict(one.files), Wait("").until, RollBack((), "").ending) == ("", {}, None, None)
    assert TaskUpdate("failed") == TaskUpdate("failed", "", "", None)


def test_waves_that_have_begun_are_those_up_to_the_one_under_way() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(1), "c": Task(2)}, wave=1)

    assert [node for node, _ in one.begun] == [A, B]


def test_nodes_that_settled_are_what_they_have_come_to() -> None:
    one = rollout(
        "one",
        {"a": given(), "b": given(), "c": given("canceled", rollback="asked"), "d": given()},
        wave=0,
        soaking_since=5.0,
    )
    steps = UpdateTasks(
        {
            A: TaskUpdate("succeeded"),
            B: TaskUpdate("failed", "slow", "too slow"),
            C: TaskUpdate("canceled", rollback="proved"),
        }
    )

    assert apply_step(one, steps, NOW) == replace(
        one,
        tasks={
            A: given("succeeded"),
            B: given("failed", code="slow", reason="too slow"),
            C: given("canceled", rollback="proved"),
            D: given(),
        },
    )


def test_a_node_that_has_to_prove_itself_anew_has_all_the_time_again_and_its_wave_soaks_anew() -> None:
    one = rollout("one", {"a": given("succeeded"), "b": given("succeeded", wave=1)}, wave=1, soaking_since=5.0)
    update = TaskUpdate("in-progress", "unproved", "not served")
    anew = given("in-progress", assigned_at=NOW, code="unproved", reason="not served")

    assert apply_step(one, UpdateTasks({A: update}), NOW) == replace(one, tasks={**one.tasks, A: anew})
    assert apply_step(one, UpdateTasks({B: update}), NOW) == replace(
        one, tasks={**one.tasks, B: replace(anew, wave=1)}, soaking_since=None
    )
    assert apply_step(one, UpdateTasks({B: update, A: update}), NOW).soaking_since is None


def test_a_wave_that_begins_gives_to_those_who_are_there_and_the_others_are_late() -> None:
    one = rollout(
        "one", {"a": Task(1), "b": Task(1), "c": Task(1, "removed"), "d": Task(2), "e": Task(0)}, wave=0, soaking_since=5.0
    )  # fmt: skip

    assert apply_step(one, StartWave(1, (A,)), NOW) == replace(
        one,
        wave=1,
        soaking_since=None,
        tasks={A: Task(1, "in-progress"), B: Task(1, late=True), C: Task(1, "removed"), D: Task(2), E: Task(0)},
    )


def test_who_catches_up_is_late_and_under_way() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0, late=True)}, wave=0, soaking_since=5.0)

    assert apply_step(one, CatchUp((A,)), NOW) == replace(
        one, tasks={A: Task(0, "in-progress", late=True), B: Task(0, late=True)}
    )


def test_a_soak_begins_now_and_waiting_changes_nothing() -> None:
    one = rollout("one", {"a": given("succeeded")}, wave=0)

    assert apply_step(one, Soak(), NOW) == replace(one, soaking_since=NOW)
    assert apply_step(one, Wait("soaking"), NOW) == one


def test_who_is_put_back_is_asked_to_and_the_rest_goes_on() -> None:
    one = rollout("one", {"a": given("failed"), "b": given(), "c": Task(1)})

    assert apply_step(one, RollBack((A, B), "they failed"), NOW) == replace(
        one, tasks={A: given("failed", rollback="asked"), B: given("canceled", rollback="asked"), C: Task(1)}
    )


def test_a_rollout_that_turns_gives_nothing_more_and_goes_back() -> None:
    one = rollout(
        "one", {"a": given("timed-out"), "b": given("succeeded"), "c": Task(1), "d": given(wave=1), "e": given("succeeded", wave=1)},
    )  # fmt: skip

    assert apply_step(one, RollBack((A, B), "it was bad", Phase.FAILED), NOW) == replace(
        one,
        phase=Phase.ROLLING_BACK,
        ending=Phase.FAILED,
        reason="it was bad",
        rolling_back_since=NOW,
        tasks={
            A: given("timed-out", rollback="asked"),
            B: given("canceled", rollback="asked"),
            C: Task(1, "canceled"),
            D: given("canceled", wave=1),
            E: given("succeeded", wave=1),
        },
    )


def test_a_rollout_that_halts_is_paused() -> None:
    one = rollout("one", {"a": given("failed", rollback="asked"), "b": Task(1)})

    assert apply_step(one, Pause("1 failed"), NOW) == replace(one, phase=Phase.PAUSED, reason="1 failed")


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED])
def test_nothing_more_comes_of_what_has_ended_but_of_late_nodes_of_a_success(phase: Phase) -> None:
    nodes = {"a": given(late=True), "b": Task(0, late=True), "c": given("succeeded"), "d": given("failed")}
    ended = apply_step(rollout("one", nodes), Finish(phase, "all is said"), NOW)

    assert (ended.phase, ended.reason) == (phase, "all is said")
    if phase is Phase.SUCCEEDED:
        assert tasks(ended) == nodes
    else:
        assert tasks(ended) == {
            "a": given("canceled", late=True), "b": Task(0, "canceled", late=True), "c": given("succeeded"), "d": given("failed"),
        }  # fmt: skip


def test_nodes_that_come_later_are_in_the_last_wave_and_late_when_it_has_begun() -> None:
    one = rollout("one", {"a": given("succeeded")}, waves=("first", "second", "third"), wave=1)

    assert tasks(add_nodes(one, [B, C])) == {"a": given("succeeded"), "b": Task(2), "c": Task(2)}
    assert tasks(add_nodes(replace(one, wave=2), [B])) == {"a": given("succeeded"), "b": Task(2, late=True)}
    assert tasks(add_nodes(one, [A])) == {"a": Task(2)}, "anew"


def test_nodes_that_others_have_a_say_in_are_removed_with_the_reason() -> None:
    one = rollout("one", {"a": given(), "b": given()})

    assert tasks(remove_nodes(one, [A], "pinned", "by eve")) == {
        "a": given("removed", code="pinned", reason="by eve"),
        "b": given(),
    }


def test_a_rollout_that_is_resumed_lets_failures_so_far_pass() -> None:
    nodes: dict[str, Task] = {"a": given("failed"), "b": given("rejected"), "c": Task(1)}
    one = rollout("one", nodes, phase=Phase.PAUSED, reason="2 failed", forgiven=1)

    assert resume(one) == replace(one, phase=Phase.RUNNING, reason="", forgiven=2)


def test_the_rollout_that_was_is_left_as_it_is() -> None:
    one = rollout("one", {"a": given(), "b": Task(0)})
    for step in (
        UpdateTasks({A: TaskUpdate("failed")}),
        StartWave(0, (B,)),
        CatchUp((B,)),
        RollBack((A,), "", Phase.FAILED),
    ):
        apply_step(one, step, NOW)
    remove_nodes(one, [A], "", "")
    add_nodes(one, [Address("r", "s", "z")])

    assert tasks(one) == {"a": given(), "b": Task(0)}
