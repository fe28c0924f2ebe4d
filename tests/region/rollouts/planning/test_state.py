"""Steps of a rollout: what each one changes, and that nothing else changes."""

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

ASSIGNED_AT = NOW - 100


def reached(state: Any = "in-progress", wave: int = 0, **more: Any) -> Task:
    return Task(wave, state, **{"generation": 7, "assigned_at": ASSIGNED_AT, **more})


def tasks(one: Rollout) -> dict[str, Task]:
    return {node.node: task for node, task in one.tasks.items()}


@pytest.mark.parametrize("phase", list(Phase))
def test_succeeded_failed_and_canceled_are_final_phases(phase: Phase) -> None:
    assert phase.ended == (phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED))


@pytest.mark.parametrize(
    "state", ["failed", "timed-out", "rejected", "queued", "in-progress", "succeeded", "removed", "canceled"]
)
def test_failed_timed_out_and_rejected_count_as_failures(state: Any) -> None:
    failed = state in ("failed", "timed-out", "rejected")

    assert Task(0, state).failed == failed
    assert rollout("one", {"a": Task(0, state), "b": Task(1, state), "c": Task(0)}).failed == 2 * failed


def test_a_node_with_a_generation_is_reached() -> None:
    assert not Task(0).reached
    assert Task(0, generation=1).reached


def test_defaults_of_tasks_rollouts_and_steps() -> None:
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


def test_begun_has_the_tasks_up_to_the_current_wave() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(1), "c": Task(2)}, wave=1)

    assert [node for node, _ in one.begun] == [A, B]


def test_updates_are_applied_to_tasks() -> None:
    one = rollout(
        "one",
        {"a": reached(), "b": reached(), "c": reached("canceled", rollback="asked"), "d": reached()},
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
            A: reached("succeeded"),
            B: reached("failed", code="slow", reason="too slow"),
            C: reached("canceled", rollback="proved"),
            D: reached(),
        },
    )


def test_a_node_that_must_prove_itself_again_gets_the_full_time_and_its_wave_soaks_again() -> None:
    one = rollout("one", {"a": reached("succeeded"), "b": reached("succeeded", wave=1)}, wave=1, soaking_since=5.0)
    update = TaskUpdate("in-progress", "unproved", "not served")
    again = reached("in-progress", assigned_at=NOW, code="unproved", reason="not served")

    assert apply_step(one, UpdateTasks({A: update}), NOW) == replace(one, tasks={**one.tasks, A: again})
    assert apply_step(one, UpdateTasks({B: update}), NOW) == replace(
        one, tasks={**one.tasks, B: replace(again, wave=1)}, soaking_since=None
    )
    assert apply_step(one, UpdateTasks({B: update, A: update}), NOW).soaking_since is None


def test_starting_a_wave_assigns_present_nodes_and_marks_the_others_late() -> None:
    one = rollout(
        "one", {"a": Task(1), "b": Task(1), "c": Task(1, "removed"), "d": Task(2), "e": Task(0)}, wave=0, soaking_since=5.0
    )  # fmt: skip

    assert apply_step(one, StartWave(1, (A,)), NOW) == replace(
        one,
        wave=1,
        soaking_since=None,
        tasks={A: Task(1, "in-progress"), B: Task(1, late=True), C: Task(1, "removed"), D: Task(2), E: Task(0)},
    )


def test_a_node_that_catches_up_is_late_and_in_progress() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0, late=True)}, wave=0, soaking_since=5.0)

    assert apply_step(one, CatchUp((A,)), NOW) == replace(
        one, tasks={A: Task(0, "in-progress", late=True), B: Task(0, late=True)}
    )


def test_a_soak_starts_now_and_waiting_changes_nothing() -> None:
    one = rollout("one", {"a": reached("succeeded")}, wave=0)

    assert apply_step(one, Soak(), NOW) == replace(one, soaking_since=NOW)
    assert apply_step(one, Wait("soaking"), NOW) == one


