"""Membership in rollouts: every phase of a rollout, and every state of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.region.examples import NEW, A, B, C, D, E, rollout

from hedgerow.region.rollouts.planning.membership import (
    PINNED,
    SUPERSEDED,
    conflict,
    effective_labels,
    joins,
    own_labels,
    relevant,
    superseded,
    why_unfit,
)
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task
from hedgerow.wire.fleet import Reported

ENDED = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED)
IN_PROGRESS = (Phase.RUNNING, Phase.PAUSED, Phase.ROLLING_BACK)


def of_models(one: Rollout, *names: str) -> Rollout:
    return replace(one, models=dict.fromkeys(names, NEW))


# Labels


def test_no_label_says_where_a_node_is_and_none_of_the_regions_hides_one_of_its_own() -> None:
    claimed = {"site": "elsewhere", "node": "other", "region": "x", "ring": "late"}

    labels = effective_labels(A, claimed, {"ring": "early", "tier": "gold", "site": "mine"})

    assert labels == {"region": A.region, "site": A.site, "node": A.node, "ring": "late", "tier": "gold"}


def test_labels_that_a_node_repeats_from_the_region_are_not_its_own() -> None:
    assert own_labels({"ring": "early", "arch": "arm64"}, {"ring": "early", "arch": "z80"}) == {"arch": "arm64"}


# Relevant rollouts


def test_rollouts_in_progress_and_the_newest_success_per_target_and_models_are_relevant() -> None:
    newest = rollout("newest", {}, Phase.SUCCEEDED)
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert relevant([newest, older]) == [newest]
    assert relevant([newest, rollout("elsewhere", {}, Phase.SUCCEEDED, "ring=early"), older]) == [
        newest,
        rollout("elsewhere", {}, Phase.SUCCEEDED, "ring=early"),
    ]
    cars = of_models(older, "cars")
    assert relevant([newest, cars]) == [newest, cars]
    for phase in IN_PROGRESS:
        in_progress = rollout("in-progress", {}, phase)
        assert relevant([newest, in_progress, older]) == [newest, in_progress]
        assert relevant([in_progress, newest]) == [in_progress, newest]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELED])
def test_a_failed_rollout_is_not_relevant_and_does_not_hide_an_older_one(phase: Phase) -> None:
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert relevant([rollout("bad", {}, phase), older]) == [older]


# Conflicts


def test_a_conflict_names_the_first_three_nodes_in_order() -> None:
    five = rollout("one", {node: Task(0) for node in "edcba"})

    assert conflict([C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c"
    assert conflict([D, C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c and 1 more"
    assert conflict([E, D, C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c and 2 more"
    assert conflict([], [five]) is None


def test_every_rollout_in_progress_can_conflict_and_no_other() -> None:
    for phase in Phase:
        found = conflict([A], [rollout("other", {"b": Task(0)}), rollout("one", {"a": Task(0)}, phase)])
        assert found == (None if phase in ENDED else f"one is {phase} and includes r/s/a")


# Joining


@pytest.mark.parametrize("phase", list(Phase))
def test_a_node_joins_rollouts_in_progress_or_succeeded(phase: Phase) -> None:
    one = rollout("one", {}, phase)

    expected = phase in (Phase.RUNNING, Phase.PAUSED, Phase.SUCCEEDED)
    assert joins(A, {}, [], None, [one]) == ([one] if expected else [])


@pytest.mark.parametrize("phase", IN_PROGRESS)
def test_a_node_in_a_rollout_in_progress_joins_no_other(phase: Phase) -> None:
    other = of_models(rollout("other", {}, Phase.SUCCEEDED), "cars")

    assert joins(A, {}, [], None, [other, rollout("one", {"a": Task(0)}, phase)]) == []
    assert joins(A, {}, [], None, [other, rollout("one", {"a": Task(0, state="removed")}, phase)]) == [other]
    assert joins(A, {}, [], None, [other, rollout("one", {"b": Task(0)}, Phase.ROLLING_BACK)]) == [other]


def test_a_node_joins_one_rollout_per_model_and_none_after_one_in_progress() -> None:
    cars, plates = (of_models(rollout(name, {}, Phase.SUCCEEDED), name) for name in ("cars", "plates"))
    in_progress = rollout("faces", {})

    assert joins(A, {}, [], None, [cars, in_progress, plates]) == [cars, in_progress]
    assert joins(A, {}, [], None, [cars, plates, in_progress]) == [cars, plates, in_progress]
    assert joins(A, {}, ["cars"], None, [cars, plates]) == [plates]


@pytest.mark.parametrize(
    ("configured", "why"),
    [
        (None, ""),
        ({"faces": ""}, ""),
        ({"faces": "faces", "cars": ""}, ""),
        ({}, "its file has no model faces; it has none"),
        ({"cars": "", "bikes": ""}, "its file has no model faces; it has bikes, cars"),
        ({"faces": "people"}, "its model faces takes versions of people, not of faces"),
    ],
)
def test_a_node_whose_file_does_not_take_the_model_joins_no_rollout_of_it(
    configured: dict[str, str] | None, why: str
) -> None:
    one = rollout("one", {}, Phase.SUCCEEDED)
    reported = Reported(node="r/s/a", session="s", at=0, configured=configured)

    assert why_unfit(one.models, reported) == why
    assert joins(A, {}, [], reported, [one]) == ([] if why else [one])


def test_a_rollout_of_two_models_is_joined_only_when_both_are_free() -> None:
    both = of_models(rollout("both", {}, Phase.SUCCEEDED), "faces", "cars")
    cars = of_models(rollout("cars", {}, Phase.SUCCEEDED), "cars")

    assert joins(A, {}, [], None, [both, cars]) == [both]
    assert joins(A, {}, [], None, [cars, both]) == [cars]
    assert joins(A, {}, ["faces"], None, [both]) == []
    assert joins(A, {}, ["faces"], None, [both, cars]) == [], "an older rollout of cars does not replace it"


@pytest.mark.parametrize(
    ("task", "rejoins"),
    [
        (Task(0, "removed", code=SUPERSEDED), True),
        (Task(0, "removed", code=PINNED), True),
        (Task(0, "removed", code="left"), False),
        (Task(0, "canceled", code=SUPERSEDED), False),
        (Task(0, "succeeded"), False),
        (Task(0, "failed"), False),
        (Task(0, "queued"), False),
    ],
)
def test_a_node_rejoins_after_its_task_was_superseded_or_pinned(task: Task, rejoins: bool) -> None:
    one = rollout("one", {"a": task}, Phase.SUCCEEDED)

    assert joins(A, {}, [], None, [one]) == ([one] if rejoins else [])
    older = rollout("older", {}, Phase.SUCCEEDED)
    assert joins(A, {}, [], None, [one, older]) == ([one] if rejoins else []), "an older one is not joined instead"


def test_an_older_rollout_is_not_joined_while_a_newer_one_rolls_back() -> None:
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert joins(A, {}, [], None, [rollout("bad", {}, Phase.FAILED), older]) == [older]
    assert joins(A, {}, [], None, [rollout("bad", {}, Phase.CANCELED), older]) == [older]
    assert joins(A, {}, [], None, [rollout("bad", {}, Phase.ROLLING_BACK), older]) == []
    assert joins(A, {"ring": "late"}, [], None, [rollout("x", {}, Phase.ROLLING_BACK, "ring=early"), older]) == [older]


# Superseded tasks


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task(0, "queued"), True),
        (Task(0, "in-progress"), True),
        (Task(0, "succeeded"), False),
        (Task(0, "failed"), True),
        (Task(0, "timed-out"), True),
        (Task(0, "failed", rollback="asked"), True),
        (Task(0, "failed", rollback="proved"), False),
        (Task(0, "canceled", rollback="asked"), True),
        (Task(0, "canceled", rollback="proved"), False),
        (Task(0, "canceled"), False),
        (Task(0, "removed"), False),
    ],
)
def test_unfinished_tasks_of_an_ended_rollout_are_superseded(task: Task, expected: bool) -> None:
    for phase in ENDED:
        assert superseded(rollout("one", {"a": task}, phase), ["faces"], [A, B]) == ([A] if expected else [])


def test_tasks_of_a_rollout_in_progress_are_superseded_only_on_request() -> None:
    for phase in IN_PROGRESS:
        one = rollout("one", {"a": Task(0, "succeeded"), "b": Task(0), "c": Task(0, "removed")}, phase)

        assert superseded(one, ["faces"], [A, B, C]) == []
        assert superseded(one, ["faces"], [A, B, C], also_in_progress=True) == [A, B]


def test_only_tasks_of_the_same_models_are_superseded() -> None:
    one = rollout("one", {"a": Task(0)}, Phase.FAILED)

    assert superseded(one, ["cars"], [A]) == []
    assert superseded(one, ["cars", "faces"], [A]) == [A]
    assert superseded(replace(one, phase=Phase.RUNNING), ["cars"], [A], also_in_progress=True) == []
