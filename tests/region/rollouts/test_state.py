"""What a rollout is after each step, and that nothing else of it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.region.examples import NOW, A, B, C, D, E, rollout

from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Halt,
    Move,
    Phase,
    Rollout,
    Settle,
    Soak,
    StartWave,
    TakeBack,
    Task,
    Wait,
    admit,
    after,
    remove,
    resume,
)
from hedgerow.topics import Address

GIVEN_AT = NOW - 100


def given(state: Any = "in-progress", wave: int = 0, **more: Any) -> Task:
    return Task(wave, state, **{"generation": 7, "given_at": GIVEN_AT, **more})


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
    assert (task.state, task.late, task.failed, task.reached, task.given_at) == ("queued", False, False, False, 0.0)
    assert (task.back, task.back_generation, task.code, task.reason, dict(task.before)) == ("no", 0, "", "", {})
    assert list(one.begun) == []
    assert (one.phase, one.soaking_since, one.forgiven, one.turned_at, one.ending) == (
        Phase.RUNNING,
        None,
        0,
        None,
        None,
    )
    assert (one.because, dict(one.files), Wait("").until, TakeBack((), "").ending) == ("", {}, None, None)
    assert Move("failed") == Move("failed", "", "", None)


def test_waves_that_have_begun_are_those_up_to_the_one_under_way() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(1), "c": Task(2)}, wave=1)

    assert [node for node, _ in one.begun] == [A, B]


def test_nodes_that_settled_are_what_they_have_come_to() -> None:
    one = rollout(
        "one",
        {"a": given(), "b": given(), "c": given("canceled", back="asked"), "d": given()},
        wave=0,
        soaking_since=5.0,
    )
    steps = Settle({A: Move("succeeded"), B: Move("failed", "slow", "too slow"), C: Move("canceled", back="proved")})

    assert after(one, steps, NOW) == replace(
        one,
        tasks={
            A: given("succeeded"),
            B: given("failed", code="slow", reason="too slow"),
            C: given("canceled", back="proved"),
            D: given(),
        },
    )


def test_a_node_that_has_to_prove_itself_anew_has_all_the_time_again_and_its_wave_soaks_anew() -> None:
    one = rollout("one", {"a": given("succeeded"), "b": given("succeeded", wave=1)}, wave=1, soaking_since=5.0)
    move = Move("in-progress", "unproved", "not served")
    anew = given("in-progress", given_at=NOW, code="unproved", reason="not served")

    assert after(one, Settle({A: move}), NOW) == replace(one, tasks={**one.tasks, A: anew})
    assert after(one, Settle({B: move}), NOW) == replace(
        one, tasks={**one.tasks, B: replace(anew, wave=1)}, soaking_since=None
    )
    assert after(one, Settle({B: move, A: move}), NOW).soaking_since is None


def test_a_wave_that_begins_gives_to_those_who_are_there_and_the_others_are_late() -> None:
    one = rollout(
        "one", {"a": Task(1), "b": Task(1), "c": Task(1, "removed"), "d": Task(2), "e": Task(0)}, wave=0, soaking_since=5.0
    )  # fmt: skip

    assert after(one, StartWave(1, (A,)), NOW) == replace(
        one,
        wave=1,
        soaking_since=None,
        tasks={A: Task(1, "in-progress"), B: Task(1, late=True), C: Task(1, "removed"), D: Task(2), E: Task(0)},
    )


def test_who_catches_up_is_late_and_under_way() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0, late=True)}, wave=0, soaking_since=5.0)

    assert after(one, CatchUp((A,)), NOW) == replace(
        one, tasks={A: Task(0, "in-progress", late=True), B: Task(0, late=True)}
    )


def test_a_soak_begins_now_and_waiting_changes_nothing() -> None:
    one = rollout("one", {"a": given("succeeded")}, wave=0)

    assert after(one, Soak(), NOW) == replace(one, soaking_since=NOW)
    assert after(one, Wait("soaking"), NOW) == one


def test_who_is_put_back_is_asked_to_and_the_rest_goes_on() -> None:
    one = rollout("one", {"a": given("failed"), "b": given(), "c": Task(1)})

    assert after(one, TakeBack((A, B), "they failed"), NOW) == replace(
        one, tasks={A: given("failed", back="asked"), B: given("canceled", back="asked"), C: Task(1)}
    )


def test_a_rollout_that_turns_gives_nothing_more_and_goes_back() -> None:
    one = rollout(
        "one", {"a": given("timed-out"), "b": given("succeeded"), "c": Task(1), "d": given(wave=1), "e": given("succeeded", wave=1)},
    )  # fmt: skip

    assert after(one, TakeBack((A, B), "it was bad", Phase.FAILED), NOW) == replace(
        one,
        phase=Phase.ROLLING_BACK,
        ending=Phase.FAILED,
        because="it was bad",
        turned_at=NOW,
        tasks={
            A: given("timed-out", back="asked"),
            B: given("canceled", back="asked"),
            C: Task(1, "canceled"),
            D: given("canceled", wave=1),
            E: given("succeeded", wave=1),
        },
    )


def test_a_rollout_that_halts_is_paused() -> None:
    one = rollout("one", {"a": given("failed", back="asked"), "b": Task(1)})

    assert after(one, Halt("1 failed"), NOW) == replace(one, phase=Phase.PAUSED, because="1 failed")


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED])
def test_nothing_more_comes_of_what_has_ended_but_of_late_nodes_of_a_success(phase: Phase) -> None:
    nodes = {"a": given(late=True), "b": Task(0, late=True), "c": given("succeeded"), "d": given("failed")}
    ended = after(rollout("one", nodes), Finish(phase, "all is said"), NOW)

    assert (ended.phase, ended.because) == (phase, "all is said")
    if phase is Phase.SUCCEEDED:
        assert tasks(ended) == nodes
    else:
        assert tasks(ended) == {
            "a": given("canceled", late=True), "b": Task(0, "canceled", late=True), "c": given("succeeded"), "d": given("failed"),
        }  # fmt: skip


def test_nodes_that_come_later_are_in_the_last_wave_and_late_when_it_has_begun() -> None:
    one = rollout("one", {"a": given("succeeded")}, waves=("first", "second", "third"), wave=1)

    assert tasks(admit(one, [B, C])) == {"a": given("succeeded"), "b": Task(2), "c": Task(2)}
    assert tasks(admit(replace(one, wave=2), [B])) == {"a": given("succeeded"), "b": Task(2, late=True)}
    assert tasks(admit(one, [A])) == {"a": Task(2)}, "anew"


def test_nodes_that_others_have_a_say_in_are_removed_with_the_reason() -> None:
    one = rollout("one", {"a": given(), "b": given()})

    assert tasks(remove(one, [A], "pinned", "by eve")) == {
        "a": given("removed", code="pinned", reason="by eve"),
        "b": given(),
    }


def test_a_rollout_that_is_resumed_lets_failures_so_far_pass() -> None:
    nodes: dict[str, Task] = {"a": given("failed"), "b": given("rejected"), "c": Task(1)}
    one = rollout("one", nodes, phase=Phase.PAUSED, because="2 failed", forgiven=1)

    assert resume(one) == replace(one, phase=Phase.RUNNING, because="", forgiven=2)


def test_the_rollout_that_was_is_left_as_it_is() -> None:
    one = rollout("one", {"a": given(), "b": Task(0)})
    for step in (Settle({A: Move("failed")}), StartWave(0, (B,)), CatchUp((B,)), TakeBack((A,), "", Phase.FAILED)):
        after(one, step, NOW)
    remove(one, [A], "", "")
    admit(one, [Address("r", "s", "z")])

    assert tasks(one) == {"a": given(), "b": Task(0)}
