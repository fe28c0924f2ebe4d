"""The planner: each step from exactly the situation that calls for it."""

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

PRESENT = GateFinding(GateVerdict.UNKNOWN, "queued")
ABSENT = replace(PRESENT, presence=Presence.ABSENT)
UNKNOWN = replace(PRESENT, presence=Presence.UNKNOWN)
WAITS = unknown(UNPROVED, "faces is not served")
OTHERWISE = unknown(UNPROVED, "something else")
ENDED = Wait("it has ended")


def reached(state: Any = "in-progress", wave: int = 0, **more: Any) -> Task:
    """Return the task of a node that was sent the change."""
    return Task(wave, state, **{"generation": 7, "assigned_at": NOW - 100, **more})


def failed(wave: int = 0, **more: Any) -> Task:
    return reached("failed", wave, **{"code": "slow", "reason": "too slow", **more})


def in_progress(nodes: Mapping[str, Task], **more: Any) -> Rollout:
    """Return a rollout in the first of two waves."""
    return rollout("one", nodes, **{"wave": 0, "waves": ("first", "second"), **more})


def step(one: Rollout, findings: Mapping[Address, GateFinding] | None = None, now: float = NOW) -> Step:
    return next_step(one, findings or {}, now)


# Evaluating nodes by their tasks


LISTENING = Listening(NOW - 1000, SILENT_AFTER_S)


def finding(task: Task, known: ObservedNode | None, **more: Any) -> GateFinding:
    one = in_progress({"a": task}, **more)
    return evaluate_nodes(one, {} if known is None else {A: known}, LISTENING, NOW)[A]


def test_a_node_without_a_change_has_only_presence() -> None:
    assert finding(Task(0), observed()) == PRESENT
    assert finding(Task(0), None) == ABSENT
    assert finding(reached("queued"), observed()) == PRESENT
    assert finding(Task(0, "in-progress"), observed()) == GateFinding(GateVerdict.UNKNOWN, "in-progress")
    assert finding(failed(), observed()) == GateFinding(GateVerdict.UNKNOWN, "failed")
    assert finding(failed(rollback="proved"), observed()) == GateFinding(GateVerdict.UNKNOWN, "failed")


def test_a_node_must_prove_its_change() -> None:
    assert finding(reached(), observed()) == GOOD
    assert finding(reached("succeeded"), observed()) == GOOD
    assert finding(reached(generation=8), observed()) == unknown(UNPROVED, "it is at generation 7, not 8")
    assert finding(reached(), observed(), files={"faces": frozenset([digest("another")])}).code == "wrong-file"
    assert finding(reached(), observed(), models={"faces": OLD}).reason == "faces is faces 2.0.0"
    grown = observed([sample(NOW - 10, 3, memory_bytes=2 << 30)])
    assert finding(reached(), grown) == GOOD
    assert finding(reached(baseline=NodeBaseline(memory_bytes=1 << 20)), grown).code == "memory-growth"
    assert finding(reached(), observed(), plan={"gate": {"min_frames": 301}}).code == UNPROVED


def test_a_timeout_applies_until_a_node_is_good() -> None:
    missing = observed(models={})
    gate = {"gate": {"timeout_s": 50}}

    assert finding(reached(assigned_at=NOW - 50), missing, plan=gate) == WAITS
    assert finding(reached(assigned_at=NOW - 51), missing, plan=gate).code == "timed-out"
    assert finding(reached("succeeded", assigned_at=NOW - 51), missing, plan=gate) == WAITS


def test_a_rollback_timeout_counts_from_when_the_rollout_started_rolling_back() -> None:
    rollback = failed(rollback="asked", rollback_generation=8, before={"faces": OLD})
    gate = {"gate": {"timeout_s": 50}}
    not_yet = replace(observed(), reported=reported(generation=8))
    rolled_back = replace(observed(), reported=reported(generation=8, serving={"model": OLD}))
    missing = "faces is faces 2.0.0"

    assert finding(rollback, rolled_back) == GOOD
    assert finding(rollback, observed()) == unknown(UNPROVED, "its report does not show the rollback yet")
    assert finding(rollback, not_yet, plan=gate) == unknown(UNPROVED, missing), "the rollout is not rolling back"
    assert finding(rollback, not_yet, plan=gate, rolling_back_since=NOW - 50) == unknown(UNPROVED, missing)
    assert finding(rollback, not_yet, plan=gate, rolling_back_since=NOW - 51) == bad(
        "timed-out", missing, state="timed-out"
    )