def test_a_partial_rollback_lets_the_rollout_continue() -> None:
    one = rollout("one", {"a": reached("failed"), "b": reached(), "c": Task(1)})

    assert apply_step(one, RollBack((A, B), "they failed"), NOW) == replace(
        one, tasks={A: reached("failed", rollback="asked"), B: reached("canceled", rollback="asked"), C: Task(1)}
    )


def test_a_full_rollback_cancels_everything_unfinished() -> None:
    one = rollout(
        "one", {"a": reached("timed-out"), "b": reached("succeeded"), "c": Task(1), "d": reached(wave=1), "e": reached("succeeded", wave=1)},
    )  # fmt: skip

    assert apply_step(one, RollBack((A, B), "it was bad", Phase.FAILED), NOW) == replace(
        one,
        phase=Phase.ROLLING_BACK,
        ending=Phase.FAILED,
        reason="it was bad",
        rolling_back_since=NOW,
        tasks={
            A: reached("timed-out", rollback="asked"),
            B: reached("canceled", rollback="asked"),
            C: Task(1, "canceled"),
            D: reached("canceled", wave=1),
            E: reached("succeeded", wave=1),
        },
    )


def test_pause_sets_phase_and_reason() -> None:
    one = rollout("one", {"a": reached("failed", rollback="asked"), "b": Task(1)})

    assert apply_step(one, Pause("1 failed"), NOW) == replace(one, phase=Phase.PAUSED, reason="1 failed")


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED])
def test_finishing_cancels_unfinished_tasks_except_after_success(phase: Phase) -> None:
    nodes = {"a": reached(late=True), "b": Task(0, late=True), "c": reached("succeeded"), "d": reached("failed")}
    ended = apply_step(rollout("one", nodes), Finish(phase, "all nodes serve it"), NOW)

    assert (ended.phase, ended.reason) == (phase, "all nodes serve it")
    if phase is Phase.SUCCEEDED:
        assert tasks(ended) == nodes
    else:
        assert tasks(ended) == {
            "a": reached("canceled", late=True), "b": Task(0, "canceled", late=True), "c": reached("succeeded"), "d": reached("failed"),
        }  # fmt: skip


def test_added_nodes_are_in_the_last_wave_and_late_if_it_has_started() -> None:
    one = rollout("one", {"a": reached("succeeded")}, waves=("first", "second", "third"), wave=1)

    assert tasks(add_nodes(one, [B, C])) == {"a": reached("succeeded"), "b": Task(2), "c": Task(2)}
    assert tasks(add_nodes(replace(one, wave=2), [B])) == {"a": reached("succeeded"), "b": Task(2, late=True)}
    assert tasks(add_nodes(one, [A])) == {"a": Task(2)}, "a new task replaces the old one"


def test_removed_nodes_have_a_code_and_reason() -> None:
    one = rollout("one", {"a": reached(), "b": reached()})

    assert tasks(remove_nodes(one, [A], "pinned", "by eve")) == {
        "a": reached("removed", code="pinned", reason="by eve"),
        "b": reached(),
    }


def test_resume_forgives_the_failures_so_far() -> None:
    nodes: dict[str, Task] = {"a": reached("failed"), "b": reached("rejected"), "c": Task(1)}
    one = rollout("one", nodes, phase=Phase.PAUSED, reason="2 failed", forgiven=1)

    assert resume(one) == replace(one, phase=Phase.RUNNING, reason="", forgiven=2)


def test_steps_do_not_modify_the_original() -> None:
    one = rollout("one", {"a": reached(), "b": Task(0)})
    for step in (
        UpdateTasks({A: TaskUpdate("failed")}),
        StartWave(0, (B,)),
        CatchUp((B,)),
        RollBack((A,), "", Phase.FAILED),
    ):
        apply_step(one, step, NOW)
    remove_nodes(one, [A], "", "")
    add_nodes(one, [Address("r", "s", "z")])

    assert tasks(one) == {"a": reached(), "b": Task(0)}
