"""What a rollout does next: each step from the very situation that calls for it, and not from the one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.region.examples import (
    GOOD,
    NOW,
    OLD,
    SILENT_AFTER_S,
    A,
    B,
    C,
    D,
    E,
    bad,
    observed,
    reported,
    rollout,
    sample,
    unknown,
)
from tests.region.responders import digest

from hedgerow.region.rollouts.planning.gate import UNPROVED, GateFinding, GateVerdict, Listening, ObservedNode, Presence
from hedgerow.region.rollouts.planning.health_samples import NodeBaseline
from hedgerow.region.rollouts.planning.planner import evaluate_nodes, next_step, roll_back
from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Pause,
    Phase,
    RollBack,
    Rollout,
    Soak,
    StartWave,
    Step,
    Task,
    TaskUpdate,
    UpdateTasks,
    Wait,
)
from hedgerow.topics import Address

HEARD = GateFinding(GateVerdict.UNKNOWN, "queued")
GONE = replace(HEARD, presence=Presence.ABSENT)
OPEN = replace(HEARD, presence=Presence.UNKNOWN)
WAITS = unknown(UNPROVED, "faces is not served")
OTHERWISE = unknown(UNPROVED, "it takes its time")
ENDED = Wait("it has ended")


def given(state: Any = "in-progress", wave: int = 0, **more: Any) -> Task:
    """A node that was given the change."""
    return Task(wave, state, **{"generation": 7, "assigned_at": NOW - 100, **more})


def failed(wave: int = 0, **more: Any) -> Task:
    return given("failed", wave, **{"code": "slow", "reason": "too slow", **more})


def under_way(nodes: Mapping[str, Task], **more: Any) -> Rollout:
    """A rollout in its first wave of two."""
    return rollout("one", nodes, **{"wave": 0, "waves": ("first", "second"), **more})


def step(one: Rollout, findings: Mapping[Address, GateFinding] | None = None, now: float = NOW) -> Step:
    return next_step(one, findings or {}, now)


# What is known of nodes, by what each was given


EAR = Listening(NOW - 1000, SILENT_AFTER_S)


def found(task: Task, known: ObservedNode | None, **more: Any) -> GateFinding:
    one = under_way({"a": task}, **more)
    return evaluate_nodes(one, {} if known is None else {A: known}, EAR, NOW)[A]


def test_a_node_that_is_not_to_prove_anything_is_there_or_not() -> None:
    assert found(Task(0), observed()) == HEARD
    assert found(Task(0), None) == GONE
    assert found(given("queued"), observed()) == HEARD
    assert found(Task(0, "in-progress"), observed()) == GateFinding(GateVerdict.UNKNOWN, "in-progress")
    assert found(failed(), observed()) == GateFinding(GateVerdict.UNKNOWN, "failed")
    assert found(failed(rollback="proved"), observed()) == GateFinding(GateVerdict.UNKNOWN, "failed")


def test_a_node_has_to_prove_what_it_was_given() -> None:
    assert found(given(), observed()) == GOOD
    assert found(given("succeeded"), observed()) == GOOD
    assert found(given(generation=8), observed()) == unknown(UNPROVED, "it is at generation 7, not 8")
    assert found(given(), observed(), files={"faces": frozenset([digest("another")])}).code == "wrong-file"
    assert found(given(), observed(), models={"faces": OLD}).reason == "faces is faces 2.0.0"
    grown = observed([sample(NOW - 10, 3, memory_bytes=2 << 30)])
    assert found(given(), grown) == GOOD
    assert found(given(baseline=NodeBaseline(memory_bytes=1 << 20)), grown).code == "memory-growth"
    assert found(given(), observed(), plan={"gate": {"min_frames": 301}}).code == UNPROVED


def test_a_node_that_was_given_something_has_the_gates_time_and_one_that_was_good_has_any() -> None:
    missing = observed(models={})
    gate = {"gate": {"timeout_s": 50}}

    assert found(given(assigned_at=NOW - 50), missing, plan=gate) == WAITS
    assert found(given(assigned_at=NOW - 51), missing, plan=gate).code == "timed-out"
    assert found(given("succeeded", assigned_at=NOW - 51), missing, plan=gate) == WAITS


def test_a_node_that_was_put_back_has_the_gates_time_from_when_the_rollout_turned() -> None:
    rollback = failed(rollback="asked", rollback_generation=8, before={"faces": OLD})
    gate = {"gate": {"timeout_s": 50}}
    still = replace(observed(), reported=reported(generation=8))
    is_back = replace(observed(), reported=reported(generation=8, serving={"model": OLD}))
    missing = "faces is faces 2.0.0"

    assert found(rollback, is_back) == GOOD
    assert found(rollback, observed()) == unknown(UNPROVED, "it has not rolled back yet")
    assert found(rollback, still, plan=gate) == unknown(UNPROVED, missing), "nothing else waits for it"
    assert found(rollback, still, plan=gate, rolling_back_since=NOW - 50) == unknown(UNPROVED, missing)
    assert found(rollback, still, plan=gate, rolling_back_since=NOW - 51) == bad(
        "timed-out", missing, state="timed-out"
    )


def test_each_node_is_looked_at() -> None:
    one = under_way({"a": given(), "b": Task(0)})

    assert evaluate_nodes(one, {A: observed()}, EAR, NOW) == {A: GOOD, B: GONE}


# What has become of nodes


def test_what_has_become_of_nodes_is_written_down_first() -> None:
    one = under_way({"a": given(), "b": given(), "c": given(), "d": given("succeeded"), "e": Task(1)})

    assert step(one, {A: GOOD, B: bad("slow", "too slow"), C: WAITS, D: GOOD, E: GOOD}) == UpdateTasks(
        {A: TaskUpdate("succeeded"), B: TaskUpdate("failed", "slow", "too slow")}
    )
    assert step(one, {B: bad("silent", "quiet", state="timed-out")}) == UpdateTasks(
        {B: TaskUpdate("timed-out", "silent", "quiet")}
    )


def test_a_node_that_was_good_has_to_prove_itself_anew_when_it_proves_it_no_more() -> None:
    one = under_way({"a": given("succeeded")})

    assert step(one, {A: WAITS}) == UpdateTasks({A: TaskUpdate("in-progress", UNPROVED, "faces is not served")})
    assert step(one, {A: bad("slow", "too slow")}) == UpdateTasks({A: TaskUpdate("failed", "slow", "too slow")})
    assert not isinstance(step(one, {A: unknown("not-heard")}), UpdateTasks)
    assert not isinstance(step(under_way({"a": given()}), {A: WAITS}), UpdateTasks), "it is at it already"


def test_when_all_has_ended_only_late_nodes_are_settled() -> None:
    one = under_way({"a": given("succeeded"), "b": given(late=True)}, phase=Phase.SUCCEEDED, wave=1)

    assert step(one, {A: bad("slow"), B: unknown()}) == ENDED
    assert step(one, {A: WAITS, B: GOOD}) == UpdateTasks({B: TaskUpdate("succeeded")})
    assert step(one, {B: bad("slow", "too slow")}) == UpdateTasks({B: TaskUpdate("failed", "slow", "too slow")})


def test_a_node_that_was_put_back_and_proves_it_is_back() -> None:
    one = under_way({"a": failed(rollback="asked"), "b": given("canceled", rollback="asked")}, phase=Phase.ROLLING_BACK)

    assert step(one, {A: GOOD, B: bad("timed-out")}) == UpdateTasks(
        {A: TaskUpdate("failed", "slow", "too slow", rollback="proved")}
    )
    assert step(under_way({"a": failed(rollback="proved")}, phase=Phase.ROLLING_BACK), {A: GOOD}) == Finish(
        Phase.FAILED, ""
    )


def test_of_a_node_that_was_given_nothing_nothing_is_settled() -> None:
    one = under_way({"a": Task(0, "in-progress"), "b": given("removed")})

    assert not isinstance(step(one, {A: GOOD, B: bad("slow")}), UpdateTasks)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELED])
def test_what_came_to_nothing_does_nothing_more(phase: Phase) -> None:
    assert step(under_way({"a": given(), "b": failed(), "c": Task(0)}, phase=phase), {A: GOOD, C: HEARD}) == ENDED


# Failures


def test_more_failures_than_allowed_put_all_back() -> None:
    nodes = {
        "a": failed(),
        "b": given("succeeded"),
        "c": given("succeeded", wave=1),
        "d": Task(1),
        "e": given("removed"),
    }
    reason = "1 failed (s/a: slow: too slow); 0 allowed"

    assert step(under_way(nodes, wave=1)) == RollBack((A, B, C), reason, Phase.FAILED)
    wave_only = {"on_failure": "roll-back-wave"}
    assert step(under_way(nodes, wave=1, plan=wave_only)) == RollBack((A, C), reason, Phase.FAILED)
    assert step(under_way(nodes, wave=0, plan=wave_only)) == RollBack((A, B), reason, Phase.FAILED)


def test_as_many_failures_as_allowed_put_only_those_back() -> None:
    nodes = {"a": failed(), "b": failed(wave=1), "c": given("succeeded")}

    assert step(under_way(nodes, plan={"max_failed": 2})) == RollBack((A, B), "they failed")
    assert step(under_way(nodes, plan={"max_failed": 1})).ending is Phase.FAILED  # type: ignore[union-attr]
    assert step(under_way(nodes, plan={"max_failed": 1}, forgiven=1)) == RollBack((A, B), "they failed")
    assert step(under_way(nodes, plan={"max_failed": 0}, forgiven=1)).ending is Phase.FAILED  # type: ignore[union-attr]


def test_a_percentage_of_failures_is_of_those_that_were_reached() -> None:
    nodes = {"a": failed(), "b": given("succeeded"), "c": given("succeeded"), "d": Task(1), "e": Task(1)}

    assert step(under_way(nodes, plan={"max_failed": "34%"})) == RollBack((A,), "they failed")
    assert step(under_way(nodes, plan={"max_failed": "33%"})) == RollBack(
        (A, B, C), "1 failed (s/a: slow: too slow); 0 allowed", Phase.FAILED
    )


@pytest.mark.parametrize(("share", "allowed"), [("99%", 0), ("100%", 1)])
def test_a_share_of_nobody_reached_is_a_share_of_one(share: str, allowed: int) -> None:
    """Nodes that were not there when their wave came count as failed, and were never given anything."""
    nodes = {"a": Task(0, "failed", code="offline", reason="not heard"), "b": Task(1)}

    assert step(under_way(nodes, plan={"max_failed": share})) == RollBack(
        (), f"1 failed (s/a: offline: not heard); {allowed} allowed", Phase.FAILED
    )


def test_when_all_who_were_reached_have_failed_it_is_too_many_whatever_is_allowed() -> None:
    allowed = {"max_failed": 9}
    reason = "1 failed (s/a: slow: too slow); 9 allowed"

    assert step(under_way({"a": failed(), "b": Task(1)}, plan=allowed)) == RollBack((A,), reason, Phase.FAILED)
    for other in (given(), given("succeeded")):
        assert step(under_way({"a": failed(), "b": other}, plan=allowed)) == RollBack((A,), "they failed")
    assert step(under_way({"a": failed()}, plan=allowed, forgiven=1)) == RollBack((A,), "they failed")
    assert isinstance(step(under_way({"a": given("canceled", rollback="proved")}, plan=allowed)), Wait | StartWave)


def test_a_rollout_that_is_to_pause_puts_back_what_failed_and_waits_for_a_person() -> None:
    pause = {"on_failure": "pause"}
    rollback = failed(rollback="asked")

    assert step(under_way({"a": failed(), "b": given()}, plan=pause)) == RollBack((A,), "they failed")
    assert step(under_way({"a": rollback, "b": given()}, plan=pause)) == Pause(
        "1 failed (s/a: slow: too slow); 0 allowed"
    )
    paused = under_way({"a": rollback, "b": given()}, plan=pause, phase=Phase.PAUSED, reason="it looked bad")
    assert step(paused) == Wait("paused: it looked bad")
    paused = under_way({"a": rollback, "b": failed()}, plan=pause, phase=Phase.PAUSED)
    assert step(paused) == RollBack((B,), "they failed")


def test_a_failure_is_put_back_once_and_only_where_something_was_given() -> None:
    for rollback in (failed(rollback="asked"), failed(rollback="proved"), Task(0, "failed"), given("removed")):
        nodes = {"a": rollback, "b": given("succeeded")}
        assert not isinstance(step(under_way(nodes, plan={"max_failed": 5}), {B: GOOD}), RollBack)


def test_late_failures_are_put_back_when_all_has_ended_and_while_the_rest_goes_back() -> None:
    for phase in (Phase.SUCCEEDED, Phase.ROLLING_BACK):
        one = under_way({"a": given("succeeded"), "b": failed(late=True)}, phase=phase)
        assert step(one) == RollBack((B,), "they failed")


def test_the_first_three_failures_are_named() -> None:
    pause = {"on_failure": "pause"}
    nodes = {node: failed(rollback="asked", code=f"code-{node}", reason="bad") for node in "abcd"}
    three = "s/a: code-a: bad; s/b: code-b: bad; s/c: code-c: bad"

    assert step(under_way(nodes, plan=pause)) == Pause(f"4 failed ({three} and 1 more); 0 allowed")
    del nodes["d"]
    assert step(under_way(nodes, plan=pause)) == Pause(f"3 failed ({three}); 0 allowed")


# Putting back


def test_who_is_put_back_is_who_was_reached_and_is_not_back() -> None:
    nodes = {
        "a": given("succeeded"), "b": Task(0), "c": given("canceled", rollback="asked"), "d": given("removed"),
        "e": failed(wave=1, rollback="proved"), "f": given("in-progress", wave=1),
    }  # fmt: skip
    f = Address("r", "s", "f")

    assert roll_back(under_way(nodes, wave=1), Phase.CANCELED, "eve said so") == RollBack(
        (A, f), "eve said so", Phase.CANCELED
    )


def test_a_wave_goes_back_with_all_that_failed_or_are_not_through() -> None:
    nodes = {
        "a": given("succeeded"), "b": given("succeeded", wave=1), "c": failed(), "d": given(late=True), "e": given(wave=1),
    }  # fmt: skip

    assert roll_back(under_way(nodes, wave=1), Phase.FAILED, "", wave_only=True) == RollBack(
        (B, C, D, E), "", Phase.FAILED
    )


def test_a_rollout_that_goes_back_waits_for_those_that_are_there() -> None:
    nodes = {node: given("canceled", rollback="asked") for node in "abc"}
    one = under_way(nodes, phase=Phase.ROLLING_BACK, reason="it was bad", ending=Phase.CANCELED)
    late = bad("timed-out", "it does not answer", state="timed-out")

    assert step(one, {A: WAITS, B: OTHERWISE, C: late}) == Wait(
        "2 nodes (s/a, s/b) not rolled back yet: faces is not served"
    )
    assert step(one, {A: OPEN, B: GONE, C: late}) == Wait("s/a not rolled back yet: ")
    assert step(one, {A: late, B: GONE}) == Finish(
        Phase.CANCELED, "it was bad; rollback not confirmed on 3 nodes (s/a, s/b, s/c)"
    )


def test_a_rollout_that_is_back_has_ended_as_was_said_or_failed() -> None:
    one = under_way({"a": failed(rollback="proved"), "b": Task(1, "canceled")}, phase=Phase.ROLLING_BACK, reason="bad")

    assert step(one) == Finish(Phase.FAILED, "bad")
    assert step(replace(one, ending=Phase.CANCELED)) == Finish(Phase.CANCELED, "bad")


# Forward


def test_the_first_wave_begins_with_those_that_are_heard() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0), "c": Task(1)}, waves=("first", "second"))

    assert step(one, {A: HEARD, B: HEARD, C: HEARD}) == StartWave(0, (A, B))
    assert step(one, {A: GONE, B: HEARD, C: OPEN}) == StartWave(0, (B,))
    assert step(one, {A: GONE}) == StartWave(0, ())


def test_a_wave_waits_as_long_as_it_is_open_whether_somebody_is_there() -> None:
    one = rollout("one", dict.fromkeys("abcde", Task(0)))

    assert step(one, {A: HEARD, B: OPEN}) == Wait("not known yet whether s/b is connected")
    assert step(one, {A: OPEN, B: OPEN, C: HEARD}) == Wait("not known yet whether 2 nodes (s/a, s/b) are connected")
    assert step(one, {A: OPEN, B: OPEN, C: OPEN}) == Wait("not known yet whether 3 nodes (s/a, s/b, s/c) are connected")
    assert step(one, dict.fromkeys((A, B, C, D), OPEN)) == Wait(
        "not known yet whether 4 nodes (s/a, s/b, s/c and 1 more) are connected"
    )
    assert step(one, dict.fromkeys((A, B, C, D, E), OPEN)) == Wait(
        "not known yet whether 5 nodes (s/a, s/b, s/c and 2 more) are connected"
    )


def test_nodes_that_are_not_heard_fail_if_the_plan_says_so() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0)}, plan={"offline": "fail"})
    missed = TaskUpdate("failed", "offline", "it was not connected when its wave started")

    assert step(one, {A: HEARD, B: GONE}) == UpdateTasks({B: missed})
    assert step(one, {}) == UpdateTasks({A: missed, B: missed})
    assert step(one, {A: HEARD, B: HEARD}) == StartWave(0, (A, B))
    begun = rollout("one", {"a": Task(0), "b": Task(0, "removed")}, plan={"offline": "fail"})
    assert step(begun, {A: HEARD}) == StartWave(0, (A,))


WINDOW = {"begin": "10:00", "end": "11:00"}
OPENS = NOW - NOW % 86_400 + 10 * 3600
"""On the day of NOW, in UTC."""


def test_nothing_is_given_outside_of_maintenance_windows() -> None:
    one = rollout("one", {"a": Task(0)}, plan={"windows": [WINDOW]})

    assert step(one, {A: HEARD}, OPENS - 0.5) == Wait("outside its maintenance windows", OPENS)
    assert step(one, {A: OPEN}, OPENS - 0.5) == Wait("outside its maintenance windows", OPENS)
    assert step(one, {A: HEARD}, OPENS) == StartWave(0, (A,))
    late = under_way({"a": Task(0, late=True), "b": given()}, plan={"windows": [WINDOW]})
    assert step(late, {A: HEARD, B: WAITS}, OPENS) == CatchUp((A,))
    assert step(late, {A: HEARD, B: WAITS}, OPENS - 0.5) == Wait("s/b not good yet: faces is not served")


def test_late_nodes_that_are_heard_again_catch_up() -> None:
    nodes = {"a": Task(0, late=True), "b": given(), "c": Task(1), "d": Task(0, late=True), "e": Task(0, "removed")}

    assert step(under_way(nodes), dict.fromkeys((A, C, D, E), HEARD) | {B: WAITS}) == CatchUp((A, D))
    assert step(under_way(nodes, wave=1), {A: OPEN, C: HEARD, D: GONE}) == CatchUp((C,))
    assert step(under_way(nodes), {B: WAITS}) == Wait("s/b not good yet: faces is not served")
    ended = under_way({"a": Task(1, late=True), "b": given("succeeded")}, phase=Phase.SUCCEEDED, wave=1)
    assert step(ended, {A: HEARD}) == CatchUp((A,))
    assert step(ended, {A: GONE}) == ENDED


def test_a_wave_waits_for_those_that_were_there_and_not_for_who_is_late() -> None:
    waiting = {"a": given("succeeded"), "b": given()}

    assert step(under_way(waiting), {A: GOOD}) == Wait("s/b not good yet: nothing is known of it")
    assert step(under_way(waiting), {A: GOOD, B: WAITS}) == Wait("s/b not good yet: faces is not served")
    two = under_way({"a": given(), "b": given()})
    assert step(two, {A: WAITS, B: OTHERWISE}) == Wait("2 nodes (s/a, s/b) not good yet: faces is not served")
    assert step(under_way({"a": given("succeeded"), "b": given(late=True)}), {A: GOOD, B: WAITS}) == Soak()
    later = under_way({"a": given("succeeded", wave=1), "b": given(wave=1), "c": given(wave=0)}, wave=0)
    assert step(later, {C: WAITS}) == Wait("s/c not good yet: faces is not served"), "of waves that have begun"


def test_as_long_as_nobody_is_good_late_nodes_are_waited_for() -> None:
    late = {"a": Task(0, late=True), "b": given(late=True), "c": Task(1)}

    assert step(under_way(late), {B: WAITS}) == Wait("no node is good yet; 2 nodes (s/a, s/b) late")
    assert step(under_way({"a": Task(0, late=True), "c": Task(1)})) == Wait("no node is good yet; s/a late")
    gone = under_way({"a": Task(0, "removed"), "c": Task(1)})
    assert step(gone, {C: HEARD}) == StartWave(1, (C,)), "nobody of it is left to wait for"


def test_a_wave_that_is_good_soaks_and_then_the_next_one_begins() -> None:
    one = under_way({"a": given("succeeded"), "b": Task(1)}, plan={"soak_s": 60})
    soaking = replace(one, soaking_since=NOW - 60)
    known = {A: GOOD, B: HEARD}

    assert step(one, known) == Soak()
    assert step(soaking, known, NOW - 0.5) == Wait("soaking", NOW)
    assert step(soaking, known, NOW) == StartWave(1, (B,))


def test_a_wave_that_nobody_of_is_good_in_does_not_soak() -> None:
    late = {"a": given("succeeded"), "b": Task(1, late=True), "c": Task(2)}
    one = under_way(late, wave=1, waves=("first", "second", "third"))

    assert step(one, {A: GOOD, C: HEARD}) == StartWave(2, (C,))
    assert step(under_way({"b": given("succeeded", wave=1)}), {B: GOOD}) == StartWave(1, ())


def test_at_the_end_of_a_soak_all_of_the_wave_have_to_be_known_to_be_good() -> None:
    nodes = {"a": given("succeeded"), "b": given("succeeded", wave=1), "c": given("succeeded", wave=1)}
    one = under_way(nodes, wave=1, soaking_since=NOW - 600)

    assert step(one, {A: unknown(), B: unknown("not-heard"), C: GOOD}) == Wait("s/b not known to be good at the moment")
    assert step(one, {B: GOOD}) == Wait("s/c not known to be good at the moment")
    assert step(one, {B: GOOD, C: GOOD}) == Finish(Phase.SUCCEEDED, "3 of 3 nodes serve it")


def test_a_rollout_soaks_for_ten_minutes_unless_it_says_otherwise() -> None:
    one = under_way({"a": given("succeeded"), "b": Task(1)}, soaking_since=NOW)

    assert step(one, {A: GOOD, B: HEARD}, NOW + 599.5) == Wait("soaking", NOW + 600)
    assert step(one, {A: GOOD, B: HEARD}, NOW + 600) == StartWave(1, (B,))


def test_what_a_rollout_has_come_to_is_summed_up() -> None:
    nodes = {
        "a": given("succeeded"), "b": failed(rollback="asked"), "c": Task(0, late=True), "d": given(late=True), "e": Task(0, "removed"),
    }  # fmt: skip
    one = under_way(nodes, waves=("all",), soaking_since=NOW - 600, plan={"max_failed": 1})

    assert step(one, {A: GOOD, D: WAITS}) == Finish(Phase.SUCCEEDED, "1 of 5 nodes serve it, 1 failed, 2 late")
    assert step(rollout("one", {}, waves=())) == Finish(Phase.SUCCEEDED, "0 of 0 nodes serve it")


def test_a_rollout_that_is_paused_begins_nothing() -> None:
    one = under_way({"a": Task(0, late=True), "b": given()}, phase=Phase.PAUSED, reason="by eve")

    assert step(one, {A: HEARD, B: WAITS}) == Wait("paused: by eve")
    assert step(one, {A: HEARD, B: GOOD}) == UpdateTasks({B: TaskUpdate("succeeded")})