def test_every_node_is_evaluated() -> None:
    one = in_progress({"a": reached(), "b": Task(0)})

    assert evaluate_nodes(one, {A: observed()}, LISTENING, NOW) == {A: GOOD, B: ABSENT}


# Updating tasks


def test_tasks_are_updated_before_anything_else() -> None:
    one = in_progress({"a": reached(), "b": reached(), "c": reached(), "d": reached("succeeded"), "e": Task(1)})

    assert step(one, {A: GOOD, B: bad("slow", "too slow"), C: WAITS, D: GOOD, E: GOOD}) == UpdateTasks(
        {A: TaskUpdate("succeeded"), B: TaskUpdate("failed", "slow", "too slow")}
    )
    assert step(one, {B: bad("silent", "quiet", state="timed-out")}) == UpdateTasks(
        {B: TaskUpdate("timed-out", "silent", "quiet")}
    )


def test_a_good_node_whose_proof_is_gone_must_prove_itself_again() -> None:
    one = in_progress({"a": reached("succeeded")})

    assert step(one, {A: WAITS}) == UpdateTasks({A: TaskUpdate("in-progress", UNPROVED, "faces is not served")})
    assert step(one, {A: bad("slow", "too slow")}) == UpdateTasks({A: TaskUpdate("failed", "slow", "too slow")})
    assert not isinstance(step(one, {A: unknown("not-heard")}), UpdateTasks)
    assert not isinstance(step(in_progress({"a": reached()}), {A: WAITS}), UpdateTasks), "it is in progress already"


def test_after_success_only_late_nodes_are_updated() -> None:
    one = in_progress({"a": reached("succeeded"), "b": reached(late=True)}, phase=Phase.SUCCEEDED, wave=1)

    assert step(one, {A: bad("slow"), B: unknown()}) == ENDED
    assert step(one, {A: WAITS, B: GOOD}) == UpdateTasks({B: TaskUpdate("succeeded")})
    assert step(one, {B: bad("slow", "too slow")}) == UpdateTasks({B: TaskUpdate("failed", "slow", "too slow")})


def test_a_proved_rollback_is_recorded() -> None:
    one = in_progress(
        {"a": failed(rollback="asked"), "b": reached("canceled", rollback="asked")}, phase=Phase.ROLLING_BACK
    )

    assert step(one, {A: GOOD, B: bad("timed-out")}) == UpdateTasks(
        {A: TaskUpdate("failed", "slow", "too slow", rollback="proved")}
    )
    assert step(in_progress({"a": failed(rollback="proved")}, phase=Phase.ROLLING_BACK), {A: GOOD}) == Finish(
        Phase.FAILED, ""
    )


def test_a_node_that_had_no_version_to_go_back_to_is_recorded_as_such() -> None:
    one = in_progress(
        {"a": failed(rollback="asked"), "b": reached("canceled", rollback="asked")}, phase=Phase.ROLLING_BACK
    )
    kept = replace(GOOD, code="no-earlier-version", reason="faces is still faces 2.0.0")

    assert step(one, {A: kept, B: kept}) == UpdateTasks(
        {
            A: TaskUpdate("failed", "slow", "too slow; faces is still faces 2.0.0", rollback="kept"),
            B: TaskUpdate("canceled", "no-earlier-version", "faces is still faces 2.0.0", rollback="kept"),
        }
    )
    ended = in_progress(
        {"a": failed(rollback="kept"), "b": reached("canceled", rollback="proved")},
        phase=Phase.ROLLING_BACK,
        reason="it was bad",
    )
    assert step(ended) == Finish(Phase.FAILED, "it was bad; s/a had no earlier version and still serves it")


def test_a_node_that_was_never_reached_is_not_updated() -> None:
    one = in_progress({"a": Task(0, "in-progress"), "b": reached("removed")})

    assert not isinstance(step(one, {A: GOOD, B: bad("slow")}), UpdateTasks)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELED])
def test_a_failed_or_canceled_rollout_does_nothing(phase: Phase) -> None:
    assert step(in_progress({"a": reached(), "b": failed(), "c": Task(0)}, phase=phase), {A: GOOD, C: PRESENT}) == ENDED


# Failures


def test_more_failures_than_allowed_roll_everything_back() -> None:
    nodes = {
        "a": failed(),
        "b": reached("succeeded"),
        "c": reached("succeeded", wave=1),
        "d": Task(1),
        "e": reached("removed"),
    }
    reason = "1 failed (s/a: slow: too slow); 0 allowed"

    assert step(in_progress(nodes, wave=1)) == RollBack((A, B, C), reason, Phase.FAILED)
    wave_only = {"on_failure": "roll-back-wave"}
    assert step(in_progress(nodes, wave=1, plan=wave_only)) == RollBack((A, C), reason, Phase.FAILED)
    assert step(in_progress(nodes, wave=0, plan=wave_only)) == RollBack((A, B), reason, Phase.FAILED)


def test_allowed_failures_roll_back_only_the_failed_nodes() -> None:
    nodes = {"a": failed(), "b": failed(wave=1), "c": reached("succeeded")}

    assert step(in_progress(nodes, plan={"max_failed": 2})) == RollBack((A, B), "they failed")
    assert step(in_progress(nodes, plan={"max_failed": 1})).ending is Phase.FAILED  # type: ignore[union-attr]
    assert step(in_progress(nodes, plan={"max_failed": 1}, forgiven=1)) == RollBack((A, B), "they failed")
    assert step(in_progress(nodes, plan={"max_failed": 0}, forgiven=1)).ending is Phase.FAILED  # type: ignore[union-attr]


def test_a_percentage_of_failures_is_of_the_nodes_reached() -> None:
    nodes = {"a": failed(), "b": reached("succeeded"), "c": reached("succeeded"), "d": Task(1), "e": Task(1)}

    assert step(in_progress(nodes, plan={"max_failed": "34%"})) == RollBack((A,), "they failed")
    assert step(in_progress(nodes, plan={"max_failed": "33%"})) == RollBack(
        (A, B, C), "1 failed (s/a: slow: too slow); 0 allowed", Phase.FAILED
    )


@pytest.mark.parametrize(("share", "allowed"), [("99%", 0), ("100%", 1)])
def test_a_percentage_with_no_node_reached_is_of_one_node(share: str, allowed: int) -> None:
    """Nodes that were offline when their wave started count as failed, but were never reached."""
    nodes = {"a": Task(0, "failed", code="offline", reason="not connected"), "b": Task(1)}

    assert step(in_progress(nodes, plan={"max_failed": share})) == RollBack(
        (), f"1 failed (s/a: offline: not connected); {allowed} allowed", Phase.FAILED
    )


def test_it_is_too_many_if_every_node_reached_has_failed() -> None:
    allowed = {"max_failed": 9}
    reason = "1 failed (s/a: slow: too slow); 9 allowed"

    assert step(in_progress({"a": failed(), "b": Task(1)}, plan=allowed)) == RollBack((A,), reason, Phase.FAILED)
    for other in (reached(), reached("succeeded")):
        assert step(in_progress({"a": failed(), "b": other}, plan=allowed)) == RollBack((A,), "they failed")
    assert step(in_progress({"a": failed()}, plan=allowed, forgiven=1)) == RollBack((A,), "they failed")
    assert isinstance(step(in_progress({"a": reached("canceled", rollback="proved")}, plan=allowed)), Wait | StartWave)


def test_on_failure_pause_rolls_back_failed_nodes_then_pauses() -> None:
    pause = {"on_failure": "pause"}
    rollback = failed(rollback="asked")

    assert step(in_progress({"a": failed(), "b": reached()}, plan=pause)) == RollBack((A,), "they failed")
    assert step(in_progress({"a": rollback, "b": reached()}, plan=pause)) == Pause(
        "1 failed (s/a: slow: too slow); 0 allowed"
    )
    paused = in_progress({"a": rollback, "b": reached()}, plan=pause, phase=Phase.PAUSED, reason="it looked bad")
    assert step(paused) == Wait("paused: it looked bad")
    paused = in_progress({"a": rollback, "b": failed()}, plan=pause, phase=Phase.PAUSED)
    assert step(paused) == RollBack((B,), "they failed")


def test_a_failed_node_is_rolled_back_once_and_only_if_reached() -> None:
    for rollback in (failed(rollback="asked"), failed(rollback="proved"), Task(0, "failed"), reached("removed")):
        nodes = {"a": rollback, "b": reached("succeeded")}
        assert not isinstance(step(in_progress(nodes, plan={"max_failed": 5}), {B: GOOD}), RollBack)


def test_late_failures_are_rolled_back_after_success_and_during_a_rollback() -> None:
    for phase in (Phase.SUCCEEDED, Phase.ROLLING_BACK):
        one = in_progress({"a": reached("succeeded"), "b": failed(late=True)}, phase=phase)
        assert step(one) == RollBack((B,), "they failed")


def test_the_first_three_failures_are_named() -> None:
    pause = {"on_failure": "pause"}
    nodes = {node: failed(rollback="asked", code=f"code-{node}", reason="bad") for node in "abcd"}
    three = "s/a: code-a: bad; s/b: code-b: bad; s/c: code-c: bad"

    assert step(in_progress(nodes, plan=pause)) == Pause(f"4 failed ({three} and 1 more); 0 allowed")
    del nodes["d"]
    assert step(in_progress(nodes, plan=pause)) == Pause(f"3 failed ({three}); 0 allowed")


# Rolling back


def test_a_rollback_includes_reached_nodes_that_are_not_rolled_back() -> None:
    nodes = {
        "a": reached("succeeded"), "b": Task(0), "c": reached("canceled", rollback="asked"), "d": reached("removed"),
        "e": failed(wave=1, rollback="proved"), "f": reached("in-progress", wave=1),
    }  # fmt: skip
    f = Address("r", "s", "f")

    assert roll_back(in_progress(nodes, wave=1), Phase.CANCELED, "aborted by eve") == RollBack(
        (A, f), "aborted by eve", Phase.CANCELED
    )


def test_a_rollback_of_a_wave_includes_failed_and_unfinished_nodes() -> None:
    nodes = {
        "a": reached("succeeded"), "b": reached("succeeded", wave=1), "c": failed(), "d": reached(late=True), "e": reached(wave=1),
    }  # fmt: skip

    assert roll_back(in_progress(nodes, wave=1), Phase.FAILED, "", wave_only=True) == RollBack(
        (B, C, D, E), "", Phase.FAILED
    )


def test_a_rollback_waits_for_present_nodes() -> None:
    nodes = {node: reached("canceled", rollback="asked") for node in "abc"}
    one = in_progress(nodes, phase=Phase.ROLLING_BACK, reason="it was bad", ending=Phase.CANCELED)
    late = bad("timed-out", "it does not answer", state="timed-out")

    assert step(one, {A: WAITS, B: OTHERWISE, C: late}) == Wait(
        "2 nodes (s/a, s/b) not rolled back yet: faces is not served"
    )
    assert step(one, {A: UNKNOWN, B: ABSENT, C: late}) == Wait("s/a not rolled back yet: ")
    assert step(one, {A: late, B: ABSENT}) == Finish(
        Phase.CANCELED, "it was bad; rollback not confirmed on 3 nodes (s/a, s/b, s/c)"
    )


def test_a_completed_rollback_ends_in_its_ending_phase_or_failed() -> None:
    one = in_progress(
        {"a": failed(rollback="proved"), "b": Task(1, "canceled")}, phase=Phase.ROLLING_BACK, reason="bad"
    )

    assert step(one) == Finish(Phase.FAILED, "bad")
    assert step(replace(one, ending=Phase.CANCELED)) == Finish(Phase.CANCELED, "bad")


# Forward


def test_the_first_wave_starts_with_its_present_nodes() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0), "c": Task(1)}, waves=("first", "second"))

    assert step(one, {A: PRESENT, B: PRESENT, C: PRESENT}) == StartWave(0, (A, B))
    assert step(one, {A: ABSENT, B: PRESENT, C: UNKNOWN}) == StartWave(0, (B,))
    assert step(one, {A: ABSENT}) == StartWave(0, ())


def test_a_wave_waits_while_presence_is_unknown() -> None:
    one = rollout("one", dict.fromkeys("abcde", Task(0)))

    assert step(one, {A: PRESENT, B: UNKNOWN}) == Wait("not known yet whether s/b is connected")
    assert step(one, {A: UNKNOWN, B: UNKNOWN, C: PRESENT}) == Wait(
        "not known yet whether 2 nodes (s/a, s/b) are connected"
    )
    assert step(one, {A: UNKNOWN, B: UNKNOWN, C: UNKNOWN}) == Wait(
        "not known yet whether 3 nodes (s/a, s/b, s/c) are connected"
    )
    assert step(one, dict.fromkeys((A, B, C, D), UNKNOWN)) == Wait(
        "not known yet whether 4 nodes (s/a, s/b, s/c and 1 more) are connected"
    )
    assert step(one, dict.fromkeys((A, B, C, D, E), UNKNOWN)) == Wait(
        "not known yet whether 5 nodes (s/a, s/b, s/c and 2 more) are connected"
    )


def test_offline_nodes_fail_if_the_plan_says_so() -> None:
    one = rollout("one", {"a": Task(0), "b": Task(0)}, plan={"offline": "fail"})
    missed = TaskUpdate("failed", "offline", "it was not connected when its wave started")

    assert step(one, {A: PRESENT, B: ABSENT}) == UpdateTasks({B: missed})
    assert step(one, {}) == UpdateTasks({A: missed, B: missed})
    assert step(one, {A: PRESENT, B: PRESENT}) == StartWave(0, (A, B))
    begun = rollout("one", {"a": Task(0), "b": Task(0, "removed")}, plan={"offline": "fail"})
    assert step(begun, {A: PRESENT}) == StartWave(0, (A,))


WINDOW = {"begin": "10:00", "end": "11:00"}
OPENS = NOW - NOW % 86_400 + 10 * 3600
"""On the day of NOW, in UTC."""


def test_nothing_starts_outside_maintenance_windows() -> None:
    one = rollout("one", {"a": Task(0)}, plan={"windows": [WINDOW]})

    assert step(one, {A: PRESENT}, OPENS - 0.5) == Wait("outside its maintenance windows", OPENS)
    assert step(one, {A: UNKNOWN}, OPENS - 0.5) == Wait("outside its maintenance windows", OPENS)
    assert step(one, {A: PRESENT}, OPENS) == StartWave(0, (A,))
    late = in_progress({"a": Task(0, late=True), "b": reached()}, plan={"windows": [WINDOW]})
    assert step(late, {A: PRESENT, B: WAITS}, OPENS) == CatchUp((A,))
    assert step(late, {A: PRESENT, B: WAITS}, OPENS - 0.5) == Wait("s/b not good yet: faces is not served")


def test_late_nodes_catch_up_when_they_return() -> None:
    nodes = {"a": Task(0, late=True), "b": reached(), "c": Task(1), "d": Task(0, late=True), "e": Task(0, "removed")}

    assert step(in_progress(nodes), dict.fromkeys((A, C, D, E), PRESENT) | {B: WAITS}) == CatchUp((A, D))
    assert step(in_progress(nodes, wave=1), {A: UNKNOWN, C: PRESENT, D: ABSENT}) == CatchUp((C,))
    assert step(in_progress(nodes), {B: WAITS}) == Wait("s/b not good yet: faces is not served")
    ended = in_progress({"a": Task(1, late=True), "b": reached("succeeded")}, phase=Phase.SUCCEEDED, wave=1)
    assert step(ended, {A: PRESENT}) == CatchUp((A,))
    assert step(ended, {A: ABSENT}) == ENDED


def test_a_wave_waits_for_its_nodes_but_not_for_late_ones() -> None:
    waiting = {"a": reached("succeeded"), "b": reached()}

    assert step(in_progress(waiting), {A: GOOD}) == Wait("s/b not good yet: nothing is known of it")
    assert step(in_progress(waiting), {A: GOOD, B: WAITS}) == Wait("s/b not good yet: faces is not served")
    two = in_progress({"a": reached(), "b": reached()})
    assert step(two, {A: WAITS, B: OTHERWISE}) == Wait("2 nodes (s/a, s/b) not good yet: faces is not served")
    assert step(in_progress({"a": reached("succeeded"), "b": reached(late=True)}), {A: GOOD, B: WAITS}) == Soak()
    later = in_progress({"a": reached("succeeded", wave=1), "b": reached(wave=1), "c": reached(wave=0)}, wave=0)
    assert step(later, {C: WAITS}) == Wait("s/c not good yet: faces is not served"), "of any wave that has started"


def test_late_nodes_hold_up_a_rollout_until_one_node_is_good() -> None:
    late = {"a": Task(0, late=True), "b": reached(late=True), "c": Task(1)}

    assert step(in_progress(late), {B: WAITS}) == Wait("no node is good yet; 2 nodes (s/a, s/b) late")
    assert step(in_progress({"a": Task(0, late=True), "c": Task(1)})) == Wait("no node is good yet; s/a late")
    gone = in_progress({"a": Task(0, "removed"), "c": Task(1)})
    assert step(gone, {C: PRESENT}) == StartWave(1, (C,)), "no node of the wave is left"


def test_a_good_wave_soaks_before_the_next_one_starts() -> None:
    one = in_progress({"a": reached("succeeded"), "b": Task(1)}, plan={"soak_s": 60})
    soaking = replace(one, soaking_since=NOW - 60)
    known = {A: GOOD, B: PRESENT}

    assert step(one, known) == Soak()
    assert step(soaking, known, NOW - 0.5) == Wait("soaking", NOW)
    assert step(soaking, known, NOW) == StartWave(1, (B,))


def test_a_wave_without_a_good_node_does_not_soak() -> None:
    late = {"a": reached("succeeded"), "b": Task(1, late=True), "c": Task(2)}
    one = in_progress(late, wave=1, waves=("first", "second", "third"))

    assert step(one, {A: GOOD, C: PRESENT}) == StartWave(2, (C,))
    assert step(in_progress({"b": reached("succeeded", wave=1)}), {B: GOOD}) == StartWave(1, ())


def test_after_a_soak_all_nodes_of_the_wave_must_be_good() -> None:
    nodes = {"a": reached("succeeded"), "b": reached("succeeded", wave=1), "c": reached("succeeded", wave=1)}
    one = in_progress(nodes, wave=1, soaking_since=NOW - 600)

    assert step(one, {A: unknown(), B: unknown("not-heard"), C: GOOD}) == Wait("s/b not known to be good at the moment")
    assert step(one, {B: GOOD}) == Wait("s/c not known to be good at the moment")
    assert step(one, {B: GOOD, C: GOOD}) == Finish(Phase.SUCCEEDED, "3 of 3 nodes serve it")


def test_the_default_soak_is_ten_minutes() -> None:
    one = in_progress({"a": reached("succeeded"), "b": Task(1)}, soaking_since=NOW)

    assert step(one, {A: GOOD, B: PRESENT}, NOW + 599.5) == Wait("soaking", NOW + 600)
    assert step(one, {A: GOOD, B: PRESENT}, NOW + 600) == StartWave(1, (B,))


def test_a_finished_rollout_has_a_summary() -> None:
    nodes = {
        "a": reached("succeeded"), "b": failed(rollback="asked"), "c": Task(0, late=True), "d": reached(late=True), "e": Task(0, "removed"),
    }  # fmt: skip
    one = in_progress(nodes, waves=("all",), soaking_since=NOW - 600, plan={"max_failed": 1})

    assert step(one, {A: GOOD, D: WAITS}) == Finish(Phase.SUCCEEDED, "1 of 5 nodes serve it, 1 failed, 2 late")
    assert step(rollout("one", {}, waves=())) == Finish(Phase.SUCCEEDED, "0 of 0 nodes serve it")


def test_a_paused_rollout_starts_nothing() -> None:
    one = in_progress({"a": Task(0, late=True), "b": reached()}, phase=Phase.PAUSED, reason="by eve")

    assert step(one, {A: PRESENT, B: WAITS}) == Wait("paused: by eve")
    assert step(one, {A: PRESENT, B: GOOD}) == UpdateTasks({B: TaskUpdate("succeeded")})
